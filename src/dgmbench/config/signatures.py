"""Nodes with a ``_target_``: checking the keys against the signature of its class, building the object."""

import collections.abc
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dgmbench.config.targets import TARGET, Role, locate, role_of
from dgmbench.errors import UserError, nearest


def complete_node(
    node: Mapping[str, Any],
    where: str,
    role: Role | None = None,
    *,
    supplied: Collection[str] = (),
    metadata: Collection[str] = (),
) -> dict[str, Any]:
    """Return the resolved ``node`` with its values checked and every default of the target's signature filled in.

    ``role`` is what its place asks for (see :func:`locate`), ``supplied`` are arguments that code passes, ``metadata``
    keys that are no arguments and stay as they are.
    """
    if TARGET not in node:
        raise UserError(f"{where} has no _target_: its configuration must name a class.")
    target = locate(node[TARGET], where, role)
    arguments = {key: value for key, value in node.items() if key != TARGET}
    done: dict[str, Any] = {TARGET: node[TARGET]}
    accepted = _arguments(target)
    done.update({key: arguments.pop(key) for key in metadata if key in arguments and key not in accepted})
    done.update(check_arguments(arguments, target, where, supplied=supplied, also=metadata))
    hints = _hints(target)
    for name, parameter in accepted.items():
        if name in supplied or name in arguments:
            continue
        default = parameter.default
        if default is not parameter.empty:
            if _plain(default):
                done[name] = coerce(_listed(default), hints.get(name, Any), f"{where}.{name}", strict=False)
        elif parameter.kind is parameter.KEYWORD_ONLY or "." in where:
            raise UserError(f"{where}.{name} must be given: {node[TARGET]} has no default for it.")
    return done


def check_arguments(
    arguments: Mapping[str, Any],
    target: Callable[..., Any],
    where: str,
    *,
    supplied: Collection[str] = (),
    also: Collection[str] = (),
) -> dict[str, Any]:
    """Return ``arguments`` with their values brought to the types of the target's signature, or say what is wrong.

    ``also`` are keys of the node that are no arguments but may have been meant by a misspelt one.
    """
    accepted = {name: value for name, value in _arguments(target).items() if name not in supplied}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    hints = _hints(target)
    done = {}
    for key, value in arguments.items():
        if key not in accepted and not takes_any:
            raise UserError(nearest(key, [*accepted, *also], what=f"{where} setting"))
        done[key] = coerce(value, hints.get(key, Any), f"{where}.{key}")
    return done


def build(
    node: Mapping[str, Any],
    where: str,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    role: Role | None = None,
) -> Any:
    """Call the node's target with its keys, nested nodes built first, and ``args`` and ``kwargs`` added.

    What the target refuses with one of Python's errors for wrong values becomes a UserError that names the node.
    """
    target = locate(node.get(TARGET), where, role)
    arguments = {key: value for key, value in node.items() if key != TARGET}
    try:
        inspect.signature(target).bind(*args, **{**arguments, **(kwargs or {})})
    except TypeError as error:
        raise UserError(f"{where} does not fit {node[TARGET]}: {error}.") from error
    hints = _hints(target)
    arguments = {key: _built(value, hints.get(key, Any), f"{where}.{key}") for key, value in arguments.items()}
    arguments.update(kwargs or {})
    try:
        return target(*args, **arguments)
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        reason = (str(error).splitlines() or [""])[0].strip().rstrip(".")[:300] or type(error).__name__
        raise UserError(f"{where} cannot be built from these settings, says {node[TARGET]}: {reason}.") from error


