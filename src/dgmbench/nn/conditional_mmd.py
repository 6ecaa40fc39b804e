"""The squared conditional maximum mean discrepancy: how far apart two conditional distributions p(x | c) are.

A conditional distribution is embedded as the operator C = E[x c'] E[c c']^-1 of the features of outputs and conditions,
and two of them are compared by the Hilbert-Schmidt norm. From pairs (c_i, x_i), i = 1 ... N, and (d_j, s_j), j = 1 ...
M, with the Gram matrices K of conditions and L of outputs and K~ = K + ridge I (Ren et al. 2016, equation 4),

    CMMD^2 = tr(K K~^-1 L K~^-1)_x + tr(K K~^-1 L K~^-1)_s - 2 tr(K_sx K~_x^-1 L_xs K~_s^-1).

The ridge keeps the inverse finite; it makes the estimate one of shrunken operators. The inverse is a Cholesky
factorisation, O(N^3 + M^3) time and O((N + M)^2) memory, in float64 throughout: the three terms nearly cancel.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dgmbench.nn.mmd import Kernel, squared_distances


def conditional_mmd_squared(
    x: Float[Tensor, "n d"],
    x_condition: Float[Tensor, "n c"],
    samples: Float[Tensor, "m d"],
    samples_condition: Float[Tensor, "m c"],
    *,
    kernel: Kernel,
    condition_kernel: Kernel,
    ridge: float,
) -> Float[Tensor, ""]:
    """CMMD^2 between outputs x and samples, each with its condition; a float64 scalar with gradients in all four.

    ``ridge`` above 0 is added to the diagonals of the conditions' Gram matrices.
    """
    pairs = [(a.double(), c.double()) for a, c in ((x, x_condition), (samples, samples_condition))]
    inverse = [_inverse(condition_kernel(squared_distances(c, c)), ridge) for _, c in pairs]

    def term(i: int, j: int) -> Tensor:
        (a, c), (b, d) = pairs[i], pairs[j]
        outputs, conditions = kernel(squared_distances(a, b)), condition_kernel(squared_distances(d, c))
        return ((inverse[i] @ outputs @ inverse[j]) * conditions.T).sum()

    return term(0, 0) + term(1, 1) - 2 * term(0, 1)


def _inverse(gram: Float[Tensor, "n n"], ridge: float) -> Float[Tensor, "n n"]:
    """(K + ridge I)^-1."""
    shifted = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))
