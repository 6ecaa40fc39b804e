"""What quantised models share: the residual networks between a picture and a map of vectors.

An encoder halves the sides by strided convolutions (rounding up), a decoder walks the same sizes back; residual blocks
are ReLU, 3 x 3, ReLU, 1 x 1, as in the papers of VQ-VAE. Maps are (b, c, h, w).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.stages import Facts

Size = tuple[int, int]


def halved(size: Size, times: int) -> list[Size]:
    """The sizes of a map that is halved so many times, the first one's included."""
    sizes = [size]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class Residual(nn.Module):
    """h + W relu(V * relu(h))."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.wide, self.up = nn.Conv2d(channels, inner, 3, padding=1), nn.Conv2d(inner, channels, 1)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """One block."""
        out: Tensor = h + self.up(self.wide(h.relu()).relu())
        return out


class ShrinkingNet(nn.Module):
    """Maps (b, inputs, H, W) -> (b, channels, h, w), halved ``halvings`` times, through residual blocks."""

    def __init__(self, inputs: int, channels: int, *, halvings: int, blocks: int) -> None:
        super().__init__()
        widths = [inputs, *[max(channels // 2, 1)] * (halvings - 1), channels]
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.rest = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), *(Residual(channels, channels) for _ in range(blocks))
        )

    def forward(self, x: Float[Tensor, "b i H W"]) -> Float[Tensor, "b c h w"]:
        """Features of a map; those of an odd side see a row of zeros more."""
        for conv in self.reduce:
            x = conv(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))).relu()
        out: Tensor = self.rest(x).relu()
        return out


class GrowingNet(nn.Module):
    """Maps (b, inputs, h, w) -> (b, outputs, H, W): residual blocks, then as many doublings as ``sizes`` has steps.

    ``sizes`` are those of ``halved``, the largest first.
    """

    def __init__(self, inputs: int, outputs: int, channels: int, *, sizes: Sequence[Size], blocks: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.rest = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1), *(Residual(channels, channels) for _ in range(blocks))
        )
        widths = [channels, *[max(channels // 2, 1)] * (len(sizes) - 2), outputs]
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))

    def forward(self, z: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o H W"]:
        """The map of the full size."""
        h = self.rest(z)
        for conv, (height, width) in zip(self.enlarge, reversed(self.sizes[:-1]), strict=True):
            h = conv(h.relu())[:, :, :height, :width]
        out: Tensor = h
        return out


def require_images(spec: DataSpec, who: str) -> None:
    """Refuse data that are no images."""
    if not spec.is_image:
        raise UserError(f"{who} takes images (c, h, w), not {spec}; choose such data, as data=digits32.")


def require_enough(facts: Facts, codes: int, places: int) -> None:
    """Refuse a code book that is larger than the data: more codes than vectors to put them on."""
    if codes > facts.examples * places:
        raise UserError(
            f"model.codes={codes} is more than the {facts.examples * places} vectors of {facts.examples} training "
            f"examples, {places} of each; take fewer codes, or more data."
        )


def as_map(code: Float[Tensor, "b z"], channels: int, size: Size) -> Float[Tensor, "b c h w"]:
    """A flat code as a map."""
    return torch.unflatten(code, 1, (channels, *size))
