r"""Row LSTM: an LSTM that runs down an image row by row, all pixels of a row at once.

The gates of row y come from a masked convolution along the row of the layer's input (*input to state*), and from a
convolution of the state of the row above (*state to state*):

    o, f, i, g = K_is * x_y + K_ss * h_(y-1),
    c_y = sigmoid(f) c_(y-1) + sigmoid(i) tanh(g),      h_y = sigmoid(o) tanh(c_y),

so that with every row further up a pixel sees one pixel more on either side: a triangle, which misses what lies far to
the side. Each layer is residual (x + W h); a convolution with mask A comes first and two 1 x 1 layers last, and

    log p(x) = sum_i log p(x_i | x_before(i)),      loss = -E_data[log p(x)].

Shapes and units: x is raw (b, c, h, w); ``log_prob`` is in nats per example, (b,).

Sampling: the state-to-state part of a row is computed as the row starts, the rest pixel by pixel, everything once: in
all the work of one pass. ``complete`` is exact below a known upper part.

Paper: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759.

Different from the paper: the state of the row above the image is zero, where the paper learns it; a row's own state is
not masked by channel when the next row sees it, for all of it lies in the past; output biases start at the channels'
marginals.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.raster import Cache, RasterBlock, RasterModel, RasterStack, require_stack
from dgmbench.nn.masked_conv import CachedConv, MaskedConv2d, channel_groups


class RowLstm(RasterModel):
    """Row LSTM of binary and discrete images.

    Args:
        spec: the data space.
        features: h, the units of each layer's state; the map between the layers has twice as many.
        layers: LSTM layers.
        state_kernel: odd width k of the input-to-state and state-to-state convolutions.
        kernel: odd width of the first convolution.
        head: hidden maps of the two last layers.
    """

    def __init__(
        self, spec: DataSpec, *, features: int = 16, layers: int = 7, state_kernel: int = 3, kernel: int = 7,
        head: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        require_stack(spec, kernel=kernel, features=features, head=head, layers=layers)
        require(least=1, state_kernel=state_kernel)
        if state_kernel % 2 == 0:
            raise UserError(f"model.state_kernel={state_kernel} must be odd: a kernel has its pixel in the middle.")
        blocks: list[RasterBlock] = [RowLstmLayer(features, state_kernel, spec.shape[0]) for _ in range(layers)]
        self.net = RasterStack(
            spec.shape[0], features=2 * features, kernel=kernel, blocks=blocks, head=head,
            parameters=self.parameters_per_value,
        )  # fmt: skip

    def given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b d p"]:
        """The parameters of all conditionals for raw x (b, *shape), dimensions in C order."""
        return self._by_dimension(self.net(self._inputs(x)))

    def cache(self, n: int, y: Tensor | None) -> Cache:
        """The cache of n images, at their first pixel."""
        return self.net.cached(n, self.spec.shape[2])

    def output_biases(self) -> list[Tensor]:
        """The bias of the output layer, channel by channel."""
        return [cast(Tensor, self.net.head.out.bias)]


def lstm(gates: Tensor, c: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The next h and c from the gates o, f, i, g, stacked along an axis, and c."""
    output, forget, take, content = gates.chunk(4, axis)
    c = forget.sigmoid() * c + take.sigmoid() * content.tanh()
    return output.sigmoid() * c.tanh(), c


class RowLstmLayer(RasterBlock):
    """A residual row LSTM: x + W_up h."""

    def __init__(self, features: int, kernel: int, channels: int) -> None:
        super().__init__()
        outer, inner = channel_groups(2 * features, channels), channel_groups(features, channels)
        self.features = features
        self.input_to_state = MaskedConv2d(outer, inner.repeat(4), "B", beside=kernel // 2)
        self.state_to_state = nn.Conv1d(features, 4 * features, kernel, padding=kernel // 2, bias=False)
        self.up = MaskedConv2d(inner, outer, "B")

    def forward(self, h: Float[Tensor, "b f h w"], condition: Tensor | None) -> Float[Tensor, "b f h w"]:
        """All pixels at once, row after row."""
        gates = self.input_to_state(h).unbind(2)
        state = c = h.new_zeros(h.shape[0], self.features, h.shape[3])
        states = []
        for row in gates:
            state, c = lstm(row + self.state_to_state(state), c, 1)
            states.append(state)
        return h + self.up(torch.stack(states, 2))

    def cached(self, n: int, width: int, condition: Tensor | None) -> "CachedRowLstmLayer":
        """The layer for n images of which the pixels before the current one are known."""
        return CachedRowLstmLayer(self, n, width)


class CachedRowLstmLayer:
    """A ``RowLstmLayer``, one (pixel, channel) at a time; the states of the row above come in as a row starts."""

    def __init__(self, layer: RowLstmLayer, n: int, width: int) -> None:
        self.input_to_state, self.up = CachedConv(layer.input_to_state, n, width), CachedConv(layer.up, n, width)
        self.state_to_state = layer.state_to_state
        self.parts = self.up.inputs  # each channel's units of the state
        self.h, self.c = (layer.up.weight.new_zeros(n, layer.features, width) for _ in range(2))

    def start_row(self) -> None:
        """Begin the next row."""
        extra = F.conv1d(self.h, self.state_to_state.weight, padding=self.state_to_state.padding)
        self.input_to_state.start_row(extra.transpose(1, 2))
        self.up.start_row()

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """The channel's output features at the pixel in column x."""
        part = self.parts[channel]
        gates = self.input_to_state.step(x, channel, h)
        state, self.c[:, part, x] = lstm(gates, self.c[:, part, x], 1)  # in place of the row above's
        self.h[:, part, x] = state
        return h + self.up.step(x, channel, state)
