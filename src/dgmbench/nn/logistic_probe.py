"""A logistic regression that is fitted at once: what can be told of a binary attribute by a linear rule."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def fit_logistic(
    x: Float[Tensor, "n d"], y: Shaped[Tensor, " n"], *, ridge: float = 1.0, steps: int = 25
) -> Float[Tensor, " d1"]:
    """Weights and, last, the bias, by Newton's method on sum_i -log p(y_i | x_i) + ridge |weights|^2 / 2."""
    ones = torch.cat([x, torch.ones_like(x[:, :1])], 1).double()
    penalty = torch.full_like(ones[0], ridge)
    penalty[-1] = 1e-6  # the bias is free, up to what keeps the equations regular
    beta = torch.zeros_like(penalty)
    for _ in range(steps):
        p = torch.sigmoid(ones @ beta)
        gradient = ones.T @ (p - y.double()) + penalty * beta
        curvature = (ones * (p * (1 - p))[:, None]).T @ ones + torch.diag(penalty)
        step = torch.linalg.solve(curvature, gradient)
        beta = beta - step / max(1.0, float(step.norm()))  # at most of length 1, which keeps the first ones sane
    return beta.to(x.dtype)
