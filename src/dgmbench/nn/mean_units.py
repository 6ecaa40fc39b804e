"""Units of layers whose means a machine keeps and draws from: bits, bits of which at most one is on, one of several.

Beside what ``unit_layers.py`` asks of every type they find natural parameters at given means, smooth means that were
counted, and draw at means:

========= ==================================== ===========================================
units     values x                             log-partition
========= ==================================== ===========================================
Bits      0 and 1                              softplus(eta)
Pooled    bits in blocks, at most one on       softplus(logsumexp(eta)), summed over blocks
OneOf     bits of which one is on, a label     logsumexp(eta)
========= ==================================== ===========================================

Features are the values themselves, log-references 0. Shapes: eta, x and means (n, units); those of a block side by
side.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.nn.unit_layers import Bernoulli, Units, draw, smoothed_rates


class MeanUnits(Units):
    """Base of the types."""

    def at_mean(self, mean: Tensor) -> Tensor:
        """Natural parameters of the distribution with these means."""
        raise NotImplementedError(f"{type(self).__name__} must define at_mean(mean)")

    def smoothed(self, mean: Tensor, count: int) -> Tensor:
        """Means over ``count`` examples, with one example of each value added."""
        raise NotImplementedError(f"{type(self).__name__} must define smoothed(mean, count)")

    def draw_at_mean(self, mean: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw values given their means."""
        raise NotImplementedError(f"{type(self).__name__} must define draw_at_mean(mean, generator)")

    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw values, as floats."""
        return self.draw_at_mean(self.mean(eta), generator)


class Bits(Bernoulli, MeanUnits):
    """Independent bits."""

    def at_mean(self, mean: Tensor) -> Tensor:
        """Log-odds."""
        return mean.logit()

    def smoothed(self, mean: Tensor, count: int) -> Tensor:
        """Each bit by itself."""
        return smoothed_rates(mean, count)

    def draw_at_mean(self, mean: Tensor, generator: Generator | None = None) -> Tensor:
        """Bits, as floats."""
        return draw(mean, generator)


BITS = Bits()


class OneOf(MeanUnits):
    """Bits of which exactly one is on: a label."""

    def log_partition(self, eta: Tensor) -> Tensor:
        """Log of the sum of exp(eta)."""
        return eta.logsumexp(-1)

    def mean(self, eta: Tensor) -> Tensor:
        """The softmax."""
        return eta.softmax(-1)

    def at_mean(self, mean: Tensor) -> Tensor:
        """Logarithms: what all have in common does not count."""
        return mean.log()

    def smoothed(self, mean: Tensor, count: int) -> Tensor:
        """One example more of each label."""
        return (mean * count + 1) / (count + mean.shape[-1])

    @torch.no_grad()
    def draw_at_mean(self, mean: Tensor, generator: Generator | None = None) -> Tensor:
        """One-hot; by inversion, so that rounding never leaves a row without a label."""
        ends = mean.cumsum(-1)
        u = torch.rand(mean.shape[:-1], dtype=mean.dtype, device=mean.device, generator=generator)[..., None]
        index = torch.searchsorted(ends, u * ends[..., -1:], right=True).clamp_(max=mean.shape[-1] - 1)
        return torch.zeros_like(mean).scatter_(-1, index, 1.0)

    def entropy_of_mean(self, mean: Tensor) -> Tensor:
        """-p log p, summed."""
        return -torch.special.xlogy(mean, mean).sum(-1)


@dataclass(frozen=True)
class Pooled(MeanUnits):
    """Blocks of ``size`` bits side by side, at most one of which is on: probabilistic max-pooling (Lee et al. 2009).

    p(x_i = 1 | eta) = exp(eta_i) / (1 + sum of exp(eta) over the block); whether some unit of it is on, the pooled bit,
    has the log-odds ``pooled(eta)``.
    """

    size: int

    @property
    def binary(self) -> bool:
        """Blocks of one are bits that are free."""
        return self.size == 1

    def blocks(self, x: Tensor) -> Float[Tensor, "... blocks size"]:
        """The units of each block."""
        return x.unflatten(-1, (-1, self.size))

    def pooled(self, eta: Tensor) -> Float[Tensor, "... blocks"]:
        """Log-odds that some unit of a block is on."""
        return self.blocks(eta).logsumexp(-1)

    def log_partition(self, eta: Tensor) -> Tensor:
        """The blocks' sum."""
        return F.softplus(self.pooled(eta)).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        """A softmax over the units of a block and none."""
        return (self.blocks(eta) - F.softplus(self.pooled(eta))[..., None]).exp().flatten(-2)

    @torch.no_grad()
    def draw_at_mean(self, mean: Tensor, generator: Generator | None = None) -> Tensor:
        """Bits, as floats, by inversion."""
        p = self.blocks(mean)
        ends = p.cumsum(-1)
        u = torch.rand(p.shape[:-1], dtype=p.dtype, device=p.device, generator=generator)[..., None]
        return ((u < ends) & (u >= ends - p)).to(p.dtype).flatten(-2)

    @torch.no_grad()
    def sample_within(
        self, eta: Tensor, on: Float[Tensor, "... blocks"], generator: Generator | None = None
    ) -> Float[Tensor, "... units"]:
        """Draw which unit is on in the blocks that are ``on``; none is elsewhere."""
        inside = OneOf().sample(self.blocks(eta), generator)
        return (inside * on[..., None]).flatten(-2)

    def at_mean(self, mean: Tensor) -> Tensor:
        """Logarithms of each unit's probability over that of none."""
        p = self.blocks(mean)
        return (p.log() - (-p.sum(-1, keepdim=True)).log1p()).flatten(-2)

    def smoothed(self, mean: Tensor, count: int) -> Tensor:
        """One example more of each unit of a block, and of none."""
        return (mean * count + 1) / (count + self.size + 1)

    def entropy_of_mean(self, mean: Tensor) -> Tensor:
        """Of the units of a block and none, summed."""
        none = (1 - self.blocks(mean).sum(-1)).clamp_min(0)
        return -(torch.special.xlogy(mean, mean).sum(-1) + torch.special.xlogy(none, none).sum(-1))
