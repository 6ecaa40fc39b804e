"""Encoders (b, *shape) -> (b, features) and decoders (b, latent) -> (b, P, *shape) by name: auto, mlp, conv, resnet.

``auto`` is chosen by the data: conv for images of more than ``MOST_VALUES`` values, where an mlp's last layer would
have tens of millions of weights, and mlp for everything else. ``mlp`` takes vectors and images alike; no hidden layer
makes it linear. ``conv`` and ``resnet`` take images of any size: each stage halves height and width (rounding up) until
the shorter side is at most 4, and doubles the channels up to four times the first; the decoder walks the same back.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.errors import UserError

NetName = Literal["auto", "mlp", "conv", "resnet"]
MOST_VALUES = 4096  # of an image for an mlp: 64x64 in grey, 32x32 in colour


def by_data(net: NetName, shape: Sequence[int]) -> NetName:
    """The network that ``auto`` stands for on data of this shape; any other name is its own."""
    if net != "auto":
        return net
    return "conv" if len(shape) == 3 and math.prod(shape) > MOST_VALUES else "mlp"


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with tanh between them, as in Kingma & Welling 2014."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b), *([nn.Tanh()] if i < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), on images of unchanged size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """One block."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.silu(norm(h)))
        return x + h


def _stages(shape: Sequence[int], channels: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Image sizes and channels from the data down to the smallest map."""
    sizes, widths = [(shape[1], shape[2])], [channels]
    while min(sizes[-1]) > 4:
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
        widths.append(min(2 * widths[-1], 4 * channels))
    return sizes, widths


def _checked(net: NetName, shape: Sequence[int], hidden_sizes: Sequence[int], channels: int) -> NetName:
    net = by_data(net, shape)
    if net not in ("mlp", "conv", "resnet"):
        raise UserError(f"There is no network {net!r}; choose auto, mlp, conv or resnet.")
    if net != "mlp" and len(shape) != 3:
        raise UserError(f"net={net} takes images, and one example here has shape {tuple(shape)}; choose net=mlp.")
    if channels < 1 or any(size < 1 for size in hidden_sizes):
        raise UserError(f"Layer sizes must be positive, not hidden_sizes={list(hidden_sizes)}, channels={channels}.")
    return net


def build_encoder(
    net: NetName, shape: Sequence[int], features: int, *, hidden_sizes: Sequence[int], channels: int = 32
) -> nn.Sequential:
    """A network (b, *shape) -> (b, features); ``hidden_sizes`` shape the mlp, ``channels`` the other two."""
    net = _checked(net, shape, hidden_sizes, channels)
    if net == "mlp":
        dim = 1
        for size in shape:
            dim *= size
        return nn.Sequential(nn.Flatten(), *mlp([dim, *hidden_sizes, features]))
    sizes, widths = _stages(shape, channels)
    layers: list[nn.Module] = [nn.Conv2d(shape[0], widths[0], 3, padding=1)]
    for a, b in pairwise(widths):
        layers += [ResidualBlock(a)] if net == "resnet" else [nn.SiLU()]
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1)]
    layers += [ResidualBlock(widths[-1])] if net == "resnet" else []
    smallest = widths[-1] * sizes[-1][0] * sizes[-1][1]
    return nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(smallest, features))


class JoinedEncoder(nn.Module):
    """An encoder of x (b, *shape) together with a vector c (b, joined), such as a label: (b, features).

    The mlp takes c beside the flattened x; the other networks see it as one more channel, which is linear in c.
    """

    def __init__(
        self, net: NetName, shape: Sequence[int], joined: int, features: int, *, hidden_sizes: Sequence[int],
        channels: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        net = _checked(net, shape, hidden_sizes, channels)
        dim = math.prod(shape)
        self.channel = None if net == "mlp" else nn.Linear(joined, shape[1] * shape[2])
        both = (dim + joined,) if net == "mlp" else (shape[0] + 1, *shape[1:])
        self.net = build_encoder(net, both, features, hidden_sizes=hidden_sizes, channels=channels)

    def forward(self, x: Float[Tensor, "b *shape"], c: Float[Tensor, "b j"]) -> Float[Tensor, "b f"]:
        """Features of x and c."""
        if self.channel is None:
            return cast(Tensor, self.net(torch.cat([x.flatten(1), c], 1)))
        return cast(Tensor, self.net(torch.cat([x, self.channel(c).view(len(x), 1, *x.shape[2:])], 1)))


def build_decoder(
    net: NetName, latent: int, parameters: int, shape: Sequence[int], *, hidden_sizes: Sequence[int], channels: int = 32
) -> nn.Sequential:
    """The mirror image: (b, latent) -> (b, parameters, *shape); ``hidden_sizes`` are in the order of the layers."""
    net = _checked(net, shape, hidden_sizes, channels)
    if net == "mlp":
        dim = parameters
        for size in shape:
            dim *= size
        return nn.Sequential(*mlp([latent, *hidden_sizes, dim]), nn.Unflatten(1, (parameters, *shape)))
    sizes, widths = _stages(shape, channels)
    smallest = (widths[-1], *sizes[-1])
    layers: list[nn.Module] = [
        nn.Linear(latent, smallest[0] * smallest[1] * smallest[2]),
        nn.Unflatten(1, smallest),
    ]
    for i in reversed(range(len(widths) - 1)):
        # a target of 2s needs one row of output padding, a target of 2s - 1 none
        odd = (1 - sizes[i][0] % 2, 1 - sizes[i][1] % 2)
        layers += [ResidualBlock(widths[i + 1])] if net == "resnet" else [nn.SiLU()]
        layers += [nn.ConvTranspose2d(widths[i + 1], widths[i], 3, stride=2, padding=1, output_padding=odd)]
    layers += [ResidualBlock(widths[0])] if net == "resnet" else []
    layers += [nn.SiLU(), nn.Conv2d(widths[0], parameters * shape[0], 3, padding=1)]
    return nn.Sequential(*layers, nn.Unflatten(1, (parameters, shape[0])))
