"""Invertible maps that know their log-determinant: what normalizing flows are composed of.

Orientation: ``forward`` goes from data to noise, x -> z, so that a density needs one ``forward``; ``inverse`` goes from
noise to data. Both return the log |det Jacobian| of the map that they apply, one number (b,) for each example, so that
``inverse`` returns minus what ``forward`` returns at the same point. With a base density p(z),

    log p(x) = log p(z) + log |det dz/dx|,      z, log_det = bijection(x).

A bijection also says which of its ways is fast, and how far from the truth its log-determinant and its inverse may be.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dgmbench.nn.batchnorm import RunningMoments

Mapped = tuple[Tensor, Float[Tensor, " b"]]
"""What a bijection returns: values, and the log-determinant of each example."""

Orientation = Literal["both", "density", "sampling", "neither"]
"""Which way costs one pass: ``density`` is ``forward``, ``sampling`` is ``inverse``; the other takes a loop."""


def sum_dims(x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
    """Sum over everything but the examples."""
    return x.flatten(1).sum(1)


class Bijection(nn.Module, ABC):
    """A one-to-one map of examples (b, *shape), possibly to another shape with as many dimensions."""

    @abstractmethod
    def forward(self, x: Tensor) -> Mapped:
        """Data to noise: z and log |det dz/dx|."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Mapped:
        """Noise to data: x and log |det dx/dz|."""

    @property
    def orientation(self) -> Orientation:
        """Which way is one pass."""
        return "both"

    @property
    def log_det_error(self) -> float:
        """The most nats an example by which the log-determinant may miss the truth in eval mode.

        0 if it is exact up to rounding; infinite if it is random.
        """
        return 0.0

    @property
    def inverse_error(self) -> float:
        """The largest relative error of ``inverse`` beyond rounding, for an inverse that iterates."""
        return 0.0


class Composite(Bijection):
    """A bijection made of others in a row: as fast as the slowest, and as far off as all of them together."""

    def parts(self) -> Iterable[Bijection]:
        """The bijections that it applies, the first one nearest to the data."""
        raise NotImplementedError(f"{type(self).__name__} must define parts()")

    @property
    def orientation(self) -> Orientation:
        """The way that is one pass in every part."""
        ways = {part.orientation for part in self.parts()} - {"both"}
        return "both" if not ways else ways.pop() if len(ways) == 1 else "neither"

    @property
    def log_det_error(self) -> float:
        """The parts' errors, added."""
        return sum(part.log_det_error for part in self.parts())

    @property
    def inverse_error(self) -> float:
        """The parts' errors, added."""
        return sum(part.inverse_error for part in self.parts())


