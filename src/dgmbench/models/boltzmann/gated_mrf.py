"""Gated Markov random fields: hidden units that choose the covariance of real data, others that choose its mean.

Filters C look at whitened data, pools P <= 0 add up the squares of their responses, and every covariance unit k gets

    y_k(v) = -sum_f P_fk (C_f'v)^2 >= 0,

the violation of the constraints that it stands for. With mean units g of log-odds m + W'v and a Gaussian background,

    E(v, h, g) = sum_i lambda_i v_i^2 / 2 - b'v + sum_k E_k(h_k, y_k) - g'(m + W'v),
    F(v)       = sum_i lambda_i v_i^2 / 2 - b'v + sum_k F_k(y_k) - sum_j softplus(m_j + W_j'v)

where F_k = -log sum_h exp(-E_k) belongs to the kind of covariance unit (``Switches``, ``Precisions``). Given h and g, v
is Gaussian of precision diag(lambda) - 2 C diag(P E[h]) C', whose dense matrix every h changes: so chains move v alone,
by Hamiltonian Monte Carlo on F, whose gradient is written down:

    grad F = lambda v - b - 2 C ((C'v) * (P dF/dy)) - W sigmoid(m + W'v)

After every step of the optimiser columns of C are brought to unit norm and entries of P above 0 to 0, and the step size
of the moves follows their acceptance. log p(v) = -F(v) - log Z, log Z by annealing from N(0, I).

Shapes: v (n, d), C (d, filters), P (filters, units), W (d, means). Units: nats.
Paper: Ranzato, Mnih, Hinton 2010, "Generating more realistic images using gated MRF's",
https://papers.nips.cc/paper/2010/hash/2596a54cdbb555cfd09cd5d991da0f55-Abstract.html.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, pi
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import CHUNK, ENUMERABLE, binary_states
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.real_data import Whitened
from dgmbench.nn.hmc import Dynamics, ScoredDensity
from dgmbench.nn.unit_layers import Gaussian, Independent

ANNEALING_STEPS = 2  # leapfrog steps of a move between two temperatures, of which there are thousands


@runtime_checkable
class CovarianceUnits(Protocol):
    """What a covariance unit makes of the violation y (n, units) that it sees."""

    def free_energy(self, y: Tensor) -> Tensor:
        """-log sum_h exp(-E(h, y)) of each, like y."""
        ...

    def mean(self, y: Tensor) -> Tensor:
        """E[h | y], the derivative of the free energy."""
        ...


@dataclass(frozen=True)
class Switches:
    """Bits, E = h (y - c): a constraint is dropped, h = 0, where it is violated by much more than c."""

    bias: Tensor

    def free_energy(self, y: Tensor) -> Tensor:
        """-softplus(c - y)."""
        return -F.softplus(self.bias - y)

    def mean(self, y: Tensor) -> Tensor:
        """p(h = 1 | y)."""
        return (self.bias - y).sigmoid()


@dataclass(frozen=True)
class Precisions:
    """Gamma variables, E = h (1 + y) + (1 - gamma) log h: h | y ~ Gamma(gamma, rate 1 + y), Student-t experts."""

    log_gamma: Tensor

    def free_energy(self, y: Tensor) -> Tensor:
        """gamma log(1 + y) - log Gamma(gamma)."""
        gamma = self.log_gamma.exp()
        return gamma * y.log1p() - torch.lgamma(gamma)

    def mean(self, y: Tensor) -> Tensor:
        """gamma / (1 + y)."""
        return self.log_gamma.exp() / (1 + y)


@dataclass(frozen=True)
class GatedEnergy:
    """The energy at the parameters of one moment; it is an ``Energy``, as far as chains of v alone go."""

    log_precision: Tensor
    visible_bias: Tensor
    filters: Tensor
    pools: Tensor
    units: CovarianceUnits
    mean_weight: Tensor
    mean_bias: Tensor
    dynamics: Dynamics

    def violations(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """y, what every covariance unit sees."""
        return -((v @ self.filters).square() @ self.pools)

    def mean_logits(self, v: Float[Tensor, "n d"]) -> Float[Tensor, "n j"]:
        """Log-odds of the mean units."""
        return self.mean_bias + v @ self.mean_weight

    def free_energy(self, v: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """F(v)."""
        background = 0.5 * v.square() @ self.log_precision.exp() - v @ self.visible_bias
        hidden = self.units.free_energy(self.violations(v)).sum(-1)
        return background + hidden - F.softplus(self.mean_logits(v)).sum(-1)

    @torch.no_grad()
    def score(self, v: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
        """-F(v) and its gradient in v."""
        responses, precision, logits = v @ self.filters, self.log_precision.exp(), self.mean_logits(v)
        y = -(responses.square() @ self.pools)
        pull = self.visible_bias - precision * v + logits.sigmoid() @ self.mean_weight.t()
        pull = pull + (2 * responses * (self.units.mean(y) @ self.pools.t())) @ self.filters.t()
        value = v @ self.visible_bias - 0.5 * v.square() @ precision - self.units.free_energy(y).sum(-1)
        return value + F.softplus(logits).sum(-1), pull

    # ---- chains ----

    def gibbs(self, v: Float[Tensor, "n d"], steps: int, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """``steps`` Hamiltonian moves, each reversible with respect to p(v)."""
        return self.dynamics.run(ScoredDensity(self.score), v, steps, generator)

    def from_data(
        self, v: Float[Tensor, "n d"], steps: int, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """F(v), and where v is after ``steps`` moves."""
        return self.free_energy(v), self.gibbs(v.detach(), steps, generator)

    # ---- enumeration ----

    def given_hidden(self, h: Float[Tensor, "n k"], g: Float[Tensor, "n j"]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-integral over v of exp(-E) but for terms of h alone (n,), mean (n, d) and covariance (n, d, d) of v."""
        weights = -2 * h @ self.pools.t()  # (n, filters): what every filter adds to the precision
        precision = self.log_precision.exp().diag() + torch.einsum("if,nf,jf->nij", self.filters, weights, self.filters)
        pull = self.visible_bias + g @ self.mean_weight.t()
        root = torch.linalg.cholesky(precision)
        mean = torch.cholesky_solve(pull[..., None], root)[..., 0]
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum(1)
        value = g @ self.mean_bias + 0.5 * (mean * pull).sum(1) + 0.5 * (pull.shape[1] * log(2 * pi) - log_det)
        return value, mean, torch.cholesky_inverse(root)

    def double(self) -> "GatedEnergy":
        """The same numbers in float64, but for those of the covariance units."""
        names = ("log_precision", "visible_bias", "filters", "pools", "mean_weight", "mean_bias")
        return replace(self, **{name: getattr(self, name).double() for name in names})

    @torch.no_grad()
    def log_partition(self) -> Tensor | None:
        """Log Z in float64 over all hidden units, if they are bits and at most 20, else None."""
        units, means = self.pools.shape[1], self.mean_weight.shape[1]
        if not isinstance(self.units, Switches) or units + means > ENUMERABLE:
            return None
        total, states = [], 1 << (units + means)
        exact, bias = self.double(), self.units.bias.double()
        for start in range(0, states, CHUNK):
            hidden = binary_states(units + means, start, min(start + CHUNK, states), like=bias)
            h, g = hidden.split([units, means], dim=1)
            total.append((exact.given_hidden(h, g)[0] + h @ bias).logsumexp(0))
        return torch.stack(total).logsumexp(0)


