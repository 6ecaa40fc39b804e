"""What a ``_target_`` may name: classes of the role that its place asks for, of dgmbench or in the user's own folders.

A configuration may be somebody else's: it lies in the folder of a run, in a suite, in a folder of configurations. So
this is a list of what is allowed, at every depth, and nothing else is imported, let alone called. Models come from
``dgmbench.models``, optimisers from ``torch.optim``, and so on; anything of the right role from the user's own folders,
which are what Python's path holds besides Python's own library and the packages that are installed; parts of a model
are of the classes that its signature names.
"""

import collections.abc
import importlib
import inspect
import site
import sys
import sysconfig
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dgmbench
from dgmbench.errors import UserError, nearest
from dgmbench.source import find_module

TARGET = "_target_"
CONTAINERS = (list, tuple, dict, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Mapping)


@dataclass(frozen=True)
class Role:
    """What may stand in a place: ``word`` names it, ``bases`` are the classes of which it must be (none: any will do),
    by their dotted names, and ``homes`` the packages that it may come from besides the user's own folders.
    """

    word: str
    bases: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    functions: bool = False
    """Whether a function of the user's own that makes it serves as well."""


ROLES = {
    "model": Role("model", ("dgmbench.models.contract.Model",), ("dgmbench.models",)),
    "data": Role("data reader", ("dgmbench.data.reader.Reader",), ("dgmbench.data",)),
    "optimizer": Role("optimiser", ("torch.optim.optimizer.Optimizer",), ("torch.optim",)),
    "features": Role("feature net", ("torch.nn.modules.module.Module",), ("dgmbench.evaluation.features",), True),
}
PARTS = ("dgmbench.models", "dgmbench.nn")  # homes of a model's parts
PART = Role("part of a model", (), PARTS)
EVALUATION = Role("part of an evaluation", (), ("dgmbench.evaluation",), True)
OBJECT = Role(
    "model, data reader, optimiser or feature net",
    tuple(base for role in ROLES.values() for base in role.bases),
    tuple(home for role in ROLES.values() for home in role.homes),
    True,
)
"""Of a node that is built by itself."""


def locate(target: object, where: str, role: Role | None = None, *, key: str = TARGET) -> Callable[..., Any]:
    """Import the class or function named by the dotted ``target`` under ``key`` of the node ``where``.

    Without a ``role`` it is the one that the name of the place has. What no configuration may name is refused before it
    is imported: importing runs code.
    """
    role = role or ROLES.get(where, PART)
    name = f"{where}.{key}={target}" if where else f"{key}={target}"
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")) or "." not in target:
        raise UserError(f"{name} is not a dotted name such as package.module.ClassName.")
    module = _module_of(target)
    if module is None:
        raise _no_module(target, name)
    _require_allowed(module, name, role)
    found = _import(target, name)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise UserError(f"{name} is neither a class nor a function.")
    _require_allowed(found.__module__, name, role)  # it may have another home than the module it was found in
    if inspect.isfunction(found):
        if not role.functions or (role.bases and not is_own(found.__module__)):
            raise UserError(f"{name} is no {role.word}: it is a function, and a class is asked for.")
    elif role.bases and not any(dotted(base) in role.bases for base in found.__mro__):
        raise UserError(f"{name} is no {role.word}: it does not derive from {' or '.join(role.bases)}.")
    return found


def _require_allowed(module: str, name: str, role: Role) -> None:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{name} is part of Python's standard library, which is not allowed.")
    if any(f"{module}.".startswith(f"{home}.") for home in role.homes) or is_own(module):
        return
    homes = " or ".join(role.homes)
    raise UserError(
        f"{name} is no {role.word} that a configuration may name: these come from {homes}, or from a folder of your "
        "own (--config-dir DIR, or where you work), where a class may also derive from one of another package."
    )


