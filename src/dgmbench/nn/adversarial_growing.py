"""Networks that grow: a generator and a discriminator for every side from 4 (or 7) pixels up to that of the data.

``level`` says how far they have grown: 0 is the smallest side, and each level doubles it. A level fades in by ``alpha``
from 0 to 1: at 0 a generator gives the pictures of the level below, enlarged, and a discriminator judges a picture as
the level below does its half; at 1 the level below has no direct way to pictures any more.

Paper: Karras, Aila, Laine, Lehtinen 2018, https://arxiv.org/abs/1710.10196 (section 2, table 2).
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.equalised import EqualisedConv2d, EqualisedLinear, pixel_norm, with_deviation


def sides_of(spec: DataSpec) -> list[int]:
    """The sides that networks grow through, the data's last; each is twice the one before.

    >>> sides_of(DataSpec((1, 28, 28), "discrete", levels=256))
    [7, 14, 28]
    """
    if spec.is_image and spec.shape[1] == spec.shape[2]:
        for base in (4, 7):
            sides = [base]
            while sides[-1] < spec.shape[1]:
                sides.append(2 * sides[-1])
            if sides[-1] == spec.shape[1] and len(sides) > 1:
                return sides
    raise UserError(
        f"Networks that grow take square images with a side of 4 or 7 times a power of two, such as 28, 32 or 64, not "
        f"{spec}; choose another data.size or data set, such as digits32."
    )


def halved(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """Half the sides, by means of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


def doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """Twice the sides, every pixel four times."""
    return F.interpolate(x, scale_factor=2.0)


def rectified(x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return F.leaky_relu(x, 0.2)


class ConvolutionPair(nn.Module):
    """Two 3 x 3 convolutions with leaky ReLU, and after it pixel norm if ``normed``: the layers of one side."""

    def __init__(self, before: int, between: int, after: int, *, normed: bool) -> None:
        super().__init__()
        self.first = EqualisedConv2d(before, between, 3)
        self.second = EqualisedConv2d(between, after, 3)
        self.normed = normed

    def forward(self, h: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """The maps of h."""
        for conv in (self.first, self.second):
            h = rectified(conv(h))
            h = pixel_norm(h) if self.normed else h
        return h


class GrowingGenerator(nn.Module):
    """Latents (b, latent) -> scaled images: two convolutions at each side, pixel norm after each, a linear last layer.

    ``maps`` are those of each side. Latents are first put on the sphere of radius sqrt(latent).
    """

    def __init__(self, images: int, sides: Sequence[int], maps: Sequence[int], *, latent: int) -> None:
        super().__init__()
        self.base = sides[0]
        self.project = EqualisedLinear(latent, maps[0] * self.base**2, gain=2**0.5 / 4)  # the authors' smaller gain
        self.first = EqualisedConv2d(maps[0], maps[0], 3)
        self.blocks = nn.ModuleList(
            ConvolutionPair(before, after, after, normed=True) for before, after in itertools.pairwise(maps)
        )
        self.to_images = nn.ModuleList(EqualisedConv2d(n, images, 1, gain=1.0) for n in maps)

    def forward(self, z: Float[Tensor, "b latent"], level: int, alpha: float) -> Float[Tensor, "b c h w"]:
        """Images at the side of ``level``."""
        h = self.project(pixel_norm(z)).unflatten(1, (-1, self.base, self.base))
        h = pixel_norm(rectified(self.first(pixel_norm(rectified(h)))))
        before = h
        for block in list(self.blocks)[:level]:
            before, h = h, block(doubled(h))
        return faded(self.to_images, before, h, level, alpha)


def faded(to_images: nn.ModuleList, before: Tensor, maps: Tensor, level: int, alpha: float) -> Tensor:
    """Images of a level's maps, mixed with the enlarged ones of the maps before it."""
    images = to_images[level](maps)
    if level and alpha < 1:
        images = torch.lerp(doubled(to_images[level - 1](before)), images, alpha)
    return images


class GrowingDiscriminator(nn.Module):
    """Scaled images -> one output each (b,): the mirror image of the generator, without pixel norm.

    Before its last convolutions, a map says how much the pictures of a batch differ, in groups of ``group``.
    """

    def __init__(self, images: int, sides: Sequence[int], maps: Sequence[int], *, group: int) -> None:
        super().__init__()
        self.group = group
        self.from_images = nn.ModuleList(EqualisedConv2d(images, n, 1) for n in maps)
        self.blocks = nn.ModuleList(ConvolutionPair(n, n, after, normed=False) for after, n in itertools.pairwise(maps))
        self.last = EqualisedConv2d(maps[0] + 1, maps[0], 3)
        self.hidden = EqualisedLinear(maps[0] * sides[0] ** 2, maps[0])
        self.head = EqualisedLinear(maps[0], 1, gain=1.0)

    def forward(self, x: Float[Tensor, "b c h w"], level: int, alpha: float) -> Float[Tensor, " b"]:
        """The outputs at images of the side of ``level``."""
        h = rectified(self.from_images[level](x))
        for k in reversed(range(level)):
            h = halved(self.blocks[k](h))
            if k == level - 1 and alpha < 1:
                h = torch.lerp(rectified(self.from_images[k](halved(x))), h, alpha)
        h = rectified(self.last(with_deviation(h, self.group)))
        return self.head(rectified(self.hidden(h.flatten(1)))).squeeze(1)
