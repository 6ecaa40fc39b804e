"""From configuration to objects: nothing else resolves interpolations or builds what a ``_target_`` names."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dgmbench.config.signatures import build
from dgmbench.config.targets import OBJECT, TARGET, locate
from dgmbench.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


METADATA = {"model": ("card",), "data": ("card", "name", "binarise"), "optimizer": ("players", "schedule")}
ROLES = {"Model": "model", "Reader": "data", "Optimizer": "optimizer"}  # base classes and the groups they make


def resolve(cfg: "DictConfig | Mapping[str, Any]") -> dict[str, Any]:
    """The configuration as plain dicts, lists and values, with its interpolations resolved."""
    from omegaconf import Container, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node: Any = cfg if isinstance(cfg, Container) else OmegaConf.create(dict(cfg))
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        if type(error).__name__ == "MissingMandatoryValue":
            raise UserError(f"{key} must be given: add {key}=VALUE.") from error
        raise UserError(f"The value of {key} cannot be resolved: {str(error).splitlines()[0].rstrip('.')}.") from error
    return typing.cast(dict[str, Any], plain)


def instantiate(node: "DictConfig | Mapping[str, Any]", *args: Any, **kwargs: Any) -> Any:
    """Build the object of a node with a ``_target_`` (nested nodes too), with ``args`` and ``kwargs`` added.

    The only place where configuration becomes objects. Metadata (``card``, ``players``, ...) are left out.
    """
    return factory(node)(*args, **kwargs)


def factory(node: "DictConfig | Mapping[str, Any]") -> Callable[..., Any]:
    """What builds the object of a node from ``args`` and ``kwargs``, for many objects of one node: it resolves once."""
    plain = resolve(node)
    target = locate(plain.get(TARGET), "", OBJECT)
    accepted = inspect.signature(target).parameters
    metadata = {key for keys in METADATA.values() for key in keys if key not in accepted}
    bases = [base.__name__ for base in target.__mro__] if isinstance(target, type) else []
    where = next((ROLES[name] for name in bases if name in ROLES), str(plain[TARGET]).rpartition(".")[2])
    arguments = {key: value for key, value in plain.items() if key not in metadata}
    return lambda *args, **kwargs: build(arguments, where, args, kwargs, OBJECT)
