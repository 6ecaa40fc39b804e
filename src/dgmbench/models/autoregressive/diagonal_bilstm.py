r"""Diagonal BiLSTM: two LSTMs that sweep an image along its diagonals and together see all earlier pixels.

Row y of a map is moved right by y places (*skewed*), so that a column of the skewed map holds a diagonal, and a step of
the LSTM from one column to the next has, for a pixel, the states of its left and its upper neighbour:

    o, f, i, g = K_is x_(y,x) + K_ss [h_(y,x-1), h_(y-1,x)],
    c = sigmoid(f) c_(y,x-1) + sigmoid(i) tanh(g),      h_(y,x) = sigmoid(o) tanh(c).

The second LSTM sweeps the mirrored map, from right to left. Its state at a pixel sees the pixel's own row to the right,
which is the future; so its map is shifted down by one row before both are added. The first LSTM has seen everything to
the upper left and the pixel's row so far, the second everything to the upper right: all of the past, and no more. Each
layer is residual (x + W h); a convolution with mask A comes first and two 1 x 1 layers last, and

    log p(x) = sum_i log p(x_i | x_before(i)),      loss = -E_data[log p(x)].

Shapes and units: x is raw (b, c, h, w); ``log_prob`` is in nats per example, (b,).

Sampling computes every state once: the left-to-right ones pixel by pixel, those of the second LSTM for a whole row when
the row is complete; in all 2 h w steps of every layer, about the work of one pass. ``complete`` is exact below a known
upper part.

Paper: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759.

Different from the paper: the second LSTM is given the image as well as the layer's input. That input has passed mask A,
so that no feature of a row knows the row's last pixel, and without the image no pixel would see the last one of the row
above from far to the left; one row further down it is past. For the same reason this LSTM is not masked by channel.
States outside of the image are zero, where the paper learns them; output biases start at the channels' marginals.
"""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.raster import (
    Cache,
    CachedStack,
    RasterBlock,
    RasterModel,
    RasterStack,
    require_stack,
)
from dgmbench.models.autoregressive.row_lstm import lstm
from dgmbench.nn.masked_conv import CachedConv, MaskedConv2d, channel_groups


class DiagonalBiLstm(RasterModel):
    """Diagonal BiLSTM of binary and discrete images.

    Args:
        spec: the data space.
        features: h, the units of each state; the map between the layers has twice as many.
        layers: layers of both LSTMs.
        kernel: odd width of the first convolution.
        head: hidden maps of the two last layers.
    """

    def __init__(
        self, spec: DataSpec, *, features: int = 16, layers: int = 7, kernel: int = 7, head: int = 32
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require_stack(spec, kernel=kernel, features=features, head=head, layers=layers)
        blocks: list[RasterBlock] = [DiagonalLayer(features, spec.shape[0]) for _ in range(layers)]
        self.net = RasterStack(
            spec.shape[0], features=2 * features, kernel=kernel, blocks=blocks, head=head,
            parameters=self.parameters_per_value,
        )  # fmt: skip

    def given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b d p"]:
        """The parameters of all conditionals for raw x (b, *shape), dimensions in C order."""
        inputs = self._inputs(x)
        return self._by_dimension(self.net(inputs, inputs))

    def cache(self, n: int, y: Tensor | None) -> Cache:
        """The cache of n images, at their first pixel."""
        return CachedDiagonals(self.net, n, self.spec.shape)

    def output_biases(self) -> list[Tensor]:
        """The bias of the output layer, channel by channel."""
        return [cast(Tensor, self.net.head.out.bias)]


def skew(x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h t"]:
    """Move row y right by y places: (h, w) to (h, w + h - 1), with zeros elsewhere."""
    height, width = x.shape[-2:]
    flat = F.pad(x, (0, height)).flatten(-2)
    return flat[..., : height * (width + height - 1)].unflatten(-1, (height, -1))


def unskew(x: Float[Tensor, "*b h t"]) -> Float[Tensor, "*b h w"]:
    """The inverse of ``skew``."""
    height, width = x.shape[-2], x.shape[-1] - x.shape[-2] + 1
    return F.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, -1))[..., :width]


