"""The squared maximum mean discrepancy between two samples, in blocks that bound the memory.

For a kernel with k(x, x) = 1 and samples x_1 ... x_N, y_1 ... y_M (Gretton et al. 2012; the survey's equation 88),

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),
    V-statistic   1/N^2 sum_ij k(x_i, x_j) + 1/M^2 sum_ij k(y_i, y_j) - 2/NM sum_ij k(x_i, y_j), never negative;
    U-statistic   the same without the pairs i = j of the first two sums and over N(N - 1) and M(M - 1), unbiased.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Kernel = Callable[[Tensor], Tensor]
"""Values of k(x, y), given squared distances |x - y|^2."""


class Discrepancy(NamedTuple):
    """Both estimates of MMD^2, scalars."""

    v_statistic: Tensor
    u_statistic: Tensor


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x_i - y_j|^2 of all pairs, by one matrix product."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)


def rbf_mixture(bandwidths: Float[Tensor, " q"]) -> Kernel:
    """k = mean over q of exp(-|x - y|^2 / (2 bandwidth_q^2)), which is 1 at x = y."""

    def kernel(distances: Tensor) -> Tensor:
        total = torch.zeros_like(distances)
        for bandwidth in bandwidths:
            total = total + torch.exp(distances * (-0.5 / bandwidth.square()))
        return total / len(bandwidths)

    return kernel


def _block_sum(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    return kernel(squared_distances(x, y)).sum()


def kernel_sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], kernel: Kernel, *, block: int) -> Float[Tensor, ""]:
    """Sum of k(x_i, y_j) over all pairs, ``block`` rows by ``block`` columns at a time.

    With more than one block, each is computed again in the backward pass, so that memory is O(block^2) throughout.
    """
    if len(x) <= block and len(y) <= block:
        return _block_sum(x, y, kernel)
    total = x.new_zeros(())
    for rows in x.split(block):
        for columns in y.split(block):
            total = total + checkpoint(_block_sum, rows, columns, kernel, use_reentrant=False, preserve_rng_state=False)
    return total


def mmd_squared(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], kernel: Kernel, *, block: int = 1024) -> Discrepancy:
    """MMD^2 between the samples x and y under a kernel with k(x, x) = 1.

    The U-statistic needs two examples on each side.
    """
    n, m = len(x), len(y)
    xx, yy, xy = (kernel_sum(a, b, kernel, block=block) for a, b in ((x, x), (y, y), (x, y)))
    unbiased = (xx - n) / (n * max(n - 1, 1)) + (yy - m) / (m * max(m - 1, 1)) - 2 * xy / (n * m)
    return Discrepancy(xx / n**2 + yy / m**2 - 2 * xy / (n * m), unbiased)


def safe_sqrt(value: Float[Tensor, ""], *, least: float = 1e-12) -> Float[Tensor, ""]:
    """The square root, with value and gradient 0 up to ``least``: a root's own gradient at 0 is infinite."""
    above = value > least
    return torch.where(above, value, 1.0).sqrt() * above


@torch.no_grad()
def median_distance(x: Float[Tensor, "n d"], *, most: int = 1000) -> Float[Tensor, ""]:
    """The median distance between different ones of the first ``most`` examples."""
    x = x[:most]
    pairs = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return squared_distances(x, x)[pairs[0], pairs[1]].sqrt().median()
