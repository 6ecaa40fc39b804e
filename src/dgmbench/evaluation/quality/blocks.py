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


def over_blocks(
    data: Tensor,
    samples: Tensor,
    statistic: Callable[[Tensor, Tensor], Tensor],
    *,
    block: int = BLOCK,
    generator: Generator | None = None,
) -> BlockEstimate:
    """The mean of ``statistic`` over blocks of data (n, d) and samples (m, d), in random order and in float64.

    A ``block`` larger than a fifth of the smaller set becomes that, so that there are five blocks for a standard error.
    """
    require("blocks", least=2, block=block)
    checked_pair(data, samples, least=2 * LEAST_BLOCKS)
    fewer = min(len(data), len(samples))
    block = min(block, fewer // LEAST_BLOCKS)
    x, y = random_order(data, generator), random_order(samples, generator)
    parts = [slice(i * block, (i + 1) * block) for i in range(fewer // block)]
    values = torch.stack([statistic(data[x[part]].double(), samples[y[part]].double()) for part in parts])
    return BlockEstimate(float(values.mean()), float(values.std()) / math.sqrt(len(parts)), block, len(parts))


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