class DiagonalLayer(RasterBlock):
    """A residual pair of diagonal LSTMs: x + W_up (h_left + the row above's h_right)."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        outer, inner = channel_groups(2 * features, channels), channel_groups(features, channels)
        self.features = features
        self.from_left = MaskedConv2d(outer, inner.repeat(4), "B")
        self.from_right = nn.Conv2d(2 * features + channels, 4 * features, 1)
        # [left neighbour, upper neighbour] to the gates; no bias, so that the state outside of the image stays zero
        bound = 1 / math.sqrt(2 * features)
        self.state_to_state = nn.Parameter((2 * torch.rand(2, 2 * features, 4 * features) - 1) * bound)
        self.up = MaskedConv2d(inner, outer, "B")

    def forward(self, h: Float[Tensor, "b f h w"], condition: Tensor | None) -> Float[Tensor, "b f h w"]:
        """All pixels at once, diagonal after diagonal; both directions in one sweep. The condition is the image."""
        assert condition is not None
        b, _, height, _ = h.shape
        gates = skew(torch.stack((self.from_left(h), self.from_right(torch.cat((h, condition), 1)).flip(3))))
        state = c = h.new_zeros(2, b * height, self.features)
        states = []
        for column in gates.permute(4, 0, 1, 3, 2).flatten(2, 3).unbind(0):  # (t, 2, b h, 4 f)
            upper = F.pad(state.unflatten(1, (b, height))[:, :, :-1], (0, 0, 1, 0)).flatten(1, 2)
            both = torch.cat((state, upper), 2)
            state, c = lstm(torch.baddbmm(column, both, self.state_to_state), c, 2)
            states.append(state)
        left, right = unskew(torch.stack(states).unflatten(2, (b, height)).permute(1, 2, 4, 3, 0))
        return h + self.up(left + F.pad(right.flip(3), (0, 0, 1, -1)))

    def cached(self, n: int, width: int, condition: Tensor | None) -> "CachedDiagonalLayer":
        """The layer for n images of which the pixels before the current one are known.

        The condition (n, width, channels) holds the current row of the images, as far as it is known.
        """
        assert condition is not None
        return CachedDiagonalLayer(self, n, width, condition)


class CachedDiagonalLayer:
    """A ``DiagonalLayer``, one (pixel, channel) at a time."""

    def __init__(self, layer: DiagonalLayer, n: int, width: int, image: Tensor) -> None:
        self.width, self.image = width, image
        self.from_left, self.up = CachedConv(layer.from_left, n, width), CachedConv(layer.up, n, width)
        self.parts = self.up.inputs  # each channel's units of the state
        order = self.from_left.order  # gates sorted by channel
        self.gates = self.from_left.sizes
        self.left_weight, self.right_weight = layer.state_to_state[0][:, order], layer.state_to_state[1]
        self.right_input = layer.from_right.weight[:, :, 0, 0].T
        self.right_bias = cast(Tensor, layer.from_right.bias)
        like = layer.state_to_state
        self.input = like.new_zeros(n, width, 2 * layer.features)  # of the current row
        # states by column, beginning one column outside of the image: the row above's and the current row's
        self.h_above, self.h = (like.new_zeros(n, width + 1, layer.features) for _ in range(2))
        self.right = like.new_zeros(n, width + 1, layer.features)  # of the row above, by column from the right
        self.c = self.c_left = like.new_zeros(n, layer.features)
        self.recurrent: tuple[Tensor, ...] = ()
        self.first = True

    def start_row(self) -> None:
        """Begin the next row: the row above is complete, so that the second LSTM can run along it."""
        self.from_left.start_row()
        self.up.start_row()
        if not self.first:
            self._sweep()
        self.first = False
        self.h_above, self.h = self.h, torch.zeros_like(self.h)
        self.c = torch.zeros_like(self.c)

    def _sweep(self) -> None:
        gates = torch.cat((self.input, self.image), 2) @ self.right_input + self.right_bias
        state, c = torch.zeros_like(self.c), torch.zeros_like(self.c)
        upper = self.right
        self.right = torch.zeros_like(upper)
        for x in range(self.width - 1, -1, -1):
            both = torch.cat((state, upper[:, x]), 1)
            state, c = lstm(torch.addmm(gates[:, x], both, self.right_weight), c, 1)
            self.right[:, x] = state

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """The channel's output features at the pixel in column x."""
        if channel == 0:
            both = torch.cat((self.h[:, x], self.h_above[:, x + 1]), 1)
            self.recurrent = (both @ self.left_weight).split(self.gates, 1)
            self.c_left, self.c = self.c, torch.empty_like(self.c)
        part = self.parts[channel]
        self.input[:, x, self.from_left.inputs[channel]] = h
        gates = self.from_left.step(x, channel, h) + self.recurrent[channel]
        state, self.c[:, part] = lstm(gates, self.c_left[:, part], 1)
        self.h[:, x + 1, part] = state
        return h + self.up.step(x, channel, state + self.right[:, x, part])


class CachedDiagonals(CachedStack):
    """All layers, for n images of which the pixels before the current one are known."""

    def __init__(self, stack: RasterStack, n: int, shape: tuple[int, ...]) -> None:
        self.image = stack.first.weight.new_zeros(n, shape[2], shape[0])  # the current row, as far as it is known
        super().__init__(stack, n, shape[2], self.image)

    def write(self, x: int, channel: int, value: Float[Tensor, "n 1"]) -> None:
        """The channel's value there, as the network sees it."""
        super().write(x, channel, value)
        self.image[:, x, channel] = value[:, 0]
