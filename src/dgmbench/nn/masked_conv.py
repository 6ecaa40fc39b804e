"""Convolutions that see the past of a pixel only, and their evaluation pixel by pixel from what is known already.

Pixels come in raster order, and the channels of a pixel one after another. Every feature belongs to one channel (its
*group*; the features of a map are sorted by group), and a feature of channel k at a pixel sees

* all features of the rows above and of the pixels to the left, within the kernel;
* at the pixel itself the features of channels before k (mask A), or up to k (mask B).

The first layer of a network has mask A and all others B, so that output k depends on the past and on the channels
before k. A kernel stores no rows below and, in the pixel's own row, uses no weights to the right.

``CachedConv`` gives the same numbers one (pixel, group) at a time. Rows above are complete when a row starts, so their
part is computed for the whole row at once; what is left is one matrix product for each pixel and group, of a window
that lies contiguous in memory. Over an image each feature is computed once: in all the work of one pass.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Mask = Literal["A", "B"]


def channel_groups(features: int, channels: int) -> Int[Tensor, " f"]:
    """The channel that each feature belongs to: sorted, and as evenly as can be.

    >>> channel_groups(4, 3).tolist()
    [0, 0, 1, 2]
    """
    return torch.arange(features) * channels // features


class MaskedConv2d(nn.Module):
    """A convolution (b, i, h, w) -> (b, o, h, w) over the past.

    Args:
        in_groups: the channel of each input feature, sorted.
        out_groups: the channel of each output feature, in any order.
        mask: whether a feature sees its own channel at its own pixel (B) or not (A).
        above: rows above that the kernel covers.
        beside: pixels that it covers to the left, and in the rows above to the right.
        bias: adds a bias.
    """

    mask: Tensor
    in_groups: Tensor
    out_groups: Tensor

    def __init__(
        self, in_groups: Int[Tensor, " i"], out_groups: Int[Tensor, " o"], mask: Mask, *, above: int = 0,
        beside: int = 0, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.above, self.beside = mask, above, beside
        width = 2 * beside + 1 if above else beside + 1  # in its own row a pixel sees nothing to the right
        before = in_groups < out_groups[:, None]
        seen = torch.ones(len(out_groups), len(in_groups), above + 1, width)
        seen[:, :, above, beside] = (before if mask == "A" else before | (in_groups == out_groups[:, None])).float()
        seen[:, :, above, beside + 1 :] = 0
        self.register_buffer("mask", seen, persistent=False)
        self.register_buffer("in_groups", in_groups, persistent=False)
        self.register_buffer("out_groups", out_groups, persistent=False)
        # outputs start with the variance of the inputs, of which only those count that are not masked
        sigma = 1 / seen.sum((1, 2, 3)).clamp(min=1).sqrt()
        self.weight = nn.Parameter(torch.randn(seen.shape) * sigma[:, None, None, None])
        self.bias = nn.Parameter((2 * torch.rand(len(sigma)) - 1) * sigma) if bias else None

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """All pixels at once."""
        if self.above or self.beside:
            x = F.pad(x, (self.beside, self.beside if self.above else 0, self.above, 0))
        return F.conv2d(x, self.weight * self.mask, self.bias)


class RowBuffer:
    """The latest rows of a feature map, padded: the current one and ``above`` before it, each (n, (w + 2 pad) f)."""

    def __init__(self, like: Tensor, n: int, width: int, features: int, *, above: int, pad: int) -> None:
        self.n, self.width, self.features, self.above, self.pad = n, width, features, above, pad
        self.rows = [like.new_zeros(n, (width + 2 * pad) * features) for _ in range(above + 1)]
        self.current = self.rows[-1]

    def start_row(self) -> None:
        """Begin the next row; its buffer is that of the row that nobody sees any more."""
        self.current = self.rows.pop(0)
        self.rows.append(self.current)

    def write(self, x: int, features: slice, value: Float[Tensor, "n g"]) -> None:
        """Store some features of the current row at the pixel in column x."""
        first = (self.pad + x) * self.features
        self.current[:, first + features.start : first + features.stop] = value

    def row(self, back: int = 0) -> Float[Tensor, "n w f"]:
        """The row so many before the current one, without its padding."""
        padded = self.rows[self.above - back].view(self.n, -1, self.features)
        return padded[:, self.pad : self.pad + self.width]

    def windows(self, back: int, kernel: int) -> Float[Tensor, "n w kf"]:
        """What a kernel of that width sees at every pixel of a row."""
        padded = self.rows[self.above - back]
        start = (self.pad - kernel // 2) * self.features
        shape, stride = (self.n, self.width, kernel * self.features), (padded.stride(0), self.features, 1)
        return padded.as_strided(shape, stride, padded.storage_offset() + start)


class CachedConv:
    """A ``MaskedConv2d`` evaluated one (pixel, group) at a time, for n images of one width.

    ``write`` stores the input features of a group at a pixel; ``read`` gives the output features of a group, in the
    order that they have among the layer's features.
    """

    def __init__(self, conv: MaskedConv2d, n: int, width: int) -> None:
        weight, features = conv.weight * conv.mask, len(conv.in_groups)
        self.beside, self.features = conv.beside, features
        self.order = conv.out_groups.argsort(stable=True)
        weight = weight[self.order].permute(2, 3, 1, 0)  # (rows, columns, in, out), the out features sorted by group
        self.above = [weight[row].flatten(0, 1).contiguous() for row in range(conv.above)]
        self.bias = None if conv.bias is None else conv.bias[self.order]
        self.input = RowBuffer(weight, n, width, features, above=conv.above, pad=conv.beside)
        own = weight[conv.above, : conv.beside + 1].flatten(0, 1)
        channels = int(conv.out_groups.max()) + 1
        self.sizes = torch.bincount(conv.out_groups, minlength=channels).tolist()
        edges = torch.searchsorted(conv.in_groups, torch.arange(channels + 1, device=conv.in_groups.device)).tolist()
        self.inputs = [slice(a, b) for a, b in pairwise(edges)]
        self.seen = edges[:-1] if conv.kind == "A" else edges[1:]  # inputs that a group sees at its own pixel
        self.weights = [
            part[: conv.beside * features + seen].contiguous()
            for part, seen in zip(own.split(self.sizes, 1), self.seen, strict=True)
        ]
        # nothing to remember: the only group's features, at the pixel itself
        self.pointwise = channels == 1 and conv.beside == conv.above == 0 and conv.kind == "B"
        # what the outputs of each group start from at each pixel of a row, [group][column]
        start = weight.new_zeros(weight.shape[-1]) if self.bias is None else self.bias
        self.start: list[Sequence[Tensor]] = [[part] * width for part in start.split(self.sizes)]

    def start_row(self, extra: Float[Tensor, "n #w o"] | None = None) -> None:
        """Begin the next row, whose outputs get ``extra`` added (features in the layer's own order)."""
        self.input.start_row()
        if not self.above and extra is None:
            return
        start = 0 if self.bias is None else self.bias
        if extra is not None:
            start = start + extra[..., self.order]
        for back, weight in zip(range(len(self.above), 0, -1), self.above, strict=True):
            start = start + self.input.windows(back, 2 * self.beside + 1) @ weight
        assert isinstance(start, Tensor)
        whole = start.expand(self.input.n, self.input.width, -1)
        self.start = [part.unbind(1) for part in whole.split(self.sizes, 2)]

    def write(self, x: int, group: int, value: Float[Tensor, "n f"]) -> None:
        """Store the input features of one group at the pixel in column x."""
        self.input.write(x, self.inputs[group], value)

    def read(self, x: int, group: int) -> Float[Tensor, "n g"]:
        """The output features of one group at the pixel in column x; what they see must have been written."""
        first = x * self.features
        last = first + self.beside * self.features + self.seen[group]
        return torch.addmm(self.start[group][x], self.input.current[:, first:last], self.weights[group])

    def step(self, x: int, group: int, value: Float[Tensor, "n f"]) -> Float[Tensor, "n g"]:
        """Write a group's inputs, and read its outputs."""
        if self.pointwise:
            return torch.addmm(self.start[0][x], value, self.weights[0])
        self.write(x, group, value)
        return self.read(x, group)


class VerticalConv2d(nn.Module):
    """A convolution (b, i, h, w) -> (b, o, h, w) over the rows above and, unless ``strict``, the pixel's own row.

    Args:
        in_features: i.
        out_features: o.
        kernel: odd width of the kernel, which covers ``kernel // 2`` rows above.
        strict: leaves the pixel's own row out.
    """

    def __init__(self, in_features: int, out_features: int, kernel: int, *, strict: bool) -> None:
        super().__init__()
        self.above, self.beside, self.strict = kernel // 2, kernel // 2, strict
        rows = self.above + (not strict)
        sigma = 1 / math.sqrt(in_features * kernel * rows)
        self.weight = nn.Parameter(torch.randn(out_features, in_features, rows, kernel) * sigma)
        self.bias = nn.Parameter((2 * torch.rand(out_features) - 1) * sigma)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """All pixels at once."""
        return F.conv2d(F.pad(x, (self.beside, self.beside, self.above, -int(self.strict))), self.weight, self.bias)


class CachedVerticalConv:
    """A ``VerticalConv2d`` evaluated row by row, for n images of one width."""

    def __init__(self, conv: VerticalConv2d, n: int, width: int) -> None:
        self.weights = [row.flatten(0, 1).contiguous() for row in conv.weight.permute(2, 3, 1, 0)]
        self.bias, self.strict, self.kernel = conv.bias, conv.strict, conv.weight.shape[3]
        self.input = RowBuffer(conv.weight, n, width, conv.weight.shape[1], above=conv.above, pad=conv.beside)

    def row(self, value: Float[Tensor, "n w i"] | None = None) -> Float[Tensor, "n w o"]:
        """The outputs of the next row, whose inputs ``value`` are given unless the layer does not see them yet."""
        self.input.start_row()
        if value is not None:
            self.input.row().copy_(value)
        out: Tensor = self.bias
        for back, weight in zip(range(self.input.above, -1, -1), self.weights, strict=False):
            out = out + self.input.windows(back, self.kernel) @ weight
        return out
