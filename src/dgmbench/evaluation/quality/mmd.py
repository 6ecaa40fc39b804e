r"""The squared maximum mean discrepancy of features under a mixture of Gaussian kernels.

The kernel is the mean of exp(-|x - y|^2 / (2 s^2)) for s = 1/2, 1 and 2 times the median distance of data examples, so
that the number depends neither on the scale of the features nor on the samples that are judged. The U-statistic has no
bias and may be negative; its standard error comes from disjoint blocks.
"""

import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.blocks import BLOCK, BlockDistance, BlockEstimate, over_blocks
from dgmbench.evaluation.quality.feature_set import checked_pair, shuffled
from dgmbench.nn.mmd import median_distance, mmd_squared, rbf_mixture

SCALES = (0.5, 1.0, 2.0)
WIDTH_EXAMPLES = 1000  # their median distance is the kernel's width
COINCIDING = 1e-6  # of the spread of data: a median distance that is no more than rounding


@torch.no_grad()
def mmd(data: Tensor, samples: Tensor, *, block: int = BLOCK, generator: Generator | None = None) -> BlockEstimate:
    """MMD^2 between features of data (n, d) and of samples (m, d)."""
    checked_pair(data, samples)
    some = shuffled(data, generator, WIDTH_EXAMPLES).double()
    centre = some.mean(0)
    middle = median_distance(some - centre)
    # equal features differ by rounding: theirs in the network, and that of the matrix product
    scale = (some - centre).square().sum(1).mean().sqrt()
    rounding = 16 * torch.finfo(data.dtype).eps * some.square().sum(1).mean().sqrt()
    if middle <= COINCIDING * scale + rounding:
        raise UserError(
            "More than half of the data examples have equal features, so no kernel width follows from them."
        )
    kernel = rbf_mixture(middle * torch.tensor(SCALES, dtype=torch.float64, device=some.device))

    def discrepancy(x: Tensor, y: Tensor) -> Tensor:
        return mmd_squared(x - centre, y - centre, kernel).u_statistic

    return over_blocks(data, samples, discrepancy, block=block, generator=generator)


class GaussianDistance(BlockDistance):
    """MMD^2 of features that come in batches."""

    estimate = staticmethod(mmd)
