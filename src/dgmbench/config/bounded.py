"""Files that may come from anybody, read within bounds: regular files only, and YAML that is no more than it looks."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from dgmbench.errors import UserError

MOST_BYTES = 2**20
MOST_VALUES = 100_000
MOST_LEVELS = 100
SHORT = 10_000  # signs: no text that is shorter nests so deep that it hurts


class Excessive(UserError):
    """A text that is more than it looks."""


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; a pipe would wait for ever, and a device give without end: an OSError each."""
    # not every system has these: not to wait for a pipe's writer, and bytes as they are
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with open(descriptor, "rb") as file:
        return file.read()


def load_yaml(content: str | bytes, name: object) -> Any:
    """The plain values of a YAML text; what is no YAML, or more than it looks, ends in a sentence that begins with
    ``name``.

    Aliases make an exponential tree of a few lines, so all that a text stands for is counted before it is built.
    """
    loader_class: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # some builds of PyYAML lack the C loader
    if len(content) > MOST_BYTES:
        raise Excessive(f"{name} has {len(content):,} signs; configurations have no more than {MOST_BYTES:,}.")
    try:
        _check_events(content, loader_class, name)
        loader = loader_class(content)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, name, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise Excessive(f"{name} is nested too deeply.") from error


def _check_events(content: str | bytes, loader_class: Any, name: object) -> None:
    """Refuse deep nesting before anything recurses into it."""
    if len(content) < SHORT:
        return
    level = 0
    for number, event in enumerate(yaml.parse(content, Loader=loader_class)):
        if number > 2 * MOST_VALUES:
            raise Excessive(f"{name} holds more than {MOST_VALUES:,} values; configurations have fewer.")
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
            if level > MOST_LEVELS:
                raise Excessive(f"{name} is nested more than {MOST_LEVELS} levels deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1


def _count(node: Any, name: object, known: dict[int, int | None]) -> int:
    """How many values a node stands for, with all its aliases written out; refused if too many, or without end."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise Excessive(f"{name} holds an alias of what it is itself a part of.")
        return found
    known[id(node)] = None
    total = 1
    if not isinstance(node, yaml.ScalarNode):
        for child in node.value:
            total += sum(_count(each, name, known) for each in (child if isinstance(child, tuple) else (child,)))
            if total > MOST_VALUES:
                raise Excessive(
                    f"{name} stands for more than {MOST_VALUES:,} values when its aliases are written out; "
                    "configurations have fewer."
                )
    known[id(node)] = total
    return total
