"""Layers with an equalised learning rate, and the normalisations that go with them.

A weight starts as N(0, 1) and is multiplied by gain / sqrt(fan in) whenever it is used, He's constant, in place of once
at the start. So an optimiser whose steps do not depend on a gradient's scale, such as Adam, moves all weights at one
speed relative to their range.

Paper: Karras, Aila, Laine, Lehtinen 2018, https://arxiv.org/abs/1710.10196 (sections 3, 4.1 and 4.2).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

RECTIFIED = math.sqrt(2.0)
"""Gain in front of a rectifier: it keeps the mean square of what passes."""


class EqualisedLinear(nn.Module):
    """A linear map (b, inputs) -> (b, outputs) of weights N(0, 1) times gain / sqrt(inputs); biases start at 0."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = RECTIFIED) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(inputs)

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        """The map at x."""
        return F.linear(x, self.weight * self.scale, self.bias)


class EqualisedConv2d(nn.Module):
    """A convolution that keeps the sides (``size`` is odd) of weights N(0, 1) times gain / sqrt(inputs size^2)."""

    def __init__(self, inputs: int, outputs: int, size: int, *, gain: float = RECTIFIED) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = gain / math.sqrt(inputs * size**2)
        self.padding = size // 2

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """The maps of x."""
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


def pixel_norm(x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
    """x with a mean square of 1 over the maps, at every position of every example."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def with_deviation(x: Float[Tensor, "b c h w"], group: int) -> Float[Tensor, "b d h w"]:
    """x and one more map that says how much the examples of a group differ, the same at all of its positions.

    It is the standard deviation over ``group`` examples of every number, averaged over all of them. Example i is in
    group i modulo b / group; where ``group`` does not divide the batch, the whole batch is one.
    """
    n = len(x)
    size = group if n % group == 0 else n
    deviation = (x.unflatten(0, (size, -1)).var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)
