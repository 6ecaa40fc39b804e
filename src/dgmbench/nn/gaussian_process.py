"""Gaussian process regression in closed form, by Cholesky: kernel, marginal likelihood, posterior; and labels by it.

    log p(t) = -t'(K + s I)^-1 t / 2 - log det(K + s I) / 2 - n log(2 pi) / 2,      summed over the columns of t

for n targets under a kernel matrix K and a noise variance s. Several columns are independent processes that share their
kernel. Shapes: inputs (n, d); targets (n, m); all in one float dtype, best float64.
"""

from math import log, pi

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NODES = 64  # of the quadrature in ``log_largest``


def gaussian_kernel(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], amplitude: Tensor, width: Tensor
) -> Float[Tensor, "n m"]:
    """amplitude exp(-|a - b|^2 / (2 width))."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.t()
    return amplitude * (-0.5 * squares.clamp_min(0) / width).exp()


def factor(kernel: Float[Tensor, "n n"], noise: Tensor) -> Float[Tensor, "n n"]:
    """Cholesky factor of K + s I."""
    return torch.linalg.cholesky(kernel + noise * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device))


def log_marginal_likelihood(
    kernel: Float[Tensor, "n n"], noise: Tensor, targets: Float[Tensor, "n m"]
) -> Float[Tensor, ""]:
    """Log p(targets), all columns."""
    lower = factor(kernel, noise)
    n, m = targets.shape
    quadratic = (targets * torch.cholesky_solve(targets, lower)).sum()
    return -0.5 * quadratic - m * lower.diagonal().log().sum() - 0.5 * n * m * log(2 * pi)


def posterior(
    kernel: Float[Tensor, "n n"],
    noise: Tensor,
    targets: Float[Tensor, "n m"],
    cross: Float[Tensor, "t n"],
    prior: Float[Tensor, " t"],
) -> tuple[Float[Tensor, "t m"], Float[Tensor, " t"]]:
    """Mean and variance of the process at new inputs, ``cross`` to those of the targets, of variance ``prior``."""
    lower = factor(kernel, noise)
    half = torch.linalg.solve_triangular(lower, cross.t(), upper=False)
    mean = half.t() @ torch.linalg.solve_triangular(lower, targets, upper=False)
    return mean, (prior - half.square().sum(0)).clamp_min(0)


def log_largest(mean: Float[Tensor, "t m"], variance: Float[Tensor, " t"]) -> Float[Tensor, "t m"]:
    """Log-probability that each of m independent Gaussians of one variance is the largest, by quadrature.

    P(c) = int N(f; mean_c, variance) prod_{other} Phi((f - mean_other) / deviation) df
    """
    nodes, weights = (
        torch.as_tensor(each, dtype=mean.dtype, device=mean.device)
        for each in np.polynomial.hermite_e.hermegauss(NODES)
    )
    z = mean / variance.sqrt()[:, None]
    gaps = nodes[:, None, None, None] + z[:, :, None] - z[:, None, :]  # (nodes, t, m, others)
    below = torch.special.log_ndtr(gaps)
    others = below.sum(-1) - below.diagonal(dim1=-2, dim2=-1)
    return (others + weights.log()[:, None, None]).logsumexp(0).log_softmax(-1)
