r"""The squared maximum mean discrepancy of features under a mixture of Gaussian kernels.

The kernel is the mean of exp(-|x - y|^2 / (2 s^2)) for s = 1/2, 1 and 2 times the median distance of data examples, so
that the number depends neither on the scale of the features nor on the samples that are judged. The U-statistic has no
bias and may be negative; its standard error comes from disjoint blocks.
"""

import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.blocks import BLOCK, BlockDistance, BlockEstimate, blocked_sets, over_blocks
from dgmbench.nn.mmd import median_distance, mmd_squared, rbf_mixture

SCALES = (0.5, 1.0, 2.0)


@torch.no_grad()
def mmd(data: Tensor, samples: Tensor, *, block: int = BLOCK, generator: Generator | None = None) -> BlockEstimate:
    """MMD^2 between features of data (n, d) and of samples (m, d)."""
    x, y = (features.double() for features in blocked_sets(data, samples, block, generator))
    middle = median_distance(x)
    if middle == 0:
        raise UserError(
            "More than half of the data examples have equal features, so no kernel width follows from them."
        )
    kernel = rbf_mixture(middle * torch.tensor(SCALES, dtype=torch.float64, device=x.device))
    return over_blocks(x, y, lambda a, b: mmd_squared(a, b, kernel).u_statistic, block)


class GaussianDistance(BlockDistance):
    """MMD^2 of features that come in batches."""

    estimate = staticmethod(mmd)
