r"""Kernel inception distance: the squared MMD of features under the cubic kernel k(x, y) = (x^T y / d + 1)^3.

The U-statistic has no bias, so the number may fall below zero (Binkowski et al. 2018, eq. 4). As there, it is averaged
over blocks of at most a thousand examples; these are disjoint, so that their spread gives an honest standard error.
Three moments of the features are all that the kernel sees.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dgmbench.errors import require
from dgmbench.evaluation.quality.feature_set import FeatureSets, checked_pair, shuffled

BLOCK, LEAST_BLOCKS = 1000, 5


class KidEstimate(NamedTuple):
    """The mean over ``blocks`` blocks of ``block`` examples of each set, and its standard error."""

    value: float
    se: float
    block: int
    blocks: int


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x_i, y_j) of all pairs of x (n, d) and y (m, d)."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def cubic_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The U-statistic of MMD^2 between x (n, d) and y (m, d), at least two examples each."""
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    within_x, within_y = cubic_kernel(x, x), cubic_kernel(y, y)
    off_x = (within_x.sum() - within_x.trace()) / (n * (n - 1))
    off_y = (within_y.sum() - within_y.trace()) / (m * (m - 1))
    return off_x + off_y - 2 * cubic_kernel(x, y).mean()


def kid(data: Tensor, samples: Tensor, *, block: int = BLOCK, generator: Generator | None = None) -> KidEstimate:
    """KID between features of data (n, d) and of samples (m, d).

    A ``block`` larger than a fifth of the smaller set becomes that, so that there are five blocks for a standard error.
    """
    require("kid", least=2, block=block)
    checked_pair(data, samples, least=2 * LEAST_BLOCKS)
    fewer = min(len(data), len(samples))
    block = min(block, fewer // LEAST_BLOCKS)
    blocks = fewer // block
    x, y = shuffled(data, generator), shuffled(samples, generator)
    parts = [slice(i * block, (i + 1) * block) for i in range(blocks)]
    values = torch.stack([cubic_mmd(x[part], y[part]) for part in parts])
    return KidEstimate(float(values.mean()), float(values.std()) / math.sqrt(blocks), block, blocks)


class KernelDistance(FeatureSets):
    """KID of features that come in batches; which examples share a block depends on ``seed`` alone."""

    higher_is_better = False

    def __init__(self, *, block: int = BLOCK, seed: int = 0) -> None:
        super().__init__()
        self.block, self.seed = block, seed

    def compute(self) -> Tensor:
        """The distance."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.tensor(kid(*self.sets(), block=self.block, generator=generator).value, dtype=torch.float64)
