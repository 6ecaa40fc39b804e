r"""Observation models p(x | decoder output): what a decoder's numbers mean for the data.

A decoder returns ``parameters`` (..., P, *shape), P of them for every dimension of x; dimensions are independent given
them. ``log_prob`` is about raw x, in nats, so an observation model carries every constant and every log-determinant:

* ``Bernoulli``: x in {0, 1}, one logit.
* ``Gaussian``: a mean and, unless sigma is fixed, a log sigma. Real x has the density N(x; mean, sigma^2). On binary or
  discrete x, P(x = j) is the mass that the normal distribution puts on the bin of level j; the levels span [-1, 1], and
  the first and last bins are open to infinity. That is exact, and what rounding a draw to the nearest level gives.
* ``LogisticMixture``: P(x = j) is the mass that a mixture of logistics puts on the same bins (Salimans et al. 2017,
  https://arxiv.org/abs/1701.05517, without its coupling of colour channels); exact for any number of levels.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.levels import logistic_log_prob

ObservationName = Literal["auto", "bernoulli", "gaussian", "logistic_mixture"]
LEAST_LOG_SIGMA = -7.0  # on the network's scale, where data spans 2 (the floor of PixelCNN++)


def soft_floor(value: Tensor, floor: float) -> Tensor:
    """A smooth max(value, floor), so that a scale can neither vanish nor lose its gradient."""
    return floor + F.softplus(value - floor)


def gaussian_log_density(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Elementwise log N(x; mean, exp(log_sigma)^2), in nats."""
    return -0.5 * ((x - mean) * torch.exp(-log_sigma)).square() - log_sigma - 0.5 * math.log(2 * math.pi)


def log_normal_mass(centre: Tensor, width: Tensor) -> Tensor:
    """Elementwise log(Phi(centre + width / 2) - Phi(centre - width / 2)), finite in both tails and for any width > 0.

    Where the bin is narrow the difference would cancel, and the density's exponential tilt over the bin is integrated
    instead: phi(c) width sinh(u) / u with u = |c| width / 2, and the curvature's factor exp(-width^2 / 24).
    """
    eps = torch.finfo(centre.dtype).eps
    narrow = width < eps**0.25
    left = -centre.abs()  # by symmetry; there Phi keeps its digits
    wide = torch.where(narrow, torch.ones_like(width), width)
    upper, lower = torch.special.log_ndtr(left + 0.5 * wide), torch.special.log_ndtr(left - 0.5 * wide)
    difference = upper + torch.log(-torch.expm1((lower - upper).clamp(max=-eps)))
    slim = torch.where(narrow, width, torch.ones_like(width))
    u = (0.5 * centre.abs() * slim).clamp(min=eps)
    tilt = u + torch.log(-torch.expm1(-2 * u) / (2 * u))
    density = -0.5 * centre.square() - 0.5 * math.log(2 * math.pi)
    return torch.where(narrow, density + torch.log(slim) + tilt - slim.square() / 24, difference)


class Observation(nn.Module, ABC):
    """Independent dimensions given the decoder's output, ``parameters_per_dim`` = P numbers for each."""

    parameters_per_dim: int

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dims = tuple(range(-len(spec.shape), 0))
        self.axis = -len(spec.shape) - 1  # of the parameters of one dimension

    @abstractmethod
    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Return log p(x | parameters) (...) of raw x that broadcasts against (..., *shape), summed over dimensions."""

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """E[x | parameters] as float (..., *shape) on the raw scale."""

    @abstractmethod
    def sample(self, parameters: Tensor, *, generator: Generator | None = None) -> Tensor:
        """A draw of x, raw (..., *shape)."""

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        """(..., P, *shape) to P tensors (..., *shape)."""
        return parameters.unbind(self.axis)


class Bernoulli(Observation):
    """Independent Bernoulli dimensions; the parameter is the logit of x = 1."""

    parameters_per_dim = 1

    def log_prob(self, parameters: Float[Tensor, "..."], x: Tensor) -> Float[Tensor, "..."]:
        """The exact log p(x | parameters)."""
        logits, target = torch.broadcast_tensors(self._split(parameters)[0], x.to(parameters))
        return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(self.dims)

    def mean(self, parameters: Tensor) -> Tensor:
        """The probability of x = 1."""
        return self._split(parameters)[0].sigmoid()

    def sample(self, parameters: Tensor, *, generator: Generator | None = None) -> Tensor:
        """A draw of zeros and ones."""
        return torch.bernoulli(self.mean(parameters), generator=generator).to(self.spec.dtype)


class Gaussian(Observation):
    """Independent normal dimensions; on binary or discrete data their mass on each level.

    Args:
        spec: The data space.
        sigma: Fixed standard deviation, or None for a log sigma of every dimension from the decoder. Its scale is that
            of the data if it is real, and of levels mapped to [-1, 1] otherwise.
    """

    def __init__(self, spec: DataSpec, *, sigma: float | None = None) -> None:
        super().__init__(spec)
        self.log_sigma = None if sigma is None else math.log(sigma)
        self.parameters_per_dim = 2 if sigma is None else 1
        self.levels = spec.levels if spec.kind in ("binary", "discrete") else None
        self.step = 1.0 if self.levels is None else 2.0 / (self.levels - 1)

    def _moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        parts = self._split(parameters)
        if self.log_sigma is not None:
            return parts[0], torch.full_like(parts[0], self.log_sigma)
        return parts[0], soft_floor(parts[1], LEAST_LOG_SIGMA)

    def log_prob(self, parameters: Float[Tensor, "..."], x: Tensor) -> Float[Tensor, "..."]:
        """The exact log density of real x, or log probability of binary or discrete x."""
        mean, log_sigma = self._moments(parameters)
        if self.levels is None:
            return gaussian_log_density(x.to(mean), mean, log_sigma).sum(self.dims)
        kept = torch.promote_types(mean.dtype, torch.float32)  # no half precision for differences of probabilities
        mean, inverse = mean.to(kept), torch.exp(-log_sigma.to(kept))
        x = x.to(kept)
        centre = (x * self.step - 1.0 - mean) * inverse
        width = self.step * inverse
        log_mass = log_normal_mass(centre, width.expand_as(centre))
        log_mass = torch.where(x == 0, torch.special.log_ndtr(centre + 0.5 * width), log_mass)
        log_mass = torch.where(x == self.levels - 1, torch.special.log_ndtr(0.5 * width - centre), log_mass)
        return log_mass.sum(self.dims)

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x]: the normal's mean for real data, the sum of P(x >= j) over the levels j > 0 otherwise; exact."""
        mean, log_sigma = self._moments(parameters)
        if self.levels is None:
            return mean
        inverse, total = torch.exp(-log_sigma), torch.zeros_like(mean)
        for level in range(1, self.levels):
            edge = (level - 0.5) * self.step - 1.0
            total += torch.special.ndtr((mean - edge) * inverse)
        return total

    def sample(self, parameters: Tensor, *, generator: Generator | None = None) -> Tensor:
        """A draw, rounded to the nearest level if there are levels."""
        mean, log_sigma = self._moments(parameters)
        y = mean + log_sigma.exp() * torch.empty_like(mean).normal_(generator=generator)
        if self.levels is not None:
            y = ((y + 1.0) / self.step).round().clamp(0, self.levels - 1)
        return y.to(self.spec.dtype)


