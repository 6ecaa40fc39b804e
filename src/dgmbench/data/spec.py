"""What an example is: the contract between data sets and models."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["binary", "discrete", "real", "counts", "tokens"]

DTYPES: dict[str, torch.dtype] = {
    "binary": torch.uint8,
    "discrete": torch.uint8,
    "real": torch.float32,
    "counts": torch.int64,
    "tokens": torch.int64,
}


@dataclass(frozen=True)
class DataSpec:
    """The space of one example ``x``, without the batch dimension.

    ``shape`` is ``(c, h, w)`` for images and ``(d,)`` for vectors. Batches carry raw values:

    ========== ============ =======================================================================
    kind       dtype        values
    ========== ============ =======================================================================
    binary     uint8        0 and 1
    discrete   uint8        0 ... levels - 1 (256 levels for ordinary images, 17 for the small digits)
    real       float32      any finite number
    counts     int64        non-negative integers
    tokens     int64        indices below ``levels`` (the vocabulary size)
    ========== ============ =======================================================================

    ``log_prob(x)`` of any model is the log-probability (log-density for ``real``) of exactly these values,
    in nats per example, which is what makes numbers of different models comparable.
    """

    shape: tuple[int, ...]
    kind: Kind
    levels: int | None = None
    num_classes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.kind == "binary":
            object.__setattr__(self, "levels", 2)
        if self.kind in ("discrete", "tokens") and self.levels is None:
            raise ValueError(f"a DataSpec of kind {self.kind} needs its number of levels")

    @property
    def dim(self) -> int:
        """Number of scalar dimensions of one example."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def is_image(self) -> bool:
        """Whether one example is an image ``(c, h, w)``."""
        return len(self.shape) == 3

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of raw values."""
        return DTYPES[self.kind]

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.kind} {size}" + (f", {self.levels} levels" if self.kind in ("discrete", "tokens") else "")


class Batch(NamedTuple):
    """One batch taken from the data: raw values ``x`` (b, *shape), labels ``y`` (b,) int64 or None, and ``index``
    (b,) int64, the examples' positions in their split.
    """

    x: Tensor
    y: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which no batch needs
