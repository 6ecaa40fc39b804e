"""What the autoregressive models of images in raster order share: the order, the cache, and the stack of blocks.

A ``RasterModel`` takes pixels row by row and the channels of a pixel in turn (R, then G given R, then B given both). It
is sampled through a cache of all that is known of earlier pixels, so that every feature is computed once. A
``RasterStack`` is its network: a first masked convolution, blocks and an output head.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.pixels import Draw, PixelModel
from dgmbench.nn.masked_conv import CachedConv, MaskedConv2d, channel_groups


@runtime_checkable
class Cache(Protocol):
    """The state of n images of which the pixels before the current one are known."""

    def start_row(self) -> None:
        """Begin the next row."""

    def read(self, x: int, channel: int) -> Float[Tensor, "n p"]:
        """The parameters of the channel's conditional at the pixel in column x of the row."""

    def write(self, x: int, channel: int, value: Float[Tensor, "n 1"]) -> None:
        """The channel's value there, as the networks see it."""


class RasterModel(PixelModel):
    """A ``PixelModel`` whose order is by pixel, row by row, and within a pixel by channel."""

    @abstractmethod
    def cache(self, n: int, y: Tensor | None) -> Cache:
        """The cache of n images, at their first pixel."""

    def ordering(self) -> Int[Tensor, " d"]:
        """Positions: the array is channel by channel, the order pixel by pixel."""
        channels, height, width = self.spec.shape
        device = self.output_biases()[0].device
        pixel = torch.arange(height * width, device=device) * channels
        return (pixel + torch.arange(channels, device=device)[:, None]).flatten()

    def generate(self, n: int, y: Tensor | None, draw: Draw) -> None:
        """One (pixel, channel) at a time, from the cache."""
        channels, height, width = self.spec.shape
        cache = self.cache(n, y)
        for row in range(height):
            cache.start_row()
            for x in range(width):
                for channel in range(channels):
                    position = (row * width + x) * channels + channel
                    value = draw(slice(position, position + 1), cache.read(x, channel)[:, None])
                    cache.write(x, channel, self._inputs(value))

    def _by_dimension(self, maps: Float[Tensor, "b cp h w"]) -> Float[Tensor, "b d p"]:
        return maps.unflatten(1, (-1, self.parameters_per_value)).movedim(2, -1).flatten(1, 3)


@runtime_checkable
class CachedBlock(Protocol):
    """A block of a ``RasterStack``, evaluated one (pixel, channel) at a time."""

    def start_row(self) -> None:
        """Begin the next row."""

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """The channel's output features at the pixel in column x, from its input features."""


class Head(nn.Module):
    """ReLU, 1 x 1, ReLU, 1 x 1: features to the parameters of every channel."""

    def __init__(self, features: int, hidden: int, channels: int, parameters: int) -> None:
        super().__init__()
        inner = channel_groups(hidden, channels)
        outer = torch.arange(channels).repeat_interleave(parameters)
        self.hidden = MaskedConv2d(channel_groups(features, channels), inner, "B")
        self.out = MaskedConv2d(inner, outer, "B")

    def forward(self, h: Float[Tensor, "b f h w"]) -> Float[Tensor, "b cp h w"]:
        """All pixels at once."""
        return self.out(self.hidden(h.relu()).relu())


class CachedHead:
    """A ``Head``, one (pixel, channel) at a time."""

    def __init__(self, head: Head, n: int, width: int) -> None:
        self.hidden, self.out = CachedConv(head.hidden, n, width), CachedConv(head.out, n, width)

    def start_row(self) -> None:
        """Begin the next row."""
        self.hidden.start_row()
        self.out.start_row()

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n p"]:
        """The parameters of the channel's conditional."""
        return self.out.step(x, channel, self.hidden.step(x, channel, h.relu()).relu())


class RasterBlock(nn.Module, ABC):
    """Maps features (b, f, h, w) to the same shape, each channel's from the past and the channels up to it."""

    @abstractmethod
    def forward(self, h: Float[Tensor, "b f h w"], condition: Tensor | None) -> Float[Tensor, "b f h w"]:
        """All pixels at once; the condition is a one-hot label (b, classes), or what else all blocks are given, such as
        a map (b, features, h, w) of what is known of each pixel.
        """

    @abstractmethod
    def cached(self, n: int, width: int, condition: Tensor | None) -> CachedBlock:
        """The block for n images of which the pixels before the current one are known."""


class RasterStack(nn.Module):
    """A first convolution with mask A, blocks, and a head, from scaled images to parameters.

    Args:
        channels: channels of the images.
        features: features of the map that the blocks work on.
        kernel: odd width of the first convolution's kernel.
        blocks: the blocks.
        head: hidden features of the head.
        parameters: parameters of each value.
        inputs: features of the images, shared out among their channels; one each if None. Codes come embedded.
    """

    def __init__(
        self, channels: int, *, features: int, kernel: int, blocks: Sequence[RasterBlock], head: int, parameters: int,
        inputs: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        groups, seen = channel_groups(features, channels), channel_groups(inputs or channels, channels)
        self.first = MaskedConv2d(seen, groups, "A", above=kernel // 2, beside=kernel // 2)
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(features, head, channels, parameters)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b cp h w"]:
        """All pixels at once."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        return cast(Tensor, self.head(h))

    def cached(self, n: int, width: int, condition: Tensor | None = None) -> "CachedStack":
        """The network for n images of which the pixels before the current one are known."""
        return CachedStack(self, n, width, condition)


class CachedStack:
    """A ``RasterStack``, one (pixel, channel) at a time."""

    def __init__(self, stack: RasterStack, n: int, width: int, condition: Tensor | None) -> None:
        self.first = CachedConv(stack.first, n, width)
        self.blocks = [cast(RasterBlock, block).cached(n, width, condition) for block in stack.blocks]
        self.head = CachedHead(stack.head, n, width)

    def start_row(self) -> None:
        """Begin the next row."""
        for part in (self.first, *self.blocks, self.head):
            part.start_row()

    def read(self, x: int, channel: int) -> Float[Tensor, "n p"]:
        """The parameters of the channel's conditional at the pixel in column x of the row."""
        h = self.first.read(x, channel)
        for block in self.blocks:
            h = block.step(x, channel, h)
        return self.head.step(x, channel, h)

    def write(self, x: int, channel: int, value: Float[Tensor, "n i"]) -> None:
        """The channel's value there, as the network sees it."""
        self.first.write(x, channel, value)


def require_stack(spec: DataSpec, *, kernel: int, **sizes: int) -> None:
    """Refuse sizes that no stack has: an even kernel, or fewer features than channels."""
    require("model", least=1, **sizes)
    require_kernel("kernel", kernel)
    for name in ("features", "head"):
        if sizes[name] < spec.shape[0]:
            raise UserError(f"model.{name}={sizes[name]} must be at least {spec.shape[0]}, one for each channel.")


def require_kernel(name: str, kernel: int) -> None:
    """Refuse a kernel that has no middle."""
    require("model", least=1, **{name: kernel})
    if kernel % 2 == 0:
        raise UserError(f"model.{name}={kernel} must be odd: a kernel has its pixel in the middle.")
