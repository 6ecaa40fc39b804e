"""Gaussian-Bernoulli RBM: real visible units of learned deviations sigma over hidden bits, a mixture of 2^H Gaussians.

    E(v, h) = sum_i v_i^2 / (2 sigma_i^2) - a'(v / sigma) - (v / sigma)'W h - b'h,
    v | h ~ N(sigma (a + W h), sigma^2),
    F(v) = |v / sigma|^2 / 2 - a'(v / sigma) - sum_j softplus(b_j + (W'(v / sigma))_j)

and log p(v) = -F(v) - log Z, whose gradient is estimated as for bits (``estimators.py``), or avoided by score matching
(``score_matching.py``). Weights and biases see v / sigma, as in Hinton & Salakhutdinov (2006) and in the survey's eq.
17, not v / sigma^2 (Cho, Ilin, Raiko 2011); the constant |a|^2 / 2 of their energies is left out of E and log Z alike.
A sample of v has the variance sigma^2 around its mean: the mean alone is not a sample.

*Scale.* v = (x - mean) / deviation by the training data's moments, which are buffers; log p(x) is of raw x, so the
log-determinant -sum log deviation is part of it. *Levels.* Of discrete data the density is that of x + u, u uniform
on (0, 1), and E_u log p(x + u) <= log P(x), the mass of the level: such machines have ``elbo_unnormalised`` in place of
``log_prob_unnormalised``. Samples are rounded down to levels, what lies beyond them to the outermost ones.

Shapes: raw x (b, *shape), v (b, visible), h (b, hidden). Units: nats.
Papers: Hinton, Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks",
https://doi.org/10.1126/science.1127647; Cho, Ilin, Raiko 2011, "Improved learning of Gaussian-Bernoulli restricted
Boltzmann machines", https://doi.org/10.1007/978-3-642-21735-7_2.

Different from the papers: log sigma is learned, from 0 of standardised data, where Hinton & Salakhutdinov fix sigma at
1 and Cho et al. learn log sigma^2 of their own energy; neither divides the rate of log sigma, as Adam does.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.energy_model import TwoSided
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.contract import Logs
from dgmbench.nn.bijections import dequantise
from dgmbench.nn.unit_layers import BERNOULLI, Gaussian, Independent, Units

LEAST_DEVIATION = 1e-3  # of the data, in its own units: a constant dimension has none


class GaussianRbm(TwoSided):
    """RBM of real data; ``GaussianRbm(spec)`` of data with levels is an instance of ``on_levels``.

    Args:
        spec: real data, or discrete data of any number of levels.
        hidden: number of hidden units.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        weight_std: standard deviation of the initial weights (Hinton 2012, "A practical guide to training RBMs").
        sample_steps: Gibbs steps of ``sample``, started from independent units with the data's moments.
    """

    on_levels: ClassVar[type["GaussianRbm"]]
    hidden_units: Units = BERNOULLI
    weight: nn.Parameter
    mean: Tensor
    deviation: Tensor

    def __new__(cls, spec: DataSpec | None = None, **settings: Any) -> "GaussianRbm":
        """The class for this kind of data; without a spec (copying, unpickling), the class itself."""
        levels = spec is not None and spec.kind == "discrete"
        return super().__new__(cls.on_levels if levels and not issubclass(cls, Dequantised) else cls)

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 500,
        estimator: Estimator | None = None,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec, sample_steps=sample_steps)
        self.refuse(spec)
        require(least=1, hidden=hidden)
        require(least=0, weight_std=weight_std)
        self.weight = nn.Parameter(weight_std * torch.randn(spec.dim, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(spec.dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.log_sigma = nn.Parameter(torch.zeros(spec.dim))
        self.register_buffer("mean", torch.zeros(spec.dim))
        self.register_buffer("deviation", torch.ones(spec.dim))
        self.train_by(estimator)

    def refuse(self, spec: DataSpec) -> None:
        """Raise a UserError about data that the visible units cannot take."""
        if spec.kind not in ("real", "discrete"):
            raise UserError(
                f"gaussian_rbm models real data or grey levels, but these are {spec}; of bits choose model=rbm, of "
                "others a data set such as data=digits."
            )

    # ---- the distribution ----

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Weights, biases and deviations, with ``fast`` added first if given."""
        own: list[Tensor] = [self.weight, self.visible_bias, self.hidden_bias, self.log_sigma]
        if fast is not None:
            own = [slow + quick for slow, quick in zip(own, fast, strict=True)]
        weight, a, b, log_sigma = own
        return Couplings(weight, a, b, Gaussian.of(log_sigma.exp()), self.hidden_units)

    def base(self) -> Independent:
        """Independent units with the data's moments, so N(0, I) of standardised values."""
        sigma = self.log_sigma.detach().exp()
        return Independent(Gaussian(sigma, torch.ones_like(sigma)), torch.zeros_like(sigma))

    def state_sizes(self) -> tuple[int, int]:
        """Visible and hidden units."""
        visible, hidden = self.weight.shape
        return visible, hidden

    def flatten(self, x: Tensor) -> Float[Tensor, "b v"]:
        """Raw values, or continuous ones on their scale, (b, *shape) to standardised v."""
        return (super().flatten(x) - self.mean) / self.deviation

    def continuous(self, v: Float[Tensor, "n v"]) -> Tensor:
        """Standardised v to floats (n, *shape) on the scale of x."""
        return (v * self.deviation + self.mean).view(len(v), *self.spec.shape)

    def raw(self, v: Float[Tensor, "n v"]) -> Tensor:
        """States (n, visible) to raw values (n, *shape)."""
        return self.continuous(v).to(self.spec.dtype)

    def log_prob_unnormalised(self, x: Tensor) -> Float[Tensor, " b"]:
        """Log p(x) + log Z of continuous x."""
        return super().log_prob_unnormalised(x) - self.deviation.log().sum()

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """The state of the visible units that raw x (n, *shape) is."""
        return self.flatten(x)

    def annealing_path(self) -> GeometricPath:
        """From the base to this machine, with the parameters as they are now."""
        return GeometricPath.between(self.base(), self.couplings(), upwards=self.state_of)

    # ---- training ----

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Take the data's moments, then start the estimator's chains."""
        x = batch.x.flatten(1).to(self.mean)
        self.mean.copy_(x.mean(0))
        self.deviation.copy_(x.std(0, correction=0).clamp_min(LEAST_DEVIATION))
        self.estimator.initialise(self, generator)

    # ---- capabilities ----

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Means of the hidden units."""
        return self._means(self.flatten(x))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One mean-field step up and down: means of the visible units (b, *shape)."""
        return self._reached(self.encode(x))

    def _means(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b h"]:
        """Of the hidden units given visible ones."""
        now = self.couplings()
        return now.hidden_units.mean(now.hidden_logits(v))

    def _reached(self, h: Float[Tensor, "b h"]) -> Tensor:
        """Means of the visible units given hidden ones, floats (b, *shape) on the scale of x."""
        now = self.couplings()
        return self.continuous(now.visible_units.mean(now.visible_bias + h @ now.weight.t()) * self.log_sigma.exp())


class Dequantised(GaussianRbm):
    """Mixed into a machine of real data, this makes it one of x + u for data with levels: a bound in place of log p."""

    log_prob_unnormalised = None  # type: ignore[assignment]  # typing's way to say that a protocol's method is not there
    transition = None  # type: ignore[assignment]  # samples are cut off at the outermost levels, so it has no fixed point

    def dequantised(self, x: Tensor, generator: Generator | None) -> Tensor:
        """x + u, u uniform on (0, 1)."""
        return dequantise(x, self.spec.levels or 2, dtype=self.mean.dtype, generator=generator)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """The moments are those of x + u."""
        super().initialise(batch._replace(x=self.dequantised(batch.x, generator)), generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The estimator's, on new noise."""
        return super().loss(player, batch._replace(x=self.dequantised(batch.x, generator)), generator)

    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of log p(x + u) + log Z, whose mean over u bounds log P(x) + log Z from below."""
        return GaussianRbm.log_prob_unnormalised(self, self.dequantised(x, generator))

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Float[Tensor, "n v"]:
        """A draw of x + u, standardised."""
        return self.flatten(self.dequantised(x, generator))

    def raw(self, v: Float[Tensor, "n v"]) -> Tensor:
        """The levels that states lie in, the outermost ones beyond them."""
        return self.continuous(v).floor().clamp(0, (self.spec.levels or 2) - 1).to(self.spec.dtype)

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Means of the hidden units at the middle of the levels."""
        return self._means(self.flatten(x.to(self.mean.dtype) + 0.5))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One mean-field step up and down, within the levels."""
        return (self._reached(self.encode(x)) - 0.5).clamp(0, (self.spec.levels or 2) - 1)


class DequantisedGaussianRbm(Dequantised):
    """Gaussian RBM of data with levels."""


GaussianRbm.on_levels = DequantisedGaussianRbm