class LogisticMixture(Observation):
    """A mixture of discretised logistics for each dimension: mixture logits, means and log scales on [-1, 1].

    Args:
        spec: The data space, with levels.
        components: Number of logistics.
    """

    def __init__(self, spec: DataSpec, *, components: int) -> None:
        super().__init__(spec)
        self.components, self.parameters_per_dim = components, 3 * components
        self.levels = spec.levels or 2
        self.step = 2.0 / (self.levels - 1)

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and log scales, each (..., components, *shape)."""
        logits, mean, log_scale = parameters.unflatten(self.axis, (3, self.components)).unbind(self.axis - 1)
        return logits.log_softmax(self.axis), mean, soft_floor(log_scale, LEAST_LOG_SIGMA)

    def log_prob(self, parameters: Float[Tensor, "..."], x: Tensor) -> Float[Tensor, "..."]:
        """The exact log p(x | parameters)."""
        log_weight, mean, log_scale = self._mixture(parameters)
        log_mass = logistic_log_prob(x.unsqueeze(self.axis), mean, log_scale, levels=self.levels, low=-1.0)
        return (log_weight + log_mass).logsumexp(self.axis).sum(self.dims)

    def mean(self, parameters: Tensor) -> Tensor:
        """E[x] = sum_j P(x >= j), exact."""
        log_weight, mean, log_scale = self._mixture(parameters)
        weight, inverse = log_weight.exp(), torch.exp(-log_scale)
        total = torch.zeros_like(mean.select(self.axis, 0))
        for level in range(1, self.levels):
            edge = (level - 0.5) * self.step - 1.0
            total += (weight * torch.sigmoid((mean - edge) * inverse)).sum(self.axis)
        return total

    def sample(self, parameters: Tensor, *, generator: Generator | None = None) -> Tensor:
        """A draw: a component, a logistic variable, its level."""
        log_weight, mean, log_scale = self._mixture(parameters)
        u = torch.empty_like(mean.narrow(self.axis, 0, 1)).uniform_(generator=generator)
        cdf = log_weight.exp().cumsum(self.axis).narrow(self.axis, 0, self.components - 1)
        chosen = (u >= cdf).sum(self.axis, keepdim=True)
        u = torch.empty_like(u).uniform_(generator=generator)
        y = mean.gather(self.axis, chosen) + log_scale.gather(self.axis, chosen).exp() * torch.logit(u)
        y = ((y.squeeze(self.axis) + 1.0) / self.step).round()
        return y.clamp(0, self.levels - 1).to(self.spec.dtype)


def build_observation(
    name: ObservationName, spec: DataSpec, *, sigma: float | None = None, components: int = 5
) -> Observation:
    """The observation model called ``name``; ``auto`` goes by the kind of the data.

    Binary data gets ``bernoulli``, discrete data ``logistic_mixture`` and real data ``gaussian``.
    """
    if spec.kind not in ("binary", "discrete", "real"):
        raise UserError(f"There is no observation model for {spec.kind} data; take binary, discrete or real data.")
    chosen = {"binary": "bernoulli", "discrete": "logistic_mixture", "real": "gaussian"}[spec.kind]
    chosen = chosen if name == "auto" else name
    if sigma is not None and not sigma > 0:
        raise UserError(f"A fixed sigma must be positive, not {sigma}.")
    if sigma is not None and chosen != "gaussian":
        raise UserError(f"sigma={sigma} is a setting of observation=gaussian; {chosen} has none.")
    if chosen == "bernoulli":
        if spec.kind != "binary":
            raise UserError(f"observation=bernoulli takes binary data, not {spec.kind}; leave it at auto.")
        return Bernoulli(spec)
    if chosen == "gaussian":
        return Gaussian(spec, sigma=sigma)
    if chosen == "logistic_mixture":
        if spec.kind == "real":
            raise UserError("observation=logistic_mixture takes data with levels, not real data; leave it at auto.")
        if components < 1:
            raise UserError(f"A logistic mixture needs at least one component, not {components}.")
        return LogisticMixture(spec, components=components)
    raise UserError(f"There is no observation model {name!r}; choose auto, bernoulli, gaussian or logistic_mixture.")