class Chain(Composite):
    """Bijections one after another, the first one nearest to the data."""

    def __init__(self, steps: Iterable[Bijection]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def parts(self) -> Iterable[Bijection]:
        """The steps."""
        return self.steps  # type: ignore[return-value]  # nn.ModuleList knows no bijections

    def forward(self, x: Tensor) -> Mapped:
        """Apply the steps in order."""
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, log_det = step(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> Mapped:
        """Undo the steps, the last one first."""
        total = z.new_zeros(len(z))
        for step in reversed(self.steps):
            z, log_det = step.inverse(z)  # type: ignore[operator]  # nn.ModuleList knows no bijections
            total = total + log_det
        return z, total


class Logit(Bijection):
    """(0, high) -> R by z = log x - log(high - x); its inverse is high sigmoid(z)."""

    def __init__(self, high: float) -> None:
        super().__init__()
        self.high = high

    def forward(self, x: Tensor) -> Mapped:
        """Logits; log dz/dx = log high - log x - log(high - x)."""
        below, above = x.log(), (self.high - x).log()
        return below - above, sum_dims(math.log(self.high) - below - above)

    def inverse(self, z: Tensor) -> Mapped:
        """Values between 0 and high; log dx/dz = log high + log sigmoid(z) + log sigmoid(-z)."""
        return self.high * z.sigmoid(), sum_dims(math.log(self.high) + F.logsigmoid(z) + F.logsigmoid(-z))


class Flatten(Bijection):
    """(b, *shape) -> (b, d)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Mapped:
        """All values in a row."""
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Mapped:
        """Put the shape back."""
        return z.view(-1, *self.shape), z.new_zeros(len(z))


class Squeeze(Bijection):
    """(c, h, w) -> (4 c, h/2, w/2): each 2x2 square of pixels becomes four channels; volume stays."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], Float[Tensor, " b"]]:
        """Channel 4 k + 2 i + j holds row i and column j of the squares of channel k."""
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Float[Tensor, "b d i j"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """Put the squares back."""
        return F.pixel_shuffle(z, 2), z.new_zeros(len(z))


class Normalisation(RunningMoments, Bijection):
    """Batch normalisation of every channel as a bijection, z = (x - mean) / sqrt(var + eps), with no scale or shift.

    In training mode ``forward`` takes the moments of the batch, with gradients through them, so that then, and only
    then, an example's density depends on its batch. In evaluation mode, and in ``inverse`` always, the moments are the
    running ones, which ``nn.batchnorm.absorb_statistics`` moves. Channels are the second dimension of x.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__(channels, momentum=momentum, eps=eps)

    def _scale_and_shift(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The standard deviation and the mean, shaped for x, and log |det| of the normalisation of each example."""
        shape, positions = (1, -1, *[1] * (x.dim() - 2)), x[0, 0].numel()
        log_det = -0.5 * positions * torch.log(var + self.eps).sum()
        return (var + self.eps).sqrt().view(shape), mean.view(shape), log_det.expand(len(x))

    def forward(self, x: Tensor) -> Mapped:
        """Normalise; the log-determinant is -1/2 sum log(var + eps) over channels and positions."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            var, mean = torch.var_mean(x.transpose(0, 1).flatten(1), 1, correction=0)
            self.seen = mean.detach(), var.detach()  # the very moments, so that both modes agree once they stand still
        scale, shift, log_det = self._scale_and_shift(x, mean, var)
        return (x - shift) / scale, log_det

    def inverse(self, z: Tensor) -> Mapped:
        """Undo the normalisation by the running moments."""
        scale, shift, log_det = self._scale_and_shift(z, self.running_mean, self.running_var)
        return z * scale + shift, -log_det


class Recomputed(Composite):
    """A bijection that keeps its input only, and computes its values again when gradients are due.

    Saved tensors shrink from everything inside to x, for the price of one more ``forward``; values and gradients are
    the same to the bit. Inverting from the output instead would save x as well, but lets rounding errors of the inverse
    into the gradients of every step before.
    """

    def __init__(self, inner: Bijection) -> None:
        super().__init__()
        self.inner = inner

    def parts(self) -> Iterable[Bijection]:
        """The one bijection."""
        return (self.inner,)

    def forward(self, x: Tensor) -> Mapped:
        """Data to noise."""
        if not torch.is_grad_enabled():
            return self.inner(x)
        return checkpoint(self.inner, x, use_reentrant=False, preserve_rng_state=False)

    def inverse(self, z: Tensor) -> Mapped:
        """Noise to data."""
        return self.inner.inverse(z)


class MultiScale(Composite):
    """Levels of bijections; after each level but the last, half of the channels leave as noise, flattened.

    The multi-scale architecture of Real NVP (Dinh et al. 2017, section 3.6): z = (h_1 | h_2 | ... | h_L), each
    h_l flattened, the finest level's half first. ``shapes`` are those of the parts, (c, h, w) of each.
    """

    def __init__(self, levels: Iterable[Bijection], shapes: Iterable[tuple[int, int, int]]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.shapes = tuple(shapes)

    def parts(self) -> Iterable[Bijection]:
        """The levels."""
        return self.levels  # type: ignore[return-value]  # nn.ModuleList knows no bijections

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """All parts, flattened and joined."""
        parts, total = [], x.new_zeros(len(x))
        for level, (channels, _, _) in zip(self.levels, self.shapes, strict=True):
            x, log_det = level(x)
            total = total + log_det
            parts.append(x[:, :channels].flatten(1))
            x = x[:, channels:]
        return torch.cat(parts, 1), total

    def inverse(self, z: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        """The image again, from the coarsest level up."""
        parts = z.split([c * h * w for c, h, w in self.shapes], 1)
        total, x = z.new_zeros(len(z)), z.new_zeros(len(z), 0, *self.shapes[-1][1:])
        for level, part, shape in reversed(list(zip(self.levels, parts, self.shapes, strict=True))):
            x, log_det = level.inverse(torch.cat([part.view(-1, *shape), x], 1))
            total = total + log_det
        return x, total


class StartsAtData(ABC):
    """A layer whose parameters start at the moments of data, when ``start_activations`` asks for it."""

    @abstractmethod
    def start_at(self, x: Tensor) -> None:
        """Set the parameters by the layer's input x."""


class ActNorm(Bijection, StartsAtData):
    """z = (x + shift) exp(log_scale) in every channel, with parameters that start at the moments of data.

    After ``start_at(x)`` the values of x have mean 0 and variance 1 in each channel (Kingma, Dhariwal 2018, section
    3.1). Nothing starts by itself: ``start_activations`` does it once for a whole flow before the training, so that
    neither a resumed nor a loaded model begins anew.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def start_at(self, x: Tensor) -> None:
        """Set the parameters so that ``forward`` standardises x (b, c, ...); a constant channel is only centred."""
        var, mean = torch.var_mean(x.transpose(0, 1).flatten(1), 1, correction=0)
        self.shift.copy_(-mean)
        self.log_scale.copy_(standardising(var))

    def forward(self, x: Tensor) -> Mapped:
        """Data to noise; the log-determinant is the sum of log_scale over channels and positions."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        z = (x + self.shift.view(shape)) * self.log_scale.exp().view(shape)
        return z, (x[0, 0].numel() * self.log_scale.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Mapped:
        """Noise to data."""
        shape = (1, -1, *[1] * (z.dim() - 2))
        x = z * (-self.log_scale).exp().view(shape) - self.shift.view(shape)
        return x, -(z[0, 0].numel() * self.log_scale.sum()).expand(len(z))


def standardising(var: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
    """The log-scale that brings a variance to 1; 0 for a channel that is constant."""
    return torch.where(var > 1e-8, -0.5 * var.clamp_min(1e-8).log(), 0.0)


@contextmanager
def start_activations(net: nn.Module) -> Iterator[None]:
    """Inside, every ``StartsAtData`` in ``net`` starts at the moments of what it is called with, one after another."""

    def start(layer: nn.Module, arguments: tuple[Tensor]) -> None:
        assert isinstance(layer, StartsAtData)
        layer.start_at(arguments[0])

    hooks = [layer.register_forward_pre_hook(start) for layer in net.modules() if isinstance(layer, StartsAtData)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def standard_normal_log_density(z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """Log N(z; 0, I)."""
    return sum_dims(-0.5 * z.square() - 0.5 * math.log(2 * math.pi))


def dequantise(x: Tensor, levels: int, *, dtype: torch.dtype, generator: Generator | None = None) -> Tensor:
    """Integers 0 ... levels - 1 to x + u in (0, levels), with u uniform.

    The density of x + u bounds the mass of x: log P(x) = log E_u[p(x + u)] >= E_u[log p(x + u)].

    u keeps away from 0 and 1 by the rounding error of the largest level in single precision, so that x + u never
    rounds to a neighbouring level or to the end of the interval.
    """
    margin = levels * 2.0**-22
    u = torch.rand(x.shape, generator=generator, device=x.device, dtype=dtype)
    return x.to(dtype) + u.clamp(margin, 1 - margin)
