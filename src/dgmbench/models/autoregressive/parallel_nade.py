r"""Parallel multiscale: a small autoregressive image, then groups of pixels that are drawn all at once.

Every second row and column of an image is a coarser image. Splitting a w x h image so again and again ends in a base
image of a few pixels, drawn pixel by pixel (a PixelCNN), and the rest is a chain of groups: the missing columns given
the known ones, then the missing rows given the known ones, scale after scale,

    log p(x) = log p(base) + sum_g sum_(i in g) log p(x_i | all groups before g),      loss = -E_data[log p(x)].

The pixels of a group are independent given the groups before it, so one call of the group's network draws them all: an
image of twice the side takes two calls more, O(log N) for N pixels. The price is in the model, not in the number: the
likelihood is exact. The channels of a pixel are not independent: R, then G given R, then B given both.

Shapes and units: x is raw (b, c, h, w); ``log_prob`` is in nats per example, (b,).

``complete`` is exact where the known pixels precede the unknown in the order, so from any coarser scale: given the
pixels of the base image and of the first groups it draws the finer ones, which is super-resolution.

Paper: Reed, van den Oord, Kalchbrenner, Gomez Colmenarejo, Wang, Chen, Belov, de Freitas, "Parallel Multiscale
Autoregressive Density Estimation", ICML 2017, https://arxiv.org/abs/1703.03664.

Different from the paper: networks are sized for small images; sides need not be powers of two (an odd side has one
column or row more that is known than missing); a group is a whole missing half, and its network a residual net of the
known half, without the paper's variant that is autoregressive inside of patches; output biases start at the marginals.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.autoregressive.pixelcnn import PixelCnn
from dgmbench.models.autoregressive.pixels import Draw, PixelModel
from dgmbench.nn.masked_conv import MaskedConv2d, channel_groups


@dataclass(frozen=True)
class Split:
    """The odd columns or rows of a grid, which are drawn given the even ones."""

    rows: slice
    """Of the whole image: the finer grid's rows."""
    columns: slice
    """Of the whole image: the finer grid's columns."""
    axis: int
    """2 if rows are missing, 3 if columns are."""

    def grid(self, x: Tensor) -> Tensor:
        """The finer grid (b, c, h, w), a view."""
        return x[:, :, self.rows, self.columns]

    def known(self, x: Tensor) -> Tensor:
        """Its even columns or rows, a view."""
        return self._every_second(x, 0)

    def missing(self, x: Tensor) -> Tensor:
        """Its odd columns or rows, a view."""
        return self._every_second(x, 1)

    def _every_second(self, x: Tensor, start: int) -> Tensor:
        grid = self.grid(x)
        return grid[:, :, start::2] if self.axis == 2 else grid[..., start::2]


def splits(height: int, width: int, base: int) -> tuple[list[Split], tuple[int, int]]:
    """The groups of an image, coarse to fine, and the height and width of the base image.

    >>> [len(splits(side, side, 4)[0]) for side in (4, 8, 16, 32)], splits(28, 28, 7)[1]
    ([0, 2, 4, 6], (7, 7))
    """
    found: list[Split] = []
    row = column = 1
    while max(height, width) > base:
        # from fine to coarse: the missing rows given whole ones, then the missing columns of the rows that are left
        if height > base:
            found.append(Split(slice(0, None, row), slice(0, None, column), 2))
            row, height = 2 * row, (height + 1) // 2
        if width > base:
            found.append(Split(slice(0, None, row), slice(0, None, column), 3))
            column, width = 2 * column, (width + 1) // 2
    return found[::-1], (height, width)


