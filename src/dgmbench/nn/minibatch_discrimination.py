"""Minibatch discrimination: how close each example of a batch is to the others, for a discriminator to look at."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MinibatchDiscrimination(nn.Module):
    """o(x_i)_b = sum_j exp(-||M_ib - M_jb||_1) over the batch, of features f(x) (b, features), as (b, kernels).

    M_i = T f(x_i) is a matrix of ``kernels`` rows of ``width`` numbers, T is learned, and the sum includes j = i, so
    that o is 1 for an example far from all others and the size of the batch where all are alike. A generator that
    collapses gives itself away by a large o. Data and samples go through it in batches of their own.

    Paper: Salimans et al. 2016, https://arxiv.org/abs/1606.03498 (section 3.2).
    """

    def __init__(self, features: int, *, kernels: int, width: int) -> None:
        super().__init__()
        self.kernels, self.width = kernels, width
        self.tensor = nn.Linear(features, kernels * width, bias=False)  # a bias would be the same in every M

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b kernels"]:
        """The closeness of each example to its batch, for every kernel."""
        m = self.tensor(features).unflatten(1, (self.kernels, self.width))
        distances = (m[:, None] - m[None]).abs().sum(3)  # (i, j, kernels)
        return torch.exp(-distances).sum(1)
