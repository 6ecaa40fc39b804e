r"""ConvNADE: deep NADE with a convolutional network, which sees what is known of an image and where it is known.

The image with unknown pixels at 0 and its mask are the channels of the input; a convolutional and a fully connected
network add up their outputs, as in the paper, so that both local structure and the whole count:

    (parameters of every p(x_i | x_known)) = conv(m x, m) + full(m x, m) + b,
    loss = -E[ D / (D - d) sum_{i unknown} log p(x_i | x_known) ],   log p(x) = logsumexp_o log p_o(x) - log M.

m is 1 where known; the loss is unbiased for all orders at once and the mixture of M orders is exact (``orderless.py``).

Shapes and units: x is a raw image (b, c, h, w); ``log_prob`` is in nats per example, (b,), M c h w passes. Binary
pixels have Bernoulli conditionals, discrete ones categorical or mixtures of discretised logistics.

Paper: Uria, Cote, Gregor, Murray, Larochelle, "Neural Autoregressive Distribution Estimation", JMLR 2016, section 5,
https://arxiv.org/abs/1605.02226.

Different from the paper: convolutions are padded to the size of the image where the paper's shrink it and then enlarge
it again; the output bias has one value for each pixel and starts at the marginals; each example has its own number of
known pixels. The defaults are for small images: four hidden convolutions of 32 maps, 3 x 3, and one hidden layer of 500
units beside them, where the published model of binary MNIST has seven of 64 maps, of 4 x 4 to 8 x 8, and two layers of
500; Adam at 1e-3, where it has 1e-4; one order, where the paper averages over up to 128 (``orders``).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.orderless import Orderless
from dgmbench.nn.conditionals import Discrete

ELEMENTS = 2**24  # of one layer's activations, or of the weights gathered for it, in an evaluation


class ConvNade(Orderless):
    """Order-agnostic convolutional network for binary and discrete images, and its mixture over orders.

    Args:
        spec: The data space, images.
        channels: Of each hidden convolution.
        depth: Number of hidden convolutions.
        kernel: Their size, odd.
        hidden_sizes: Of the fully connected network beside them; none leaves it out.
        orders: M, the number of orders in the mixture.
        components: Components in the mixture of a pixel that has one.
        discrete: ``categorical``, ``logistics`` (mixtures of discretised logistics) or ``auto``: see ``Conditionals``.
    """

    def __init__(
        self, spec: DataSpec, *, channels: int = 32, depth: int = 4, kernel: int = 3,
        hidden_sizes: Sequence[int] = (500,), orders: int = 1, components: int = 10, discrete: Discrete = "auto",
    ) -> None:  # fmt: skip
        if spec.kind not in ("binary", "discrete") or not spec.is_image:
            raise UserError(f"ConvNADE takes binary or discrete images, not {spec}.")
        super().__init__(spec, orders=orders, components=components, discrete=discrete)
        require(least=1, channels=channels, depth=depth, kernel=kernel, hidden_sizes=hidden_sizes)
        if kernel % 2 == 0:
            raise UserError(f"model.kernel={kernel} must be odd, so that the image keeps its size.")
        parameters, planes = self.conditionals.parameters_per_dim, spec.shape[0]
        self.reach = (depth + 1) * (kernel // 2)  # how far from its own place a pixel's conditional sees
        widths = [2 * planes, *[channels] * depth]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, kernel, padding="same"), nn.ReLU()]
        self.conv = nn.Sequential(*layers, nn.Conv2d(channels, planes * parameters, kernel, padding="same", bias=False))
        full: list[nn.Module] = []
        for a, b in pairwise([2 * spec.dim, *hidden_sizes]):
            full += [nn.Linear(a, b), nn.ReLU()]
        last = nn.Linear(hidden_sizes[-1], spec.dim * parameters, bias=False) if hidden_sizes else None
        self.full = None if last is None else nn.Sequential(*full, last)
        self.out_bias = nn.Parameter(torch.zeros(spec.dim, parameters))
        around = (2 * self.reach + 1) ** 2
        self.local = planes * around < spec.dim
        area = around if self.local else spec.dim // planes
        weights = parameters * (hidden_sizes[-1] if hidden_sizes else 0)
        self.rows = max(1, min(self.rows, ELEMENTS // max(channels * area, weights, 2 * spec.dim)))

    def parameters_given(self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"]) -> Float[Tensor, "b d p"]:
        """Parameters of every conditional p(x_i | x_known), one pass."""
        b, (c, h, w) = len(values), self.spec.shape
        maps = self.conv(self._maps(values, known))
        out = maps.view(b, c, -1, h, w).movedim(2, -1).flatten(1, 3)
        if self.full is not None:
            out = out + self.full(torch.cat((values, known), 1)).view_as(out)
        return out + self.out_bias

    def parameters_of(
        self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"], which: Int[Tensor, " b"]
    ) -> Float[Tensor, "b p"]:
        """The parameters of one pixel for each row, from what the convolutions see around it."""
        if not self.local:
            return super().parameters_of(values, known, which)
        h, w = self.spec.shape[1:]
        plane, place = which // (h * w), which % (h * w)
        found = self._around(self._maps(values, known), place // w, place % w)
        out = found.view(len(which), self.spec.shape[0], -1)[torch.arange(len(which), device=which.device), plane]
        if self.full is not None:
            features, last = self.full[:-1](torch.cat((values, known), 1)), cast("nn.Linear", self.full[-1])
            weight = last.weight.view(*self.out_bias.shape, -1)
            out = out + torch.einsum("bh,bph->bp", features, weight[which])
        return out + self.out_bias[which]

    def _maps(self, values: Tensor, known: Tensor) -> Float[Tensor, "b c2 h w"]:
        shape = (len(values), *self.spec.shape)
        return torch.cat((values.view(shape), known.view(shape)), 1)

    def _around(self, maps: Tensor, row: Int[Tensor, " b"], column: Int[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """The convolutions' output at one place of each of the maps (b, c2, h, w)."""
        near = torch.arange(-self.reach, self.reach + 1, device=row.device)
        rows, columns = row[:, None] + near, column[:, None] + near  # (b, side)
        (h, w), one = maps.shape[2:], torch.arange(len(row), device=row.device)[:, None, None]
        inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
        taken = maps[one, :, rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None, :]]
        patch, edge = taken.movedim(-1, 1), 0
        for layer in self.conv:
            if isinstance(layer, nn.Conv2d):
                side = slice(edge, len(near) - edge)  # every layer pads the image with zeros, not with its bias
                patch = F.conv2d(patch * inside[:, None, side, side], layer.weight, layer.bias)
                edge += layer.kernel_size[0] // 2
            else:
                patch = layer(patch)
        return patch.flatten(1)