class GatedMrf(Whitened):
    """Base of the machines of covariance units. A subclass says what these are, and how many mean units there are.

    Args:
        spec: real data, or discrete data of any number of levels.
        filters: number of filters, columns of C.
        covariances: number of covariance units, columns of P.
        means: number of mean units.
        estimator: ``CD`` or ``PCD``, whose steps are Hamiltonian moves; a copy is kept. Default: ``CD(k=1)``.
        leapfrog_steps: of one move.
        sample_steps: moves of ``sample``, started from the Gaussian with the data's moments.
    """

    pooled: ClassVar[float] = 1.0  # how far each filter is in its unit's pool at first
    background: ClassVar[float] = 0.3  # lambda at first, the precision that is left where all units are off
    name: ClassVar[str]

    def __init__(
        self,
        spec: DataSpec,
        *,
        filters: int,
        covariances: int,
        means: int,
        estimator: Estimator | None,
        leapfrog_steps: int,
        sample_steps: int,
    ) -> None:
        super().__init__(spec)
        self.refuse(spec, self.name)
        require(least=1, filters=filters, covariances=covariances, leapfrog_steps=leapfrog_steps)
        require(least=1, sample_steps=sample_steps)
        require(least=0, means=means)
        self.sample_steps, self.means = sample_steps, means
        self.filters = nn.Parameter(orthonormal(spec.dim, filters))
        pools = torch.zeros(filters, covariances)
        pools[torch.arange(filters), torch.arange(filters) % covariances] = -self.pooled
        self.pools = nn.Parameter(pools)
        self.visible_bias = nn.Parameter(torch.zeros(spec.dim))
        self.log_precision = nn.Parameter(torch.full((spec.dim,), log(self.background)))
        self.covariance_bias = nn.Parameter(torch.full((covariances,), self.first_bias()))
        if means:
            self.mean_weight = nn.Parameter(0.01 * torch.randn(spec.dim, means))
            self.mean_bias = nn.Parameter(torch.zeros(means))
        self.dynamics = Dynamics(steps=leapfrog_steps, start=0.1)
        self.map_of(spec)
        self.train_by(estimator)

    def first_bias(self) -> float:
        """Where the covariance units' own parameters start."""
        raise NotImplementedError(f"{type(self).__name__} must define first_bias()")

    def covariance_units(self, bias: Tensor) -> CovarianceUnits:
        """The units of these parameters (k,)."""
        raise NotImplementedError(f"{type(self).__name__} must define covariance_units(bias)")

    def train_by(self, estimator: Estimator | None) -> None:
        """Also refuse estimators that need more than free energies and chains."""
        super().train_by(estimator)
        if missing := [name for name in self.estimator.needs if not hasattr(GatedEnergy, name)]:
            raise UserError(
                f"{type(self.estimator).__name__} needs the {missing[0]} of a machine's two sides, which {self.name} "
                "does not have; use model/estimator=pcd or model/estimator=cd."
            )

    # ---- the distribution ----

    def couplings(self, fast: Sequence[Tensor] | None = None) -> GatedEnergy:
        """The energy at the current parameters."""
        return GatedEnergy(
            self.log_precision,
            self.visible_bias,
            self.filters,
            self.pools,
            self.covariance_units(self.covariance_bias),
            self.mean_weight if self.means else self.visible_bias.new_zeros(len(self.visible_bias), 0),
            self.mean_bias if self.means else self.visible_bias.new_zeros(0),
            self.dynamics,
        )

    def base(self) -> Independent:
        """N(0, I), which has the data's moments."""
        one = torch.ones_like(self.visible_bias)
        return Independent(Gaussian.of(one), torch.zeros_like(one))

    def state_sizes(self) -> tuple[int, int]:
        """Dimensions, which chains carry, and hidden units."""
        return len(self.visible_bias), len(self.covariance_bias) + self.means

    def annealing_path(self) -> "HamiltonianPath":
        """From the base to this machine, with the parameters as they are now."""
        return HamiltonianPath(self)

    # ---- training ----

    @torch.no_grad()
    def constrain(self) -> None:
        """Columns of C to unit norm, P to at most 0."""
        self.filters.copy_(F.normalize(self.filters, dim=0))
        self.pools.clamp_(max=0)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Meet the constraints, then advance the chains and adapt their step size."""
        self.constrain()
        super().after_step(player, batch, generator)
        self.dynamics.absorb()

    # ---- capabilities ----

    @torch.no_grad()
    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One Hamiltonian move from raw values to raw values; leaves p(x) invariant."""
        return self.raw(self.couplings().gibbs(self.flatten(x), 1, generator))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Run n chains of ``sample_steps`` moves from the base (MCMC, not exact draws)."""
        v = self.base().sample(n, generator)
        return self.raw(self.couplings().gibbs(v, self.sample_steps, generator))

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Means of the covariance units, then of the mean units."""
        now, v = self.couplings(), self.centre(x)
        return torch.cat([now.units.mean(now.violations(v)), now.mean_logits(v).sigmoid()], 1)