class GroupNet(nn.Module):
    """The conditionals of a group: a residual net of the known half, then 1 x 1 layers that go through the channels.

    Args:
        channels: channels of the images.
        features: maps of the residual net.
        blocks: its blocks.
        parameters: parameters of each value.
    """

    def __init__(self, channels: int, *, features: int, blocks: int, parameters: int) -> None:
        super().__init__()
        inner = channel_groups(features, channels)
        self.first = nn.Conv2d(channels, features, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(features, features, 3, padding=1) for _ in range(2)) for _ in range(blocks)
        )
        self.hidden = nn.Conv2d(features, features, 1)
        self.own = MaskedConv2d(torch.arange(channels), inner, "A") if channels > 1 else None
        self.out = MaskedConv2d(inner, torch.arange(channels).repeat_interleave(parameters), "B")

    def context(self, known: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f h w"]:
        """What the group's pixels know of the groups before; the network's one call."""
        h = self.first(known)
        for block in self.blocks:
            one, two = cast(nn.ModuleList, block)
            h = h + two(one(h.relu()).relu())
        return cast(Tensor, self.hidden(h.relu()))

    def outputs(self, context: Tensor, own: Float[Tensor, "b c h w"]) -> Float[Tensor, "b cp h w"]:
        """The parameters of each pixel's channels, given the pixel's own channels before; cropped to its size."""
        h = context[:, :, : own.shape[2], : own.shape[3]]
        return cast(Tensor, self.out((h if self.own is None else h + self.own(own)).relu()))


class ParallelNade(PixelModel):
    """Parallel multiscale autoregressive density estimator of binary and discrete images.

    Args:
        spec: the data space.
        base: largest side of the base image; larger images are halved (rounding up) until they fit.
        features: maps of each group's network.
        blocks: residual blocks of each group's network.
        base_features: maps of the base image's PixelCNN.
        base_blocks: residual blocks of the base image's PixelCNN.
    """

    positions: Tensor

    def __init__(
        self, spec: DataSpec, *, base: int = 4, features: int = 64, blocks: int = 3, base_features: int = 64,
        base_blocks: int = 4,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        channels, height, width = spec.shape
        require(least=1, base=base, base_blocks=base_blocks)
        require(least=channels, features=features, base_features=base_features)
        require(least=0, blocks=blocks)
        self.splits, size = splits(height, width, base)
        small = DataSpec((channels, *size), spec.kind, spec.levels)
        self.base = PixelCnn(small, features=base_features, blocks=base_blocks, kernel=5, head=base_features)
        self.nets = nn.ModuleList(
            GroupNet(channels, features=features, blocks=blocks, parameters=self.parameters_per_value)
            for _ in self.splits
        )
        self.register_buffer("positions", self._positions(), persistent=False)

    def _coarsest(self, x: Tensor) -> Tensor:
        return self.splits[0].known(x) if self.splits else x

    def _positions(self) -> Int[Tensor, " d"]:
        """Base image, then group by group; within each of them pixel by pixel, and within a pixel by channel."""
        index = torch.arange(self.spec.dim).reshape(1, *self.spec.shape)
        parts = [self._coarsest(index), *(split.missing(index) for split in self.splits)]
        sequence = torch.cat([part[0].movedim(0, -1).flatten() for part in parts])
        return sequence.argsort()

    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension: base image, group by group, pixel by pixel, channel by channel."""
        return self.positions

    def output_biases(self) -> list[Tensor]:
        """The biases of all output layers, channel by channel."""
        return [*self.base.output_biases(), *(cast(Tensor, cast(GroupNet, net).out.bias) for net in self.nets)]

    def given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b d p"]:
        """The parameters of all conditionals for raw x (b, *shape), dimensions in C order."""
        parts = [self.base.given(self._coarsest(x), None).unflatten(1, self._coarsest(x).shape[1:])]
        inputs = self._inputs(x)
        for split, net in zip(self.splits, self.nets, strict=True):
            parts.append(self._group(cast(GroupNet, net), split.known(inputs), split.missing(inputs)))
        in_order = torch.cat([part.movedim(1, -2).flatten(1, 3) for part in parts], 1)
        return in_order[:, self.positions]

    def _group(self, net: GroupNet, known: Tensor, own: Tensor) -> Float[Tensor, "b c h w p"]:
        return self._by_channel(net.outputs(net.context(known), own))

    def _by_channel(self, maps: Float[Tensor, "b cp h w"]) -> Float[Tensor, "b c h w p"]:
        return maps.unflatten(1, (-1, self.parameters_per_value)).movedim(2, -1)

    def generate(self, n: int, y: Tensor | None, draw: Draw) -> None:
        """The base image pixel by pixel, then one call of a network for each group."""
        x = self.positions.new_zeros(n, *self.spec.shape)
        coarsest = self._coarsest(x)
        self.base.generate(n, None, draw_into(coarsest, draw))
        start, channels = coarsest[0].numel(), self.spec.shape[0]
        for split, net in zip(self.splits, self.nets, strict=True):
            assert isinstance(net, GroupNet)
            context = net.context(self._inputs(split.known(x)))
            missing = split.missing(x)
            count = missing[0].numel()
            for channel in range(channels):
                maps = self._by_channel(net.outputs(context, self._inputs(missing)))[:, channel]
                value = draw(slice(start + channel, start + count, channels), maps.flatten(1, 2))
                missing[:, channel] = value.unflatten(1, missing.shape[2:])
            start += count


def draw_into(image: Int[Tensor, "n c h w"], draw: Draw) -> Draw:
    """A ``draw`` that also writes its values into an image in raster order."""
    channels, _, width = image.shape[1:]

    def drawn(positions: slice, parameters: Tensor) -> Tensor:
        value = draw(positions, parameters)
        pixel, channel = divmod(positions.start, channels)
        image[:, channel, pixel // width, pixel % width] = value[:, 0]
        return value

    return drawn
