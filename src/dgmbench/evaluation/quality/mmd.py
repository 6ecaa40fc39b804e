r"""The squared maximum mean discrepancy of features under a mixture of Gaussian kernels.

The kernel is the mean of exp(-|x - y|^2 / (2 s^2)) for s = 1/2, 1 and 2 times the median distance of data examples, so
that the number depends neither on the scale of the features nor on the samples that are judged. The U-statistic has no
bias and may be negative; its standard error comes from disjoint blocks.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import FeatureSets, checked_pair, shuffled
from dgmbench.nn.mmd import median_distance, mmd_squared, rbf_mixture

BLOCK, LEAST_BLOCKS, SCALES = 1000, 5, (0.5, 1.0, 2.0)


class MmdEstimate(NamedTuple):
    """The mean over ``blocks`` blocks of ``block`` examples of each set, and its standard error."""

    value: float
    se: float
    block: int
    blocks: int


@torch.no_grad()
def mmd(data: Tensor, samples: Tensor, *, block: int = BLOCK, generator: Generator | None = None) -> MmdEstimate:
    """MMD^2 between features of data (n, d) and of samples (m, d).

    A ``block`` larger than a fifth of the smaller set becomes that, so that there are five blocks for a standard error.
    """
    checked_pair(data, samples, least=2 * LEAST_BLOCKS)
    x, y = shuffled(data, generator).double(), shuffled(samples, generator).double()
    middle = median_distance(x)
    if middle == 0:
        raise UserError(
            "More than half of the data examples have equal features, so no kernel width follows from them."
        )
    kernel = rbf_mixture(middle * torch.tensor(SCALES, dtype=torch.float64, device=x.device))
    fewer = min(len(x), len(y))
    block = min(block, fewer // LEAST_BLOCKS)
    parts = [slice(i * block, (i + 1) * block) for i in range(fewer // block)]
    values = torch.stack([mmd_squared(x[part], y[part], kernel).u_statistic for part in parts])
    return MmdEstimate(float(values.mean()), float(values.std()) / math.sqrt(len(parts)), block, len(parts))


class GaussianDistance(FeatureSets):
    """MMD^2 of features that come in batches; which examples share a block depends on ``seed`` alone."""

    higher_is_better = False

    def __init__(self, *, block: int = BLOCK, seed: int = 0) -> None:
        super().__init__()
        self.block, self.seed = block, seed

    def compute(self) -> Tensor:
        """The distance."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.tensor(mmd(*self.sets(), block=self.block, generator=generator).value, dtype=torch.float64)
