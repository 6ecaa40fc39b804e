"""Raw values of a DataSpec <-> the real interval that a network works in."""

import torch
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError


class Scaling(nn.Module):
    """Affine map of raw values to floats in [low, high], and back.

    Binary and discrete values 0 ... K-1 become ``low + (high - low) x / (K - 1)``; ``real`` values pass unchanged.
    ``inverse`` rounds to the nearest level, returns the raw dtype and refuses NaN. The map is no density transform: a
    model with a likelihood accounts for its own log-determinant.
    """

    def __init__(self, spec: DataSpec, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.spec, self.low = spec, low
        self.unit = "scaled pixels" if spec.kind in ("binary", "discrete") else "data units"
        self.bounded = spec.kind in ("binary", "discrete")
        self.step = (high - low) / (spec.levels - 1) if self.bounded and spec.levels else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Raw (b, *shape) to float32 (b, *shape)."""
        return x.float() * self.step + self.low if self.bounded else x.float()

    def unrounded(self, u: Tensor) -> Tensor:
        """Float (b, *shape) to floats on the raw scale, between the levels and beyond them as it comes."""
        return (u - self.low) / self.step if self.bounded else u

    def inverse(self, u: Tensor) -> Tensor:
        """Float (b, *shape) to the nearest raw values (b, *shape)."""
        if not self.bounded or self.spec.levels is None:
            return u.to(self.spec.dtype)
        if bad := int(torch.isnan(u).reshape(len(u), -1).any(1).sum()):  # the cast would make a level of them, mostly 0
            raise UserError(f"{bad} of {len(u)} examples have values that are NaN, which no level is nearest to.")
        return self.unrounded(u).round().clamp(0, self.spec.levels - 1).to(torch.uint8)
