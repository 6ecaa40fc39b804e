"""Values from outside as tensors of a spec's space, or one sentence on why they are none; images as bytes and back."""

import numpy as np
import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError


def as_values(x: Tensor | np.ndarray, spec: DataSpec, name: str = "x") -> Tensor:
    """Raw values (n, *shape) of the spec's dtype; refused if they are not in its space, never rounded or clipped.

    >>> as_values(torch.tensor([[0.0, 1.0]]), DataSpec((2,), "binary"))
    tensor([[0, 1]], dtype=torch.uint8)
    """
    found = x if isinstance(x, Tensor) else torch.tensor(np.asarray(x))  # copied: a memory map is read-only
    if found.dim() != 1 + len(spec.shape) or tuple(found.shape[1:]) != spec.shape:
        raise UserError(f"{name} has shape {tuple(found.shape)}; {spec} takes (n, {', '.join(map(str, spec.shape))}).")
    if found.is_complex() or (found.dtype == torch.bool and spec.kind != "binary"):
        raise UserError(f"{name} is {found.dtype}; {spec} takes {spec.dtype}.")
    if found.numel() == 0 or (spec.kind == "real" and found.isfinite().all()):
        return found.to(spec.dtype)
    low, high = found.min().item(), found.max().item()
    top = None if spec.levels is None else spec.levels - 1
    whole = not found.is_floating_point() or bool((found == found.round()).all())
    if spec.kind == "real" or not whole or low < 0 or (top is not None and high > top):
        wanted = {"real": "finite numbers", "counts": "non-negative integers"}.get(
            spec.kind, f"integers from 0 to {top}"
        )
        broken = "" if whole or spec.kind == "real" else ", some of them fractions"
        raise UserError(f"{name} holds values from {low:g} to {high:g}{broken}, but {spec.kind} data are {wanted}.")
    return found.to(spec.dtype)


def log_orders(x: Tensor) -> Tensor:
    """Log of the number of sequences of words that have counts x (..., words), floats: the multinomial coefficient."""
    return torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)


def as_bytes(x: Tensor, spec: DataSpec) -> Tensor:
    """Raw values of 2 to 256 levels as the nearest bytes, black at 0 and the highest level at 255."""
    assert spec.levels is not None
    return (x.double() * (255 / (spec.levels - 1))).round().to(torch.uint8)


def from_bytes(x: Tensor, spec: DataSpec) -> Tensor:
    """The raw values that ``as_bytes`` shows so; bytes between two levels are refused."""
    assert spec.levels is not None
    raw = (x.double() * ((spec.levels - 1) / 255)).round().to(spec.dtype)
    if (wrong := as_bytes(raw, spec) != x).any():
        raise UserError(
            f"The pictures hold the value {x[wrong][0]} of 0 to 255, which is none of the {spec.levels} levels of "
            f"these data ({spec})."
        )
    return raw
