"""Weights of three-way machines: for every row a matrix of its own, kept as factors.

    W_n = U diag(g_n) V',      x_n W_n = ((x_n U) * g_n) V'

U (visible, factors) and V (hidden, factors) are shared, and the gains g (n, factors) are each row's, so that a product
costs what two with shared matrices do. In ``Couplings`` and its paths they stand in the place of the one weight matrix:
products with a tensor (``@``, ``torch.addmm``) are those above.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


@dataclass(frozen=True, eq=False)
class RowWeights:
    """Factors ``left`` (visible, f) and ``right`` (hidden, f), gains (n, f)."""

    left: Tensor
    gain: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """That of each row's matrix, (visible, hidden)."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the factors."""
        return self.left.dtype

    def t(self) -> "RowWeights":
        """Each row's matrix transposed."""
        return RowWeights(self.right, self.gain, self.left)

    def detach(self) -> "RowWeights":
        """The same without gradients."""
        return RowWeights(self.left.detach(), self.gain.detach(), self.right.detach())

    def double(self) -> "RowWeights":
        """The same in float64."""
        return RowWeights(self.left.double(), self.gain.double(), self.right.double())

    def applied(self, x: Tensor) -> Tensor:
        """x_n W_n of rows x (n, visible), or of x (..., 1, visible) for all n."""
        return ((x @ self.left) * self.gain) @ self.right.t()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Products of a tensor with row weights; nothing else is defined."""
        if func in PRODUCTS and isinstance(args[1], cls):
            return args[1].applied(args[0])
        if func is torch.addmm and isinstance(args[2], cls):
            return args[0] + (kwargs or {}).get("alpha", 1.0) * args[2].applied(args[1])
        return NotImplemented