def _built(value: Any, hint: Any, where: str) -> Any:
    """A value with the nodes in it built, at any depth, each of the classes that the argument's type names."""
    if isinstance(value, Mapping):
        if TARGET in value:
            return build(value, where, role=_part(hint, where))
        return {key: _built(item, hint, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_built(item, hint, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _part(hint: Any, where: str) -> Role:
    """The role of a node that stands for an argument of this type."""
    role = role_of(hint, where)
    if role is None:
        raise UserError(f"{where} must be {describe(hint)}, not a node with a _target_.")
    return role


def _arguments(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(target).parameters.items() if p.kind in named}


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # a hint that only a type checker can resolve: its values go unchecked
        return {}


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def coerce(value: Any, hint: Any, where: str, *, strict: bool = True) -> Any:
    """Return ``value`` as the type ``hint`` asks (2 as 2.0 for a float), nested nodes completed.

    Types that YAML cannot express are not checked. Without ``strict`` a misfit is returned unchanged.
    """
    if isinstance(value, Mapping) and TARGET in value:
        return complete_node(value, where, _part(hint, where))
    try:
        return _fit(value, hint, where)
    except _Misfit:
        if not strict:
            return value
    choices = [choice for choice in _alternatives(hint) if typing.get_origin(choice) is typing.Literal]
    names = [str(option) for choice in choices for option in typing.get_args(choice)]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    raise UserError(f"{where}={show(value)} must be {describe(hint)}{f'; did you mean {close[0]}?' if close else '.'}")


class _Misfit(Exception):
    pass


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fit(value: Any, hint: Any, where: str) -> Any:
    if len(options := _alternatives(hint)) > 1:
        exact = [option for option in options if option is type(value)]
        for option in (*exact, *options):
            try:
                return _fit(value, option, where)
            except _Misfit:
                continue
        raise _Misfit
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fit(value, args[0], where)
    if origin is typing.Literal:
        same = [option for option in args if option == value and type(option) is type(value)]
        same += [option for option in args if isinstance(option, str) and option == str(value)]  # "32" written as 32
        return same[0] if same else _one(value, False)
    if hint is None or hint is type(None):
        return _one(value, value is None)
    if hint is bool:
        return _one(value, isinstance(value, bool))
    if hint is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(_one(value, whole and not isinstance(value, bool)))
    if hint is float:
        return float(_one(value, isinstance(value, int | float) and not isinstance(value, bool)))
    if hint in (str, Path):
        return _one(value, isinstance(value, str))
    container = origin or hint
    if container in (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection):
        _one(value, isinstance(value, list | tuple))
        if container is tuple and args and args[-1] is not Ellipsis:
            _one(value, len(value) == len(args))
            return [_item(item, each, f"{where}[{i}]") for i, (item, each) in enumerate(zip(value, args, strict=True))]
        return [_item(item, args[0] if args else Any, f"{where}[{i}]") for i, item in enumerate(value)]
    if container in (dict, collections.abc.Mapping):
        _one(value, isinstance(value, Mapping))
        return {key: _item(item, args[1] if args else Any, f"{where}.{key}") for key, item in value.items()}
    if inspect.isclass(hint) and hint.__module__.split(".")[0] not in sys.stdlib_module_names:
        return _one(value, not isinstance(value, bool | int | float | str | list | tuple | None))
    return value


def _item(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, Mapping) and TARGET in value:
        return complete_node(value, where, _part(hint, where))
    return _fit(value, hint, where)


def _one(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Misfit
    return value


def show(value: Any) -> str:
    """Write ``value`` as the command line does."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(show, value))}]"
    return str(value)


def describe(hint: Any, *, plural: bool = False) -> str:
    """Say in words what values the type ``hint`` allows."""
    if len(options := _alternatives(hint)) > 1:
        return " or ".join(dict.fromkeys(describe(option, plural=plural) for option in options))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(show(option) for option in args)}"
    if hint is None or hint is type(None):
        return "null"
    words: dict[Any, tuple[str, str]] = {
        bool: ("true or false", "truth values"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("text", "texts"),
        Path: ("a path", "paths"),
    }
    if hint in words:
        return words[hint][plural]
    container = origin or hint
    if container in (dict, collections.abc.Mapping):
        return "a mapping {key: value}"
    if container in (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection):
        if container is tuple and args and args[-1] is not Ellipsis:
            return f"a list [{', '.join(describe(each) for each in args)}]"
        return f"a list of {describe(args[0], plural=True)}" if args else "a list"
    name = getattr(hint, "__name__", str(hint))
    return f"an object of type {name} (a node with a _target_, or the name of one of its configurations)"
