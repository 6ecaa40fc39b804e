r"""Kernel inception distance: the squared MMD of features under the cubic kernel k(x, y) = (x^T y / d + 1)^3.

The U-statistic has no bias, so the number may fall below zero (Binkowski et al. 2018, eq. 4). As there, it is averaged
over blocks of at most a thousand examples; these are disjoint, so that their spread gives an honest standard error.
Three moments of the features are all that the kernel sees.
"""

from torch import Generator, Tensor

from dgmbench.evaluation.quality.blocks import BLOCK, BlockDistance, BlockEstimate, blocked_sets, over_blocks


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


def kid(data: Tensor, samples: Tensor, *, block: int = BLOCK, generator: Generator | None = None) -> BlockEstimate:
    """KID between features of data (n, d) and of samples (m, d)."""
    x, y = blocked_sets(data, samples, block, generator)
    return over_blocks(x, y, cubic_mmd, block)


class KernelDistance(BlockDistance):
    """KID of features that come in batches."""

    estimate = staticmethod(kid)
