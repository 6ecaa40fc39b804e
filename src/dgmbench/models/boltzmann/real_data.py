"""Machines of real data: an affine map from x to the v that chains carry, and noise on data with levels.

*Scale.* ``Standardised`` takes v = (x - mean) / deviation, ``Whitened`` v = L^(-1/2) U'(x - mean) with all principal
components U of the training data and their variances L. Both are buffers that ``initialise`` sets, and log p(x) is of
raw x, so that log |det dv/dx| is part of it. N(0, I), the base of annealing, is then the best Gaussian of the data, of
independent dimensions in the one case and of full covariance in the other.

*Levels.* Of discrete data the density is that of x + u, u uniform on (0, 1), and E_u log p(x + u) <= log P(x), the
mass of the level: such machines have ``elbo_unnormalised`` in place of ``log_prob_unnormalised``. Samples are rounded
down to levels, what lies beyond them to the outermost ones.

Shapes: raw x (b, *shape), v (b, d). Units: nats.
"""

from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.couplings import GeometricPath
from dgmbench.models.boltzmann.energy_model import EnergyModel, TwoSided
from dgmbench.models.contract import Logs
from dgmbench.nn.bijections import dequantise
from dgmbench.nn.unit_layers import Gaussian, Independent

LEAST_DEVIATION = 1e-3  # of the data, in its own units: a constant dimension has none


