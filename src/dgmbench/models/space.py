"""Values that are none of a model's space, refused in a sentence by the model's own methods.

A fraction given to a model of bits, or an image of another size, often goes through its networks all the same, and the
number that comes out means nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

METHODS = ("log_prob", "elbo", "log_weights", "log_prob_estimate", "encode", "reconstruct", "classify")
"""Methods whose first argument is a batch of raw values x (b, *shape)."""


def in_space(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a model, which looks at its x first: cheaply, but for floats where none belong."""

    @functools.wraps(method)
    def checked(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        spec = getattr(self, "spec", None)
        if isinstance(x, Tensor) and isinstance(spec, DataSpec):
            _require(x, spec, f"{type(self).__name__}.{method.__name__}")
        return method(self, x, *args, **kwargs)

    return checked


def _require(x: Tensor, spec: DataSpec, who: str) -> None:
    if x.shape[1:].numel() != spec.dim or x.dim() < 2:
        shape = ", ".join(map(str, spec.shape))
        raise UserError(f"{who} takes x of shape (n, {shape}), for {spec}; this has the shape {tuple(x.shape)}.")
    if spec.kind != "real" and x.is_floating_point() and bool((x != x.round()).any()):
        fraction = float(x[x != x.round()][0])
        raise UserError(
            f"{who} takes raw values, for {spec}; this x has fractions such as {fraction:g}: binarise it, or leave it "
            f"unscaled as {spec.dtype}."
        )
