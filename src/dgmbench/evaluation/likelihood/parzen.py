r"""Parzen windows: the log-density of data under Gaussian kernels around samples, as the papers before 2016 had it.

    log p(x) = log 1/S sum_s N(x; sample_s, sigma^2 I),

on values scaled to [0, 1] where they are bounded, with the best sigma for validation examples. In many dimensions
the estimate says little about the model: it ranks models wrongly, and with any affordable number of samples it stays
far below their likelihood (Theis, van den Oord, Bethge 2016, https://arxiv.org/abs/1511.01844). It is here because the
early papers report nothing else.
"""

import math

import torch
from torch import Tensor

SAMPLE_BLOCK = 4096


def squared_distances(x: Tensor, samples: Tensor) -> Tensor:
    """||x_i - s_j||^2 of x (b, d) and samples (S, d), as (b, S) float64."""
    found = []
    x = x.double()
    for block in samples.split(SAMPLE_BLOCK):
        block = block.double()
        total = x.square().sum(1, keepdim=True) + block.square().sum(1)
        found.append(torch.addmm(total, x, block.T, alpha=-2.0).clamp_min_(0.0))
    return torch.cat(found, 1)


def parzen_log_density(distances: Tensor, sigma: float, dim: int) -> Tensor:
    """The log-density from squared distances (b, S) of d-dimensional values, as (b,)."""
    kernel = torch.logsumexp(distances * (-0.5 / sigma**2), 1) - math.log(distances.shape[1])
    return kernel - dim * (math.log(sigma) + 0.5 * math.log(2 * math.pi))


def parzen_jackknife(distances: Tensor, sigma: float, dim: int, blocks: int) -> Tensor:
    """The log-density, and beside it that without each of ``blocks`` blocks of the samples, (b, 1 + blocks)."""
    parts = distances.tensor_split(blocks, 1)
    sizes = distances.new_tensor([part.shape[1] for part in parts])
    sums = torch.stack([parzen_log_density(part, sigma, dim) for part in parts], 1) + sizes.log()
    own = torch.eye(blocks, dtype=torch.bool, device=distances.device)
    others = sums[:, None, :].masked_fill(own, -math.inf).logsumexp(2) - (sizes.sum() - sizes).log()
    return torch.cat([sums.logsumexp(1, keepdim=True) - sizes.sum().log(), others], 1)
