r"""Units of energy-based machines: what one layer of each type is given the sum of its inputs.

Given natural parameters eta (bias and inputs from other layers), the units of a layer are independent, or share out a
total of counts:

    p(x | eta) = exp(feature(x)'eta + log_reference(x) - log_partition(eta))

=============== ======================== ========= =========================== =============================
units           values x                 feature   log-reference               log-partition
=============== ======================== ========= =========================== =============================
Bernoulli       0 and 1                  x         0                           softplus(eta)
Gaussian        real                     x / sigma -x^2 / (2 width^2)          see the class
Counts          counts that sum to total x         log multinomial coefficient total logsumexp(eta)
=============== ======================== ========= =========================== =============================

Units that count, 0, 1, 2, ..., and their rectified approximation are in ``rectified_units.py``.

*Temperatures.* At an inverse temperature beta the natural parameters are beta eta and the reference stays, so that
every temperature can be normalised; of Bernoulli units that is beta times the energy. *Base.* ``fitted`` makes
independent units with the moments of data, the start of chains and of annealing. *Shapes.* eta, x and features
(n, units), or (..., units); sums run over the last dimension. ``draw`` takes means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.values import log_orders


@torch.no_grad()
def draw(p: Tensor, generator: Generator | None = None) -> Tensor:
    """Independent Bernoulli draws with means p, of p's dtype (half the time of ``torch.bernoulli`` on a CPU)."""
    u = torch.rand(p.shape, dtype=p.dtype, device=p.device, generator=generator)
    return torch.lt(u, p, out=torch.empty_like(p))


def log_bernoulli(value: Tensor, logits: Tensor) -> Float[Tensor, "..."]:
    """Log-probability of independent bits with these log-odds, summed over the last dimension."""
    return (value * logits - F.softplus(logits)).sum(-1)


def dot(features: Tensor, parameters: Tensor) -> Float[Tensor, " n"]:
    """Features (n, units) times parameters that all rows share (units,), or that each row has (n, units)."""
    return features @ parameters if parameters.dim() == 1 else (features * parameters).sum(-1)


