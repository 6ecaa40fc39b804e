"""Spike-and-slab units: a bit, the spike, that decides whether a real value, the slab, is felt.

Unit i has a spike z in {0, 1} and a slab s, and others see their product x = z s alone. Of

    p(z, s | eta) ~ exp(eta z s + b z) N(s; 0, 1)

follows, with the slab of a spike that is off integrated out,

    log_partition(eta) = sum_i softplus(b_i + eta_i^2 / 2),
    p(z_i = 1 | eta) = sigmoid(b_i + eta_i^2 / 2),    s_i | z_i = 1 ~ N(eta_i, 1).

A slab with a mean m of its own is one whose eta has m for a bias, and b + m^2 / 2 for log-odds without other input. The
values x are 0 where the spike is off; the reference is a density of the others, which are almost surely not 0.

Shapes: eta, x (n, units); spike_bias b (units,).
Paper: Courville, Bergstra, Bengio 2011, "A spike and slab restricted Boltzmann machine",
https://proceedings.mlr.press/v15/courville11a.html.
"""

from dataclasses import dataclass
from math import log, pi

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dgmbench.nn.unit_layers import Units, draw


@dataclass(frozen=True)
class SpikeSlab(Units):
    """Spikes of log-odds ``spike_bias`` and standard normal slabs at eta = 0."""

    spike_bias: Tensor

    def log_odds(self, eta: Tensor) -> Tensor:
        """Of the spikes given eta."""
        return self.spike_bias + 0.5 * eta.square()

    def log_reference(self, x: Tensor) -> Tensor | None:
        """b + log N(x; 0, 1) where the spike is on."""
        on = self.spike_bias - 0.5 * x.square() - 0.5 * log(2 * pi)
        return torch.where(x != 0, on, torch.zeros_like(x)).sum(-1)

    def log_partition(self, eta: Tensor) -> Tensor:
        """Over spikes and slabs."""
        return F.softplus(self.log_odds(eta)).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        """E z s."""
        return self.log_odds(eta).sigmoid() * eta

    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """Spikes, and slabs where they are on."""
        spikes = draw(self.log_odds(eta).sigmoid(), generator)
        noise = torch.randn(eta.shape, dtype=eta.dtype, device=eta.device, generator=generator)
        return spikes * (eta + noise)

    def log_volume(self, units: int, *, like: Tensor) -> Tensor:
        """The spikes' alone, since slabs are normalised."""
        return F.softplus(self.spike_bias.double()).sum()

    def double(self) -> "SpikeSlab":
        """The same in float64."""
        return SpikeSlab(self.spike_bias.double())
