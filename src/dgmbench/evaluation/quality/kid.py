r"""Kernel inception distance: the squared MMD of features under the cubic kernel k(x, y) = (x^T y / d + 1)^3.

The U-statistic has no bias, so the number may fall below zero (Binkowski et al. 2018, eq. 4). As there, it is averaged
over blocks of at most a thousand examples; these are disjoint, so that their spread gives an honest standard error.
Three moments of the features are all that the kernel sees.

The cube makes a few wild samples outgrow everything: where their kernels exceed those of data by all digits of float64,
no part of the number is left that depends on the data, and there is none.

Features in single precision are multiplied in single precision and summed in double. What that rounds off is at most
the unit roundoff of the largest kernel, and some 10^4 times less where it is averaged; where even the most is not below
the standard error, it is all done in double.
"""

import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.blocks import BLOCK, BlockDistance, BlockEstimate, Blocks
from dgmbench.evaluation.quality.feature_set import ROWS, checked_pair


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x_i, y_j) of all pairs of x (n, d) and y (m, d)."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def cubic_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The U-statistic of MMD^2 between x (n, d) and y (m, d), at least two examples each, float64."""
    n, m, exact = len(x), len(y), torch.float64
    # a sum less its diagonal would lose the pairs where the diagonal is large
    off_x = cubic_kernel(x, x).fill_diagonal_(0).sum(dtype=exact) / (n * (n - 1))
    off_y = cubic_kernel(y, y).fill_diagonal_(0).sum(dtype=exact) / (m * (m - 1))
    return off_x + off_y - 2 * cubic_kernel(x, y).mean(dtype=exact)


def _largest(x: Tensor) -> float:
    """The largest k(x_i, x_i)."""
    squares = torch.cat([part.double().square().mean(1) for part in x.split(ROWS)])
    return float((squares.max() + 1).pow(3))


def kid(data: Tensor, samples: Tensor, *, block: int = BLOCK, generator: Generator | None = None) -> BlockEstimate:
    """KID between features of data (n, d) and of samples (m, d)."""
    checked_pair(data, samples)
    of_data, of_samples = _largest(data), _largest(samples)
    if of_samples * torch.finfo(torch.float64).eps > of_data:
        raise UserError(
            f"The features of samples are up to {(of_samples / of_data) ** (1 / 6):.2g} times as large as those of "
            "data; their cubes leave no digit to the data."
        )
    blocks = Blocks(data, samples, block=block, generator=generator)
    if data.dtype == samples.dtype == torch.float32:
        found = blocks.mean(cubic_mmd, torch.float32)
        if max(of_data, of_samples) * torch.finfo(torch.float32).eps < found.se:
            return found
    return blocks.mean(cubic_mmd)


class KernelDistance(BlockDistance):
    """KID of features that come in batches."""

    estimate = staticmethod(kid)
