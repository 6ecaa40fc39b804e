"""Self-attention over the positions of an image: every position of the output sees the whole of the input."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

RATIO = 8  # channels to those of queries, keys and values


class SelfAttention(nn.Module):
    """y = x + gamma o(x) on maps (b, c, h, w), where position j attends to every position i (Zhang et al. 2019).

    o_j = v(sum_i beta_ji h(x_i)) with beta_ji = softmax over i of f(x_i)' g(x_j); f, g, h map c channels to c / 8, v
    maps them back, all without bias, and gamma starts at 0, so that the layer starts as the identity.

    Paper: https://arxiv.org/abs/1805.08318 (equations 1-3).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // RATIO)
        self.f, self.g, self.h = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.v = nn.Conv2d(inner, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The maps x with what each position attends to."""
        key, query, value = (layer(x).flatten(2) for layer in (self.f, self.g, self.h))
        beta = (query.mT @ key).softmax(2)  # (b, positions j, positions i)
        seen = value @ beta.mT
        return x + self.gamma * self.v(seen.unflatten(2, x.shape[2:]))
