r"""Units that count, 0, 1, 2, ...: infinitely many bits with shared weights, and noisy rectified units in their place.

    p(n | eta) = exp(n eta - n^2 / 2 - sum_{j <= n} log(1 - q^j) - A(eta)),     q = exp(-1),
    A(eta) = sum_{i >= 1} softplus(eta - i + 1/2)

of copies of a bit whose biases are b - 1/2, b - 3/2, ... (Nair & Hinton 2010, "Rectified linear units improve
restricted Boltzmann machines", https://icml.cc/Conferences/2010/papers/432.pdf). The reference is the sum over all sets
of n bits of exp(-offsets), by Euler. A needs no long sum: for eta <= 0 the bits from the fifth on make up a power
series in exp(eta - 4), and Jacobi's triple product gives

    A(eta) + A(-eta) = (eta^2 + log 2 pi) / 2 + log(1 + 2 sum_k exp(-2 pi^2 k^2) cos(2 pi k eta)) - sum_i log(1 - q^i).

Shapes: eta, x and features (..., units); sums run over the last dimension. Units: nats.
"""

from math import exp, expm1, log, pi

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.nn.unit_layers import Independent, Units

APART = 4  # bits that are summed one by one
SERIES = [(-1.0) ** (m + 1) * exp(-0.5 * m) / -expm1(-m) for m in range(1, 11)]  # terms of exp(-4.5 m) at most
LOG_EULER = sum(log(-expm1(-i)) for i in range(1, 40))  # later terms are 0 in float64
RIPPLE = 2 * exp(-2 * pi**2)  # of the cosine; the next one has 2e-34
REACH = 10  # values that far from the mean, whose deviation is at most 1, have a probability below 1e-21


class SteppedSigmoid(Units):
    """How many of infinitely many bits are on that share their weights and have biases b - 1/2, b - 3/2, ...

    The mean, sum_i sigmoid(eta - i + 1/2), is near softplus(eta), the variance near sigmoid(eta).
    """

    def log_reference(self, x: Tensor) -> Tensor | None:
        """Of values in between, that of the nearest whole number."""
        return _log_reference(x).sum(-1)

    def log_partition(self, eta: Tensor) -> Tensor:
        """A(eta), summed."""
        below = torch.where(eta > 0, -eta, eta)  # not -|eta|, whose gradient at 0 is 0
        power, series = (below - APART).exp(), torch.zeros_like(eta)
        for m, coefficient in reversed(list(enumerate(SERIES, start=1))):
            series = (series + coefficient / m) * power
        low = series + sum(F.softplus(below - i - 0.5) for i in range(APART))
        theta = 0.5 * eta.square() + 0.5 * log(2 * pi) + (RIPPLE * (2 * pi * eta).cos()).log1p()
        return torch.where(eta > 0, theta - LOG_EULER - low, low).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        """The expected number, the derivative of A."""
        below = torch.where(eta > 0, -eta, eta)
        power, series = (below - APART).exp(), torch.zeros_like(eta)
        for coefficient in reversed(SERIES):
            series = (series + coefficient) * power
        low = series + sum((below - i - 0.5).sigmoid() for i in range(APART))
        ripple = 2 * pi * RIPPLE * (2 * pi * eta).sin() / (1 + RIPPLE * (2 * pi * eta).cos())
        return torch.where(eta > 0, eta - ripple + low, low)

    @torch.no_grad()
    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """By inversion among the numbers near the mean."""
        least = (eta.round() - REACH).clamp_min(0)
        n = least[..., None] + torch.arange(2 * REACH + 1, dtype=eta.dtype, device=eta.device)
        cdf = (n * eta[..., None] + _log_reference(n)).softmax(-1).cumsum(-1)
        u = torch.rand(eta.shape, dtype=eta.dtype, device=eta.device, generator=generator) * cdf[..., -1]
        return least + (cdf <= u[..., None]).sum(-1)

    def fitted(self, x: Float[Tensor, "m units"]) -> Independent:
        """The inverse of softplus at the means, so that they are met within 0.02."""
        return Independent(self, torch.expm1(x.mean(0).clamp_min(1e-3)).log())


class Rectified(SteppedSigmoid):
    """Noisy rectified units, max(0, N(eta, sigmoid(eta))): one normal draw in place of all bits (Nair & Hinton 2010).

    An approximation for eta of 3 and more; at 0 its mean is 0.28 where the bits' is 0.68. So chains of these units do
    not quite leave the machine's distribution as it is; anneal the same machine with ``SteppedSigmoid`` units.
    """

    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """The variance, not the deviation, is sigmoid(eta)."""
        noise = torch.randn(eta.shape, dtype=eta.dtype, device=eta.device, generator=generator)
        return (eta + eta.sigmoid().sqrt() * noise).clamp_min(0)


def _log_reference(x: Tensor) -> Tensor:
    """-n^2 / 2 - sum_{j <= n} log(1 - q^j) of each value."""
    n = x.detach().round().clamp_min(0)
    j = torch.arange(1, 38, dtype=torch.float64, device=x.device)
    table = F.pad(-torch.log(-torch.expm1(-j)), (1, 0)).cumsum(0).to(x.dtype)  # later terms are 0 in float64
    return -0.5 * x.square() + table[n.long().clamp_max(37)]
