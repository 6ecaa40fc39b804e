"""The command line's overrides: their names checked, and brought to the form that Hydra needs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgmbench.config.files import options, read_settings
from dgmbench.config.habits import understood
from dgmbench.config.signatures import show
from dgmbench.errors import UserError, nearest

# taken literally: no need to quote their special signs
PATHS = (
    "run", "samples", "against", "to", "paths.outputs", "paths.data", "data.path", "data.background",
    "trainer.continue_from", "trainer.start_from",
)  # fmt: skip
MOST_SIGNS = 10_000  # Hydra's grammar takes minutes for a megabyte
OBJECTS = ("model", "data", "optimizer")  # groups whose nodes are built from a class


def quoted(value: object) -> str:
    """The value as Hydra's grammar takes it literally, whatever signs it has."""
    return "'{}'".format(str(value).replace("'", r"\'"))


def rewrite(overrides: Sequence[str], *, multirun: bool = False, config_dirs: Iterable[str | Path] = ()) -> list[str]:
    """Check the overrides' names and bring them to the form that Hydra needs.

    ``model.hidden=3`` works whether or not the YAML has the key (``complete`` checks it against the signature), and
    ``model.estimator=pcd`` chooses a configuration of the sub-group ``model/estimator``; in ``[cd,pcd]`` each name
    stands for the contents of its configuration.
    """
    config_dirs = list(config_dirs)
    return [one for text in overrides for one in _rewritten(understood(text, config_dirs), multirun, config_dirs)]


def _rewritten(text: str, multirun: bool, config_dirs: list[str | Path]) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = text.partition("=")
    if len(text) > MOST_SIGNS:
        raise UserError(
            f"The setting {text[:40]}... has {len(text):,} signs; put values of more than {MOST_SIGNS:,} into a "
            "configuration file of your own (--config-dir DIR)."
        )
    if equals and key.lstrip("+") in PATHS and value[:1] not in ("'", '"') and not (multirun and "," in value):
        text = f"{key}={quoted(value)}"
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if "=" not in text and not text.startswith("~"):
            raise UserError(
                f"'{text}' is not of the form key=value, such as model=vae or trainer.budget=5ep."
            ) from error
        reason = str(error).splitlines()[0]
        raise UserError(f"'{text}' cannot be read ({reason}); put quotes around values with special signs.") from error
    key = override.key_or_group
    if override.is_sweep_override() and not multirun:
        raise UserError(f"{text} asks for several runs: add -m (dgm train -m {text}), or give one value.")
    if (
        key.startswith("hydra")
        or override.is_delete()
        or (text.startswith("++") and isinstance(override.value(), dict))
    ):
        return [text]  # the last is half of what a list of names becomes: a sweep's jobs are rewritten twice
    group = key.replace(".", "/")
    chosen = [show(value) for value in _values(override)]
    known = options(group, config_dirs)
    if known and group == key:
        _choose(key, chosen, known)
    elif known and all(re.fullmatch(r"[\w-]+", value) for value in chosen):
        _choose(key, chosen, known)
        return [text.replace(key, group, 1)]
    elif known and (names := _names_in_list(override)):
        _choose(key, names, known)
        nodes = ",".join(_written(_contents(group, name, config_dirs)) for name in names)
        parent, _, name = key.rpartition(".")
        # a list cannot be merged into the default's mapping, and sweepers keep one override a key
        return [f"++{parent}={{{name}:null}}", f"++{key}=[{nodes}]"]
    if key.split(".")[0] in OBJECTS and "." in key and "/" not in key:
        return ["++" + text.lstrip("+")]
    return [text]


def _values(override: Any) -> list[Any]:
    from hydra.core.override_parser.types import ChoiceSweep

    value = override.value()
    return list(value.list) if isinstance(value, ChoiceSweep) else [] if override.is_sweep_override() else [value]


def _names_in_list(override: Any) -> list[str]:
    """The names in ``key=[name,name]``, or nothing if that is not what the value is."""
    value = override.value()
    named = isinstance(value, list) and all(isinstance(item, str) and re.fullmatch(r"[\w-]+", item) for item in value)
    return value if named else []


def _contents(group: str, name: str, config_dirs: list[str | Path]) -> dict[str, Any]:
    contents = read_settings(group, name, config_dirs)
    if "defaults" in contents:
        raise UserError(f"{group}={name} is made of other configurations, so it cannot stand in a list.")
    return contents


def _written(value: Any) -> str:
    """A plain value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return quoted(value) if isinstance(value, str) else show(value)


def _choose(group: str, chosen: list[str], known: list[str]) -> None:
    for name in chosen:
        if name not in known:
            hint = " 'dgm list' shows them all." if group == "model" else ""
            raise UserError(nearest(name, known, what=group.replace("/", " ").replace(".", " ")) + hint)