def orthonormal(dim: int, columns: int) -> Float[Tensor, "dim columns"]:
    """Random unit columns, of which every ``dim`` in a row are orthogonal."""
    squares = [torch.linalg.qr(torch.randn(dim, dim))[0] for _ in range(-(-columns // dim))]
    return torch.cat(squares, 1)[:, :columns]


class HamiltonianPath:
    """log p*_beta(v) = (1 - beta) log N(v; 0, I) - beta F(v), an ``AnnealingPath`` whose steps are Hamiltonian moves.

    The values at both ends of the last states are kept: an annealing step asks for the same states at two temperatures.
    """

    def __init__(self, machine: GatedMrf) -> None:
        self.machine, self.now = machine, machine.couplings()
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def log_base_partition(self) -> Tensor:
        """Of a density: 0."""
        return torch.zeros((), dtype=torch.float64, device=self.now.visible_bias.device)

    @torch.no_grad()
    def sample_base(self, n: int, *, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """Draw n exact samples of p_0."""
        return self.machine.base().sample(n, generator)

    @torch.no_grad()
    def state_from(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, "n d"]:
        """The visible units for raw values x (n, *shape)."""
        return self.machine.state_of(x, generator)

    @torch.no_grad()
    def log_unnormalised(self, v: Float[Tensor, "n d"], beta: float) -> Float[Tensor, " n"]:
        """Log p*_beta(v), float64."""
        if self._last is None or self._last[0] is not v:
            self._last = (v, self.machine.base().log_prob(v).double(), self.now.free_energy(v).double())
        return (1 - beta) * self._last[1] - beta * self._last[2]

    @torch.no_grad()
    def transition(
        self, v: Float[Tensor, "n d"], beta: float, *, generator: Generator | None = None
    ) -> Float[Tensor, "n d"]:
        """One move at beta, reversible with respect to p_beta(v)."""

        def score(z: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = self.now.score(z)  # the base's constant is the same at both ends of a move
            return beta * value - 0.5 * (1 - beta) * z.square().sum(1), beta * gradient - (1 - beta) * z

        return self.now.dynamics.run(ScoredDensity(score), v, 1, generator, steps=ANNEALING_STEPS)

    def exact_log_partition(self) -> Tensor | None:
        """Log Z_1 over all hidden units, if they are bits and at most 20, else None."""
        return self.now.log_partition()