class OfRealData(EnergyModel):
    """Base of the machines of real data; of data with levels, ``Machine(spec)`` is an instance of ``on_levels``.

    A subclass has a buffer ``mean``, and says what its map is.
    """

    on_levels: ClassVar[type["OfRealData"]]
    mean: Tensor

    def __new__(cls, spec: DataSpec | None = None, **settings: Any) -> "OfRealData":
        """The class for this kind of data; without a spec (copying, unpickling), the class itself."""
        levels = spec is not None and spec.kind == "discrete"
        return super().__new__(cls.on_levels if levels and not issubclass(cls, Dequantised) else cls)

    def refuse(self, spec: DataSpec, name: str) -> None:
        """Raise a UserError about data that the visible units of the model called ``name`` cannot take."""
        if spec.kind not in ("real", "discrete"):
            raise UserError(
                f"{name} models real data or grey levels, but these are {spec}; of bits choose model=rbm, of "
                "others a data set such as data=digits."
            )

    # ---- the map ----

    def flatten(self, x: Tensor) -> Float[Tensor, "b d"]:
        """Raw values, or continuous ones on their scale, (b, *shape) to v."""
        raise NotImplementedError(f"{type(self).__name__} must define flatten(x)")

    def continuous(self, v: Float[Tensor, "n d"]) -> Tensor:
        """v to floats (n, *shape) on the scale of x."""
        raise NotImplementedError(f"{type(self).__name__} must define continuous(v)")

    def log_volume(self) -> Float[Tensor, ""]:
        """Log |det dv/dx|."""
        raise NotImplementedError(f"{type(self).__name__} must define log_volume()")

    def take_moments(self, x: Float[Tensor, "n d"]) -> None:
        """Set the map by training data on their own scale."""
        raise NotImplementedError(f"{type(self).__name__} must define take_moments(x)")

    def raw(self, v: Float[Tensor, "n d"]) -> Tensor:
        """States (n, d) to raw values (n, *shape)."""
        return self.continuous(v).to(self.spec.dtype)

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """The state of the visible units that raw x (n, *shape) is."""
        return self.flatten(x)

    def centre(self, x: Tensor) -> Float[Tensor, "n d"]:
        """The state that stands for raw x where none is drawn."""
        return self.flatten(x)

    def expected(self, v: Float[Tensor, "n d"]) -> Tensor:
        """Mean states to floats (n, *shape) on the raw scale."""
        return self.continuous(v)

    # ---- likelihood and training ----

    def log_prob_unnormalised(self, x: Tensor) -> Float[Tensor, " b"]:
        """Log p(x) + log Z of continuous x."""
        return self.log_volume() - cast(Tensor, self.couplings().free_energy(self.flatten(x)))

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Take the data's moments, then start the estimator's chains."""
        self.take_moments(batch.x.flatten(1).to(self.mean))
        self.estimator.initialise(self, generator)


class Standardised(OfRealData):
    """v = (x - mean) / deviation. A subclass calls ``map_of(spec)`` in its constructor."""

    deviation: Tensor

    def map_of(self, spec: DataSpec) -> None:
        """Register the buffers."""
        self.register_buffer("mean", torch.zeros(spec.dim))
        self.register_buffer("deviation", torch.ones(spec.dim))

    def flatten(self, x: Tensor) -> Float[Tensor, "b d"]:
        """Standardised."""
        return (EnergyModel.flatten(self, x) - self.mean) / self.deviation

    def continuous(self, v: Float[Tensor, "n d"]) -> Tensor:
        """Its inverse."""
        return (v * self.deviation + self.mean).view(len(v), *self.spec.shape)

    def log_volume(self) -> Float[Tensor, ""]:
        """Minus the sum of the logarithms of the deviations."""
        return -self.deviation.log().sum()

    def take_moments(self, x: Float[Tensor, "n d"]) -> None:
        """Mean and deviation of each dimension."""
        self.mean.copy_(x.mean(0))
        self.deviation.copy_(x.std(0, correction=0).clamp_min(LEAST_DEVIATION))


class Whitened(OfRealData):
    """v = (x - mean) whitening, the principal components at variance 1, the largest first.

    A subclass calls ``map_of(spec)`` in its constructor.
    """

    whitening: Tensor
    colouring: Tensor
    log_scale: Tensor

    def map_of(self, spec: DataSpec) -> None:
        """Register the buffers: both ways, and the log-determinant."""
        self.register_buffer("mean", torch.zeros(spec.dim))
        self.register_buffer("whitening", torch.eye(spec.dim))
        self.register_buffer("colouring", torch.eye(spec.dim))
        self.register_buffer("log_scale", torch.zeros(()))

    def flatten(self, x: Tensor) -> Float[Tensor, "b d"]:
        """Whitened."""
        return (EnergyModel.flatten(self, x) - self.mean) @ self.whitening

    def continuous(self, v: Float[Tensor, "n d"]) -> Tensor:
        """Its inverse."""
        return (v @ self.colouring + self.mean).view(len(v), *self.spec.shape)

    def log_volume(self) -> Float[Tensor, ""]:
        """Minus half the sum of the logarithms of the variances."""
        return self.log_scale

    def take_moments(self, x: Float[Tensor, "n d"]) -> None:
        """Mean, principal components and their variances, in float64."""
        x = x.double()
        mean = x.mean(0)
        covariance = (x - mean).t() @ (x - mean) / len(x)
        variances, directions = torch.linalg.eigh(covariance)
        deviations = variances.flip(0).clamp_min(LEAST_DEVIATION**2).sqrt()
        directions = directions.flip(1)
        self.mean.copy_(mean)
        self.whitening.copy_(directions / deviations)
        self.colouring.copy_((directions * deviations).t())
        self.log_scale.copy_(-deviations.log().sum())

    def seen_by(self, weights: Float[Tensor, "d k"]) -> Tensor:
        """What k weights of v are as weights of x: pictures (k, *shape) of filters."""
        return (self.whitening @ weights).t().reshape(-1, *self.spec.shape)


class Dequantised(OfRealData):
    """Mixed into a machine of real data, this makes it one of x + u for data with levels: a bound in place of log p."""

    log_prob_unnormalised: Any = None  # typing's way to say that a protocol's method is not there
    transition: Any = None  # samples are cut off at the outermost levels, so it has no fixed point

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
        return OfRealData.log_prob_unnormalised(self, self.dequantised(x, generator))

    def state_of(self, x: Tensor, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """A draw of x + u."""
        return self.flatten(self.dequantised(x, generator))

    def raw(self, v: Float[Tensor, "n d"]) -> Tensor:
        """The levels that states lie in, the outermost ones beyond them."""
        return self.continuous(v).floor().clamp(0, (self.spec.levels or 2) - 1).to(self.spec.dtype)

    def centre(self, x: Tensor) -> Float[Tensor, "n d"]:
        """The middle of the levels."""
        return self.flatten(x.to(self.mean.dtype) + 0.5)

    def expected(self, v: Float[Tensor, "n d"]) -> Tensor:
        """Means within the levels."""
        return (self.continuous(v) - 0.5).clamp(0, (self.spec.levels or 2) - 1)


class GaussianSided(OfRealData, TwoSided):
    """Two sides, the visible one Gaussian: a subclass has ``weight`` (d, h), ``visible_bias`` and ``log_sigma``."""

    weight: nn.Parameter
    visible_bias: nn.Parameter
    log_sigma: nn.Parameter

    def base(self) -> Independent:
        """N(0, I), which has the data's moments."""
        sigma = self.log_sigma.detach().exp()
        return Independent(Gaussian(sigma, torch.ones_like(sigma)), torch.zeros_like(sigma))

    def state_sizes(self) -> tuple[int, int]:
        """Visible and hidden units."""
        visible, hidden = self.weight.shape
        return visible, hidden

    def annealing_path(self) -> GeometricPath:
        """From the base to this machine, with the parameters as they are now."""
        return GeometricPath.between(self.base(), self.couplings(), upwards=self.state_of)

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Mean features of the hidden units."""
        now = self.couplings()
        return now.hidden_units.mean(now.hidden_logits(self.centre(x)))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One mean-field step up and down: means of the visible units, floats (b, *shape) on the raw scale."""
        now = self.couplings()
        eta = now.visible_bias + self.encode(x) @ now.weight.t()
        return self.expected(now.visible_units.mean(eta) * self.log_sigma.exp())
