"""Means of unbiased statistics over disjoint blocks of two sets, whose spread is an honest standard error."""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from dgmbench.errors import require
from dgmbench.evaluation.quality.feature_set import FeatureSets, checked_pair, random_order

BLOCK, LEAST_BLOCKS = 1000, 5


class BlockEstimate(NamedTuple):
    """The mean over ``blocks`` blocks of ``block`` examples of each set, and its standard error."""

    value: float
    se: float
    block: int
    blocks: int


class Blocks:
    """Disjoint blocks of data (n, d) and samples (m, d), in random order.

    A ``block`` larger than a fifth of the smaller set becomes that, so that there are five blocks for a standard error.
    """

    def __init__(self, data: Tensor, samples: Tensor, *, block: int = BLOCK, generator: Generator | None) -> None:
        require("blocks", least=2, block=block)
        checked_pair(data, samples, least=2 * LEAST_BLOCKS)
        fewer = min(len(data), len(samples))
        self.block = min(block, fewer // LEAST_BLOCKS)
        self.data, self.samples = data, samples
        x, y = random_order(data, generator), random_order(samples, generator)
        parts = [slice(i * self.block, (i + 1) * self.block) for i in range(fewer // self.block)]
        self.rows = [(x[part], y[part]) for part in parts]

    def mean(self, statistic: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float64) -> BlockEstimate:
        """The mean of ``statistic`` over blocks of both sets in a precision."""
        values = torch.stack(
            [statistic(self.data[x].to(dtype), self.samples[y].to(dtype)) for x, y in self.rows]
        ).double()
        error = float(values.std()) / math.sqrt(len(values))
        return BlockEstimate(float(values.mean()), error, self.block, len(values))


def over_blocks(
    data: Tensor,
    samples: Tensor,
    statistic: Callable[[Tensor, Tensor], Tensor],
    *,
    block: int = BLOCK,
    generator: Generator | None = None,
) -> BlockEstimate:
    """The mean of ``statistic`` over blocks of data (n, d) and samples (m, d), in random order and in float64."""
    return Blocks(data, samples, block=block, generator=generator).mean(statistic)


class BlockDistance(FeatureSets):
    """A distance of features that come in batches; which examples share a block depends on ``seed`` alone."""

    higher_is_better = False
    estimate: ClassVar[Callable[..., BlockEstimate]]

    def __init__(self, *, block: int = BLOCK, seed: int = 0) -> None:
        super().__init__()
        self.block, self.seed = block, seed

    def compute(self) -> Tensor:
        """The distance."""
        generator = torch.Generator().manual_seed(self.seed)
        estimate = type(self).estimate(*self.sets(), block=self.block, generator=generator)
        return torch.tensor(estimate.value, dtype=torch.float64)
