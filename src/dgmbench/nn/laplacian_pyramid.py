"""Laplacian pyramids of images: a small picture, and what each doubling of its sides has to add.

With d(x) the picture at half the sides, smoothed first, and u(x) the one at twice the sides, smoothed after, the levels
x_0 = x, x_k = d(x_(k-1)) give residuals h_k = x_k - u(x_(k+1)), and x_k = u(x_(k+1)) + h_k gives x back exactly,
whatever d and u are. Here both smooth by the binomial filter (1, 4, 6, 4, 1) / 16 along each side.

Paper: Burt and Adelson 1983, https://doi.org/10.1109/TCOM.1983.1095851.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def smoothed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Pictures filtered along both sides; beyond an edge lies more of its pixels."""
    channels = x.shape[1]
    row = torch.tensor(BINOMIAL, device=x.device, dtype=x.dtype).expand(channels, 1, 1, 5)
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(x, row, groups=channels), row.mT, groups=channels)


def halved(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """d(x): smoothed, then every second pixel of both sides."""
    return smoothed(x)[..., ::2, ::2]


def doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """u(x): every pixel four times, then smoothed."""
    return smoothed(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def pyramid(x: Float[Tensor, "b c h w"], levels: int) -> tuple[Tensor, list[Tensor]]:
    """The smallest picture x_K and the residuals h_(K-1), ..., h_0, the smallest first; K is ``levels``."""
    residuals: list[Tensor] = []
    for _ in range(levels):
        smaller = halved(x)
        residuals.insert(0, x - doubled(smaller))
        x = smaller
    return x, residuals


def collapsed(smallest: Float[Tensor, "b c h w"], residuals: Sequence[Tensor]) -> Tensor:
    """The picture of a pyramid: x -> u(x) + h for each residual, the smallest first."""
    x = smallest
    for residual in residuals:
        x = doubled(x) + residual
    return x
