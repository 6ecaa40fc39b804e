r"""PixelCNN: masked convolutions whose output at a pixel sees the pixels before it in raster order only.

One pass gives every conditional, so the likelihood is exact and training is that of a convolutional net:

    log p(x) = sum_i log p(x_i | x_before(i)),      loss = -E_data[log p(x)];

the channels of a pixel are one after another: R, then G given R, then B given both. *Plain*: a convolution with mask A,
residual blocks (1 x 1 to half of the features, k x k with mask B, 1 x 1 back; ReLU before each), and two 1 x 1 layers.
Kernels stacked like this miss a wedge to the upper right of every pixel, the *blind spot*. *Gated* has none: a vertical
stack sees whole rows above, a horizontal stack the pixel's own row and the vertical one, and units are gated,

    h = tanh(W_f * x + V_f y) sigmoid(W_g * x + V_g y)      (elementwise; the label y adds a bias for each unit).

With ``conditional`` the label enters so, or as a bias of every residual block's convolution if plain.

Shapes and units: x is raw (b, c, h, w); ``log_prob`` is in nats per example, (b,).

Sampling goes pixel by pixel through caches of all earlier features, each of which is computed once: in all the work of
one pass, where the naive way runs a pass for every pixel and channel. ``complete`` is exact below a known upper part.

Papers: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759; van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NIPS 2016,
https://arxiv.org/abs/1606.05328 (gated).

Different from the papers: the defaults are sized for small grey images (the paper's networks for CIFAR-10 have 15
blocks with features=256 and head=1024); features are shared out among the channels as evenly as can be, so that their
number need not be a multiple of three; output biases start at the channels' marginals; the vertical stack leaves
out the pixel's own row in its first layer, where the paper shifts its output down by a row (the same dependencies).
"""

from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.raster import (
    Cache,
    CachedHead,
    Head,
    RasterBlock,
    RasterModel,
    RasterStack,
    require_stack,
)
from dgmbench.nn.masked_conv import CachedConv, CachedVerticalConv, Mask, MaskedConv2d, VerticalConv2d, channel_groups

INNER_KERNEL = 3  # of all layers but the first, as published