def is_own(module: str) -> bool:
    """Whether a module is the user's own: it lies in none of the folders of Python, of installed packages and of
    dgmbench, nor in the folder of a run, which may have come from anywhere.
    """
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if file is None:
        spec = find_module(module)
        if spec is None or not spec.has_location:
            return loaded is not None and getattr(loaded, "__spec__", None) is None  # made in this very process
        file = spec.origin
    path = Path(str(file)).resolve()
    return not any(folder in path.parents for folder in _installed()) and not in_a_run(path.parent)


def in_a_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or lies in one: its ``config.yaml`` is a complete configuration."""
    folder = folder.resolve()
    return any(map(_is_run, (folder, *folder.parents)))


def _is_run(folder: Path) -> bool:
    try:
        head = "\n" + (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return all(f"\n{group}:" in head for group in ("model", "data", "protocol", "names"))


@cache
def _installed() -> tuple[Path, ...]:
    """The folders of Python's library, of installed packages and of dgmbench."""
    paths = sysconfig.get_paths()
    found = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*site.getsitepackages(), site.getusersitepackages(), *dgmbench.__path__]
    return tuple(dict.fromkeys(Path(folder).resolve() for folder in found))


def _module_of(target: str) -> str | None:
    """The longest part of a dotted name that is a module; nothing is imported to find it."""
    parts = target.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((name for name in names if name in sys.modules or find_module(name) is not None), None)


def _import(target: str, what: str) -> Any:
    parts = target.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise UserError(f"{what} cannot be imported: {error}.") from error
        except Exception as error:
            raise UserError(f"{what} cannot be imported: {type(error).__name__}: {error}.") from error
        for part in parts[end:]:
            if not hasattr(found, part):
                public = [n for n, value in vars(found).items() if inspect.isclass(value) or inspect.isfunction(value)]
                raise UserError(f"{what}: {nearest(part, public, what=f'class in {name}')}")
            found = getattr(found, part)
        return found
    raise _no_module(target, what)


def _no_module(target: str, what: str) -> UserError:
    return UserError(
        f"{what} cannot be imported: there is no module '{target.split('.')[0]}' on Python's path; "
        "name the folder of your own code by --config-dir DIR."
    )


def dotted(made_by: Callable[..., Any]) -> str:
    """Where a class or function comes from, as a ``_target_`` has it."""
    return f"{made_by.__module__}.{made_by.__qualname__}"


# ---------------------------------------------------------------------- what a signature asks for


def role_of(hint: Any, where: str) -> Role | None:
    """The role of nodes in the place ``where`` of an argument with this type; None if it takes none.

    A type that names classes asks for these. One that says nothing takes any part of a model.
    """
    kinds = set(_kinds(hint))
    bases = tuple(sorted(dotted(kind) for kind in kinds - {Any, Callable}))
    if not kinds:
        return None
    return Role(f"part for {where}", () if Any in kinds else bases, PARTS, Callable in kinds)


def _kinds(hint: Any) -> Iterator[Any]:
    """What nodes a type takes: its classes, ``Callable`` and ``Any``; nothing for plain values."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (collections.abc.Callable, typing.Callable) or hint in (collections.abc.Callable, typing.Callable):
        yield Callable
    elif origin is typing.Annotated:
        yield from _kinds(args[0])
    elif origin is type or origin is typing.Literal:
        return
    elif hint is Any or hint is object or hint in CONTAINERS:
        yield Any
    elif args and (origin in (typing.Union, types.UnionType) or _is_plain(origin)):
        for each in args:
            yield from _kinds(each)
    elif isinstance(origin or hint, type) and not _is_plain(origin or hint):
        kind = origin or hint
        yield Any if getattr(kind, "_is_protocol", False) else kind  # a class has a protocol without deriving from it
    elif not isinstance(hint, type | types.NoneType | types.EllipsisType):
        yield Any  # a variable, or the name of a type that is not known


def _is_plain(kind: Any) -> bool:
    """Whether a type is one of Python's own, of values or containers."""
    return isinstance(kind, type) and kind is not object and kind.__module__.split(".")[0] in sys.stdlib_module_names
