"""Coupling layers: part of x stays as it is and decides how the rest is scaled and shifted (Dinh et al. 2017).

With a mask m that is 1 where x stays,

    z = m x + (1 - m) (x exp(s) + t),      s, t = net(m x),      log |det dz/dx| = sum (1 - m) s.

The Jacobian is triangular and the net need not be invertible: the inverse calls it on the same values m x = m z. Masks
take nets of the full size; ``SplitCoupling`` hands its net only the part that stays.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.bijections import Bijection, Mapped, StartsAtData, standardising, sum_dims


def alternating(dim: int, parity: int) -> Float[Tensor, " d"]:
    """Mask of a vector: 1 at every second position, from ``parity`` on."""
    return ((torch.arange(dim) + parity) % 2 == 0).float()


def checkerboard(height: int, width: int, parity: int) -> Float[Tensor, "1 h w"]:
    """Mask of an image: 1 where row + column has the ``parity``, in every channel."""
    board = torch.arange(height)[:, None] + torch.arange(width)
    return ((board + parity) % 2 == 0).float()[None]


def channel_halves(channels: int, parity: int) -> Float[Tensor, "c 1 1"]:
    """Mask of an image: 1 in the first half of the channels (parity 0) or in the second (parity 1)."""
    first = torch.arange(channels) < (channels + 1) // 2
    return (first if parity == 0 else ~first).float()[:, None, None]


class AffineCoupling(Bijection):
    """Scale and shift part of x by numbers that a net reads off the rest.

    s = rate tanh(raw), with a learned rate of each channel (of each dimension of a vector), holds the scales in
    bounds. The net should start at zero, so that the coupling starts as the identity.

    Args:
        mask: 1 where x stays, broadcastable to (*shape).
        net: maps (b, c, ...) to (b, 2 c, ...): raw scales, then shifts.
        channels: c, the second dimension of x.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mask", mask, persistent=False)
        self.rate = nn.Parameter(torch.ones(channels, *[1] * (mask.dim() - 1)))

    def _scale_and_shift(self, fixed: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(fixed).chunk(2, 1)
        moving = 1 - self.mask
        return moving * self.rate * torch.tanh(raw), moving * shift

    def forward(self, x: Tensor) -> Mapped:
        """Data to noise."""
        scale, shift = self._scale_and_shift(self.mask * x)
        return x * scale.exp() + shift, sum_dims(scale)

    def inverse(self, z: Tensor) -> Mapped:
        """Noise to data."""
        scale, shift = self._scale_and_shift(self.mask * z)
        return (z - shift) * (-scale).exp(), -sum_dims(scale)


LogScale = Callable[[Tensor], Tensor]
"""From a net's raw output to log-scales."""


def bounded(raw: Tensor) -> Tensor:
    """3 tanh(raw / 3): raw near 0, and never beyond e^3 or below e^-3, so that no draw of noise far out explodes."""
    return 3.0 * torch.tanh(raw / 3.0)


class SplitCoupling(Bijection):
    """Shift, and scale if ``log_scale`` is there, the ``moving`` part of the second dimension by a net of the rest.

        z_moving = x_moving exp(s) + t,      s, t = net(x_fixed);      additive couplings have s = 0 and |det| = 1.

    Args:
        net: maps the fixed part (b, c_fixed, ...) to shifts (b, c_moving, ...), after raw scales of that size if
            ``log_scale`` is there.
        fixed: what stays, as a slice of the second dimension.
        moving: what is changed: all of the rest.
        log_scale: from raw scales to s; None for an additive coupling.
    """

    def __init__(self, net: nn.Module, fixed: slice, moving: slice, *, log_scale: LogScale | None) -> None:
        super().__init__()
        self.net, self.fixed, self.moving, self.log_scale = net, fixed, moving, log_scale

    def _scale_and_shift(self, fixed: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.log_scale is None:
            return None, self.net(fixed)
        raw, shift = self.net(fixed).chunk(2, 1)
        return self.log_scale(raw), shift

    def forward(self, x: Tensor) -> Mapped:
        """Data to noise."""
        scale, shift = self._scale_and_shift(x[:, self.fixed])
        z = x.clone()
        if scale is None:
            z[:, self.moving] += shift
            return z, x.new_zeros(len(x))
        z[:, self.moving] = x[:, self.moving] * scale.exp() + shift
        return z, sum_dims(scale)

    def inverse(self, z: Tensor) -> Mapped:
        """Noise to data."""
        scale, shift = self._scale_and_shift(z[:, self.fixed])
        x = z.clone()
        if scale is None:
            x[:, self.moving] -= shift
            return x, z.new_zeros(len(z))
        x[:, self.moving] = (z[:, self.moving] - shift) * (-scale).exp()
        return x, -sum_dims(scale)


def coupling_mlp(dim: int, hidden_sizes: Sequence[int], outputs: int | None = None) -> nn.Sequential:
    """ReLU network (b, dim) -> (b, outputs), 2 dim by default, that starts at zero."""
    layers: list[nn.Module] = []
    width = dim
    for size in hidden_sizes:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    last = nn.Linear(width, 2 * dim if outputs is None else outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class WeightNormConv(nn.Module):
    """Convolution that keeps the size, with weights gain * direction / |direction| (Salimans, Kingma 2016).

    The norm is taken over all inputs of each output channel. ``zero`` starts the gain at 0, else it is |direction|.
    """

    def __init__(self, before: int, after: int, size: int, *, zero: bool = False) -> None:
        super().__init__()
        plain = nn.Conv2d(before, after, size)
        self.direction = plain.weight
        norm = plain.weight.detach().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        self.gain = nn.Parameter(torch.zeros_like(norm) if zero else norm)
        self.bias = nn.Parameter(torch.zeros(after)) if zero else plain.bias
        self.padding = size // 2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Convolve."""
        weight = self.direction * (
            self.gain / torch.linalg.vector_norm(self.direction.flatten(1), dim=1).view(-1, 1, 1, 1)
        )
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3 x 3, weight-normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (WeightNormConv(channels, channels, 3) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """One block."""
        return x + self.second(F.relu(self.first(F.relu(x))))


class CouplingResnet(nn.Module):
    """Residual network (b, c, h, w) -> (b, 2 c, h, w), weight-normalised, starting at zero.

    As in Real NVP: a 3 x 3 convolution, residual blocks, and the sum of 1 x 1 convolutions of each block's result.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = WeightNormConv(channels, width, 3)
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormConv(width, width, 1) for _ in range(blocks + 1))
        self.last = WeightNormConv(width, 2 * channels, 1, zero=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Raw scales and shifts."""
        h = self.stem(x)
        total = self.skips[0](h)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            h = block(h)
            total = total + skip(h)
        return self.last(F.relu(total))


class ZeroConv(nn.Conv2d):
    """3 x 3 convolution that keeps the size and starts at zero."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # there is one


class ActNormConv(StartsAtData, nn.Module):
    """Convolution that keeps the size, then actnorm, folded into its weights: nothing is saved between the two."""

    def __init__(self, before: int, after: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(after, before, size, size))
        self.bias = nn.Parameter(torch.zeros(after))
        self.log_scale = nn.Parameter(torch.zeros(after))
        self.padding = size // 2

    @torch.no_grad()
    def start_at(self, x: Float[Tensor, "b c h w"]) -> None:
        """Set scale and bias so that the outputs on x have mean 0 and variance 1 in each channel."""
        h = F.conv2d(x, self.weight, padding=self.padding)
        var, mean = torch.var_mean(h, (0, 2, 3), correction=0)
        self.log_scale.copy_(standardising(var))
        self.bias.copy_(-mean * self.log_scale.exp())

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """exp(log_scale) conv(x) + bias."""
        return F.conv2d(x, self.weight * self.log_scale.exp()[:, None, None, None], self.bias, padding=self.padding)


def glow_net(before: int, width: int, after: int) -> nn.Sequential:
    """The net of Glow's couplings: convolutions 3 x 3, 1 x 1, 3 x 3, actnorm after the first two, starting at zero."""
    relu, last = nn.ReLU(inplace=True), ZeroConv(width, after)
    return nn.Sequential(ActNormConv(before, width, 3), relu, ActNormConv(width, width, 1), relu, last)
