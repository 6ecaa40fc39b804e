"""Calling a model under what goes with the examples: their own conditions and lengths.

A method says that it takes them by naming an argument ``given`` or ``length``. Of conditional data,
``under(model, batch).log_prob(batch.x)`` is ``model.log_prob(batch.x, given=batch.given)``; of all others,
``under(model, batch)`` is the model itself.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, TypeVar, cast

from torch import Tensor

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError

BESIDE = ("given", "length")
DISTRIBUTIONS = (
    "log_prob", "elbo", "log_weights", "log_prob_estimate", "log_prob_unnormalised", "elbo_unnormalised", "sample",
    "step_log_prob_unnormalised", "step_conditions",
)  # fmt: skip
"""Methods that would be about another distribution if they did not take what is given."""

M = TypeVar("M")


@lru_cache(maxsize=1024)
def _names(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def takes(method: Callable[..., Any], name: str) -> bool:
    """Whether a method names this argument."""
    return name in _names(getattr(method, "__func__", method))


def under(model: M, batch: Batch) -> M:
    """The model whose methods are under the conditions and lengths of these examples; the model itself without any."""
    beside = {name: value for name in BESIDE if (value := getattr(batch, name)) is not None}
    return cast(M, _Under(model, beside)) if beside else model


def bound(model: object, name: str, beside: Mapping[str, Tensor]) -> Any:
    """A model's attribute; of a method, with those of the tensors ``beside`` that it takes."""
    found = getattr(model, name)
    if not inspect.ismethod(found):
        return found
    taken = {key: value for key, value in beside.items() if takes(found, key)}
    if name in DISTRIBUTIONS and len(taken) < len(beside):
        missing = " and ".join(key for key in beside if key not in taken)
        raise UserError(
            f"{type(model).__name__}.{name} does not take {missing}=, which these data have; name the argument, or "
            "choose other data."
        )
    return partial(found, **taken) if taken else found


class _Under:
    """A model with what is beside the examples bound to every method that takes it."""

    def __init__(self, model: object, beside: Mapping[str, Tensor]) -> None:
        self._model, self._beside = model, beside

    def __getattr__(self, name: str) -> Any:
        return bound(self._model, name, self._beside)