class PixelCnn(RasterModel):
    """PixelCNN of binary and discrete images.

    Args:
        spec: the data space.
        gated: the variant without blind spot, of gated units.
        conditional: models p(x | y) of labelled data.
        features: maps between the blocks (twice the paper's h if plain); gated units of each stack if gated.
        blocks: residual blocks, or gated layers after the first.
        kernel: odd width of the first convolution.
        head: hidden maps of the two last layers.
    """

    def __init__(
        self, spec: DataSpec, *, gated: bool = False, conditional: bool = False, features: int = 32, blocks: int = 7,
        kernel: int = 7, head: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(spec, conditional=conditional)
        channels = spec.shape[0]
        require_stack(spec, kernel=kernel, features=features, head=head, blocks=blocks)
        classes = (spec.num_classes or 0) if conditional else 0
        outputs = {"head": head, "parameters": self.parameters_per_value}
        self.net: RasterStack | GatedStack
        if gated:
            self.net = GatedStack(channels, features=features, kernel=kernel, layers=blocks, classes=classes, **outputs)
        else:
            residual: list[RasterBlock] = [ResidualBlock(features, channels, classes) for _ in range(blocks)]
            self.net = RasterStack(channels, features=features, kernel=kernel, blocks=residual, **outputs)

    def given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b d p"]:
        """The parameters of all conditionals for raw x (b, *shape) and labels y (b,), dimensions in C order."""
        return self._by_dimension(self.net(self._inputs(x), self._label_code(y)))

    def cache(self, n: int, y: Tensor | None) -> Cache:
        """The cache of n images, at their first pixel."""
        return self.net.cached(n, self.spec.shape[2], self._label_code(y))

    def output_biases(self) -> list[Tensor]:
        """The bias of the output layer, channel by channel."""
        return [cast(Tensor, self.net.head.out.bias)]


class ResidualBlock(RasterBlock):
    """h + W_up relu(W * relu(W_down relu(h)) + V c), with mask B throughout.

    The condition c is a vector (b, condition), such as a one-hot label, or a map of them (b, condition, h, w).
    """

    def __init__(self, features: int, channels: int, condition: int) -> None:
        super().__init__()
        outer, inner = channel_groups(features, channels), channel_groups(max(features // 2, channels), channels)
        self.down = MaskedConv2d(outer, inner, "B")
        self.conv = MaskedConv2d(inner, inner, "B", above=INNER_KERNEL // 2, beside=INNER_KERNEL // 2)
        self.up = MaskedConv2d(inner, outer, "B")
        self.label = nn.Linear(condition, len(inner), bias=False) if condition else None

    def added(self, condition: Tensor | None) -> Float[Tensor, "b #h #w f"] | None:
        """V c at every pixel, or for all of them."""
        if self.label is None or condition is None:
            return None
        return cast(
            Tensor, self.label((condition[:, :, None, None] if condition.dim() == 2 else condition).movedim(1, -1))
        )

    def forward(self, h: Float[Tensor, "b f h w"], condition: Tensor | None) -> Float[Tensor, "b f h w"]:
        """All pixels at once."""
        inner = self.conv(self.down(h.relu()).relu())
        if (added := self.added(condition)) is not None:
            inner = inner + added.movedim(-1, 1)
        return h + self.up(inner.relu())

    def cached(self, n: int, width: int, condition: Tensor | None) -> "CachedResidualBlock":
        """The block for n images of which the pixels before the current one are known."""
        return CachedResidualBlock(self, n, width, condition)


class CachedResidualBlock:
    """A ``ResidualBlock``, one (pixel, channel) at a time."""

    def __init__(self, block: ResidualBlock, n: int, width: int, condition: Tensor | None) -> None:
        self.layers = [CachedConv(layer, n, width) for layer in (block.down, block.conv, block.up)]
        self.added, self.row = block.added(condition), -1

    def start_row(self) -> None:
        """Begin the next row."""
        self.row += 1
        down, conv, up = self.layers
        down.start_row()
        conv.start_row(None if self.added is None else self.added[:, min(self.row, self.added.shape[1] - 1)])
        up.start_row()

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """The channel's output features at the pixel in column x."""
        inner = h.relu()
        for layer in self.layers[:-1]:
            inner = layer.step(x, channel, inner).relu_()
        return h + self.layers[-1].step(x, channel, inner)


class GatedStack(nn.Module):
    """The vertical and the horizontal stack of gated units, and the head.

    Args:
        channels: channels of the images.
        features: gated units of each stack.
        kernel: odd width of the first layer's kernels.
        layers: layers after the first.
        head: hidden features of the head.
        classes: labels, or 0.
        parameters: parameters of each value.
    """

    def __init__(
        self, channels: int, *, features: int, kernel: int, layers: int, head: int, classes: int, parameters: int
    ) -> None:
        super().__init__()
        rest = [GatedLayer(features, features, INNER_KERNEL, channels, classes) for _ in range(layers)]
        self.layers = nn.ModuleList([GatedLayer(channels, features, kernel, channels, classes, first=True), *rest])
        self.head = Head(features, head, channels, parameters)

    def forward(self, x: Float[Tensor, "b c h w"], label: Tensor | None = None) -> Float[Tensor, "b cp h w"]:
        """All pixels at once."""
        vertical = horizontal = x
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, label)
        return cast(Tensor, self.head(horizontal))

    def cached(self, n: int, width: int, label: Tensor | None = None) -> "CachedGatedStack":
        """The network for n images of which the pixels before the current one are known."""
        return CachedGatedStack(self, n, width, label)


class GatedLayer(nn.Module):
    """One layer of both stacks; the horizontal one is residual, but in the first layer."""

    def __init__(
        self, inputs: int, features: int, kernel: int, channels: int, classes: int, *, first: bool = False
    ) -> None:
        super().__init__()
        before, after = channel_groups(inputs, channels), channel_groups(features, channels)
        self.first = first
        self.vertical = VerticalConv2d(inputs, 2 * features, kernel, strict=first)
        self.link = nn.Conv2d(2 * features, 2 * features, 1)
        mask: Mask = "A" if first else "B"
        self.horizontal = MaskedConv2d(before, after.repeat(2), mask, beside=kernel // 2, bias=False)
        self.out = MaskedConv2d(after, after, "B")
        self.labels = nn.ModuleList(nn.Linear(classes, 2 * features, bias=False) for _ in range(2 * (classes > 0)))

    def forward(self, vertical: Tensor, horizontal: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """All pixels at once: the next maps of both stacks, from (b, f, h, w) each."""
        above, own = self.vertical(vertical), self.horizontal(horizontal)
        if self.labels:
            above, own = (
                h + linear(label)[:, :, None, None] for h, linear in zip((above, own), self.labels, strict=True)
            )
        out = self.out(gate(own + self.link(above), 1))
        return gate(above, 1), out if self.first else horizontal + out


class CachedGatedLayer:
    """A ``GatedLayer``: its vertical part row by row, its horizontal part one (pixel, channel) at a time."""

    def __init__(self, layer: GatedLayer, n: int, width: int, label: Tensor | None) -> None:
        self.first, self.link = layer.first, layer.link
        self.vertical = CachedVerticalConv(layer.vertical, n, width)
        self.horizontal, self.out = CachedConv(layer.horizontal, n, width), CachedConv(layer.out, n, width)
        self.labels = [linear(label)[:, None] for linear in layer.labels] or [0.0, 0.0]

    def start_row(self, vertical: Float[Tensor, "n w f"] | None) -> Float[Tensor, "n w f"]:
        """Begin the next row: the vertical stack's map of it, from the layer below's."""
        above = self.vertical.row(vertical) + self.labels[0]
        link = above @ self.link.weight[:, :, 0, 0].T + cast(Tensor, self.link.bias)
        self.horizontal.start_row(link + self.labels[1])
        self.out.start_row()
        return gate(above, 2)

    def step(self, x: int, channel: int, horizontal: Float[Tensor, "n f"] | None) -> Float[Tensor, "n f"]:
        """The channel's features of the horizontal stack at the pixel in column x."""
        if horizontal is None:
            return self.out.step(x, channel, gate(self.horizontal.read(x, channel), 1))
        return horizontal + self.out.step(x, channel, gate(self.horizontal.step(x, channel, horizontal), 1))


class CachedGatedStack:
    """A ``GatedStack`` for n images of which the pixels before the current one are known."""

    def __init__(self, stack: GatedStack, n: int, width: int, label: Tensor | None) -> None:
        self.layers = [CachedGatedLayer(cast(GatedLayer, layer), n, width, label) for layer in stack.layers]
        self.head = CachedHead(stack.head, n, width)

    def start_row(self) -> None:
        """Begin the next row: all of the vertical stack, which sees the rows above only."""
        vertical = None
        for layer in self.layers:
            vertical = layer.start_row(vertical)
        self.head.start_row()

    def read(self, x: int, channel: int) -> Float[Tensor, "n p"]:
        """The parameters of the channel's conditional at the pixel in column x of the row."""
        h = None
        for layer in self.layers:
            h = layer.step(x, channel, h)
        assert h is not None
        return self.head.step(x, channel, h)

    def write(self, x: int, channel: int, value: Float[Tensor, "n 1"]) -> None:
        """The channel's value there, as the network sees it."""
        first = self.layers[0]
        first.horizontal.write(x, channel, value)
        first.vertical.input.write(x, slice(channel, channel + 1), value)


def gate(h: Tensor, axis: int) -> Tensor:
    """The tanh of one half of the features times the sigmoid of the other."""
    activation, opening = h.chunk(2, axis)
    return activation.tanh() * opening.sigmoid()