class Units:
    """Base of the types. The defaults are those of a type whose feature is its value and whose reference is 0."""

    @property
    def binary(self) -> bool:
        """Whether the states are bits, so that those of a few units can be enumerated."""
        return False

    def feature(self, x: Tensor) -> Tensor:
        """What other layers see of values x."""
        return x

    def log_reference(self, x: Tensor) -> Tensor | None:
        """The part of log p(x) that no parameter multiplies, (n,); None stands for 0."""
        return None

    def log_partition(self, eta: Tensor) -> Tensor:
        """Log-sum over all values of the layer, (n,)."""
        raise NotImplementedError(f"{type(self).__name__} must define log_partition(eta)")

    def mean(self, eta: Tensor) -> Tensor:
        """Expected features: the gradient of ``log_partition``."""
        raise NotImplementedError(f"{type(self).__name__} must define mean(eta)")

    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw values given eta, of eta's dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define sample(eta, generator)")

    def sample_(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """As ``sample``, of an eta that may be overwritten."""
        return self.sample(eta, generator)

    def entropy(self, eta: Tensor) -> Tensor:
        """log_partition(eta) - mean(eta)'eta: the entropy, but for the mean log-reference."""
        return self.log_partition(eta) - (self.mean(eta) * eta).sum(-1)

    def entropy_of_mean(self, mean: Tensor) -> Tensor:
        """``entropy`` of the distribution with these mean features."""
        raise NotImplementedError(f"{type(self).__name__} must define entropy_of_mean(mean)")

    def log_volume(self, units: int, *, like: Tensor) -> Tensor:
        """Log-partition of ``units`` units at eta = 0, in float64."""
        return self.log_partition(torch.zeros(units, dtype=torch.float64, device=like.device))

    def between(self, base: "Units", beta: float) -> "Units":
        """Units whose log-reference is (1 - beta) that of ``base`` and beta that of these."""
        return self

    def sample_many(self, eta: Float[Tensor, " units"], n: int, generator: Generator | None = None) -> Tensor:
        """Draw n times, (n, units), from one eta."""
        return self.sample(eta.expand(n, -1), generator)

    def double(self) -> "Units":
        """The same in float64."""
        return self

    def fitted(self, x: Float[Tensor, "m units"]) -> "Independent":
        """Independent units of the same feature with the moments of data x."""
        raise NotImplementedError(f"{type(self).__name__} must define fitted(x)")


class Bernoulli(Units):
    """Bits: eta are their log-odds."""

    @property
    def binary(self) -> bool:
        """They are."""
        return True

    def log_partition(self, eta: Tensor) -> Tensor:
        """Sum of softplus(eta)."""
        return F.softplus(eta).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        """p(x = 1)."""
        return eta.sigmoid()

    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """Bits, as floats."""
        return draw(eta.sigmoid(), generator)

    def sample_(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """The sigmoid in place."""
        return draw(eta.sigmoid_(), generator)

    def entropy(self, eta: Tensor) -> Tensor:
        """The entropy itself."""
        return (F.softplus(eta) - eta.sigmoid() * eta).sum(-1)

    def entropy_of_mean(self, mean: Tensor) -> Tensor:
        """-p log p - (1 - p) log(1 - p), summed."""
        return -(torch.special.xlogy(mean, mean) + torch.special.xlogy(1 - mean, 1 - mean)).sum(-1)

    def log_volume(self, units: int, *, like: Tensor) -> Tensor:
        """Log 2 each."""
        return torch.tensor(units * log(2.0), dtype=torch.float64, device=like.device)

    def sample_many(self, eta: Float[Tensor, " units"], n: int, generator: Generator | None = None) -> Tensor:
        """One sigmoid for all rows."""
        return draw(eta.sigmoid().expand(n, -1), generator)

    def fitted(self, x: Float[Tensor, "m units"]) -> "Independent":
        """The means, with one example of each value added."""
        rates = smoothed_rates(x.mean(0), len(x))
        return Independent(self, rates.log() - (-rates).log1p())


BERNOULLI = Bernoulli()


def smoothed_rates(means: Float[Tensor, " units"], count: int) -> Float[Tensor, " units"]:
    """Means of bits over ``count`` examples, with one example of each value added."""
    return (means * count + 1) / (count + 2)


@dataclass(frozen=True)
class Gaussian(Units):
    """Real units of standard deviation ``width`` given the others; each sees the others through x / ``sigma``.

        p(x | eta) = N(x; eta width^2 / sigma, width^2),
        log_partition = sum_i eta_i^2 width_i^2 / (2 sigma_i^2) + log(width_i) + log(2 pi) / 2

    In a machine width = sigma: E = x^2 / (2 sigma^2) - (x / sigma)'(bias + W h), so x | h ~ N(sigma (bias + W h),
    sigma^2), the parametrisation of Hinton & Salakhutdinov (2006) less the constant bias^2 / 2. On the way from a base
    of another deviation the two differ.
    """

    sigma: Tensor
    width: Tensor

    @classmethod
    def of(cls, sigma: Tensor) -> "Gaussian":
        """The units of a machine, of deviations ``sigma`` (units,)."""
        return cls(sigma, sigma)

    def feature(self, x: Tensor) -> Tensor:
        """x / sigma."""
        return x / self.sigma

    def log_reference(self, x: Tensor) -> Tensor | None:
        """-x^2 / (2 width^2), summed."""
        return -0.5 * (x / self.width).square().sum(-1)

    def log_partition(self, eta: Tensor) -> Tensor:
        """The Gaussian integral."""
        ratio = self.width / self.sigma
        constant = (self.width.log() + 0.5 * log(2 * pi)).sum(-1)
        return 0.5 * (eta * ratio).square().sum(-1) + constant

    def mean(self, eta: Tensor) -> Tensor:
        """E x / sigma."""
        return eta * (self.width / self.sigma).square()

    def entropy_of_mean(self, mean: Tensor) -> Tensor:
        """At eta = mean sigma^2 / width^2."""
        return self.entropy(mean * (self.sigma / self.width).square())

    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """Mean and noise, never the mean alone."""
        noise = torch.randn(eta.shape, dtype=eta.dtype, device=eta.device, generator=generator)
        return self.sigma * self.mean(eta) + self.width * noise

    def between(self, base: Units, beta: float) -> "Gaussian":
        """Precisions on a straight line."""
        assert isinstance(base, Gaussian)
        precision = (1 - beta) * base.width.square().reciprocal() + beta * self.width.square().reciprocal()
        return Gaussian(self.sigma, precision.rsqrt())

    def double(self) -> "Gaussian":
        """The same in float64."""
        return Gaussian(self.sigma.double(), self.width.double())

    def fitted(self, x: Float[Tensor, "m units"]) -> "Independent":
        """Means and deviations."""
        width = x.std(0, correction=0).clamp_min(1e-3)
        return Independent(Gaussian(self.sigma, width), x.mean(0) * self.sigma / width.square())


@dataclass(frozen=True)
class Counts(Units):
    """Counts of ``total`` draws (n,) or () from one softmax: the replicated softmax over words of a document.

    The reference is the multinomial coefficient, so that probabilities sum to 1 over count vectors (over *sequences* of
    words, each is as much smaller). Paper: Salakhutdinov & Hinton 2009, "Replicated softmax".
    """

    total: Tensor

    def log_reference(self, x: Tensor) -> Tensor | None:
        """Log of total! / prod x!."""
        return log_orders(x)

    def log_partition(self, eta: Tensor) -> Tensor:
        """Total times the log of the sum of exp(eta)."""
        return self.total.to(eta.dtype) * eta.logsumexp(-1)

    def mean(self, eta: Tensor) -> Tensor:
        """Total times the softmax."""
        return self.total.to(eta.dtype)[..., None] * eta.softmax(-1)

    @torch.no_grad()
    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """Count the words of ``total`` draws, by inversion; a row's draws do not depend on the other rows' totals."""
        cdf, total = eta.softmax(-1).cumsum(-1), self.total.expand(len(eta))
        most = int(total.max()) if len(total) else 0
        u = torch.rand(most, len(eta), dtype=eta.dtype, device=eta.device, generator=generator).t() * cdf[:, -1:]
        words = torch.searchsorted(cdf, u.contiguous(), right=True).clamp_(max=eta.shape[-1] - 1)
        kept = (torch.arange(most, device=eta.device) < total[:, None]).to(eta.dtype)
        return torch.zeros_like(cdf).scatter_add_(1, words, kept)

    def fitted(self, x: Float[Tensor, "m units"]) -> "Independent":
        """The words' frequencies, with two words more that are spread over all."""
        return Independent(self, (x.sum(0) + 2 / x.shape[1]).log())


@dataclass(frozen=True)
class Joined(Units):
    """Several layers side by side, of which none sees another: one side of a machine."""

    parts: tuple[Units, ...]
    sizes: tuple[int, ...]

    @property
    def binary(self) -> bool:
        """Whether all of them are."""
        return all(part.binary for part in self.parts)

    def _each(self, value: Tensor) -> "zip[tuple[Units, Tensor]]":
        return zip(self.parts, value.split(self.sizes, dim=-1), strict=True)

    def feature(self, x: Tensor) -> Tensor:
        """Side by side."""
        return torch.cat([part.feature(own) for part, own in self._each(x)], -1)

    def log_reference(self, x: Tensor) -> Tensor | None:
        """The sum of those that are not 0."""
        found = [value for part, own in self._each(x) if (value := part.log_reference(own)) is not None]
        return torch.stack(found).sum(0) if found else None

    def log_partition(self, eta: Tensor) -> Tensor:
        """The layers' sum."""
        return torch.stack([part.log_partition(own) for part, own in self._each(eta)]).sum(0)

    def mean(self, eta: Tensor) -> Tensor:
        """Side by side."""
        return torch.cat([part.mean(own) for part, own in self._each(eta)], -1)

    def sample(self, eta: Tensor, generator: Generator | None = None) -> Tensor:
        """One layer after the other."""
        return torch.cat([part.sample(own, generator) for part, own in self._each(eta)], -1)

    def between(self, base: Units, beta: float) -> "Joined":
        """Layer by layer."""
        assert isinstance(base, Joined)
        parts = (part.between(start, beta) for part, start in zip(self.parts, base.parts, strict=True))
        return Joined(tuple(parts), self.sizes)

    def double(self) -> "Joined":
        """The same in float64."""
        return Joined(tuple(part.double() for part in self.parts), self.sizes)

    def fitted(self, x: Float[Tensor, "m units"]) -> "Independent":
        """Layer by layer."""
        return joined([part.fitted(own) for part, own in self._each(x)])


class Independent(NamedTuple):
    """Units that see no others: their type and natural parameters (units,), or (n, units) for rows of their own."""

    units: Units
    eta: Tensor

    def sample(self, n: int, generator: Generator | None = None) -> Float[Tensor, "n units"]:
        """Draw n states; with rows of their own, one each."""
        if self.eta.dim() == 1:
            return self.units.sample_many(self.eta, n, generator)
        return self.units.sample(self.eta, generator)

    def log_prob(self, x: Float[Tensor, "n units"]) -> Float[Tensor, " n"]:
        """Log-probability, or log-density."""
        value = dot(self.units.feature(x), self.eta) - self.units.log_partition(self.eta)
        reference = self.units.log_reference(x)
        return value if reference is None else value + reference


def joined(layers: Sequence[Independent]) -> Independent:
    """Layers side by side; a single one is itself, and those of bits are one layer of bits."""
    if len(layers) == 1:
        return layers[0]
    eta, sizes = torch.cat([layer.eta for layer in layers], -1), tuple(layer.eta.shape[-1] for layer in layers)
    bits = all(isinstance(layer.units, Bernoulli) for layer in layers)
    return Independent(BERNOULLI if bits else Joined(tuple(layer.units for layer in layers), sizes), eta)
