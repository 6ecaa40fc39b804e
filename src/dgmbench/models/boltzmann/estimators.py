"""Estimators of a machine's log-likelihood gradient: what stands in for the intractable negative phase.

Each has ``loss``, a scalar whose gradient is the estimate (it changes no state), and ``after_step``, which moves the
estimator's own state (buffers) after the optimiser's step. v are data (b, visible), v- fantasy particles, F is the
free energy.

=============  =====================================================================================================
CD             F(v) - F(v-), v- after k Gibbs steps from v (Hinton 2002)
PCD            F(v) - F(v-), v- chains that persist between updates (Younes 1998; Tieleman 2008)
FPCD           PCD whose chains move under weights + fast weights (Tieleman & Hinton 2009)
PT             PCD with chains at several temperatures that swap states (Desjardins 2010; Cho, Raiko, Ilin 2010)
RatioMatching  sum_i sigma(F(v) - F(v with bit i flipped))^2 (Hyvarinen 2007, "Some extensions of score matching")
NCE            logistic regression between data and noise, log Z a parameter (Gutmann & Hyvarinen 2010)
=============  =====================================================================================================

An estimator knows nothing of the machine but ``Machine`` and ``Energy``: the *positive phase* is the machine's (its
exact free energy, or a mean-field bound of it), and particles are states of whatever its chains carry: visible units of
an RBM, one parity of the layers of a deep machine, all units where none can be summed out.

Persistent chains advance after the optimiser's step, under the new parameters, and the next ``loss`` uses them: the
textbook order, in which the chains meet every set of parameters once.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.errors import require
from dgmbench.models.contract import Logs
from dgmbench.nn.unit_layers import Independent, draw


@runtime_checkable
class Energy(Protocol):
    """An energy at the parameters of one moment. Chains carry states v (n, d); h is the rest of the units."""

    def free_energy(self, v: Tensor) -> Tensor:
        """-log sum_h exp(-E(v, h)), (n,)."""
        ...

    def variational_free_energy(self, v: Tensor, under: Any) -> Tensor:
        """E_q E(v, h) - H(q) with q = p(h | v) under another energy, (n,); no gradient through q."""
        ...

    def gibbs(self, v: Tensor, steps: int, generator: Generator | None = None) -> Tensor:
        """``steps`` steps of a chain that leaves exp(-free_energy) unchanged, without gradients."""
        ...

    def hidden_at(self, v: Tensor, beta: Tensor, generator: Generator | None = None) -> Tensor:
        """h given v at inverse temperatures beta (n, 1)."""
        ...

    def sweep(self, v: Tensor, h: Tensor, beta: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """One step of all units at inverse temperatures beta (n, 1)."""
        ...

    def tempered_energy(self, v: Tensor, h: Tensor) -> Tensor:
        """The part of E(v, h) that beta multiplies, (n,)."""
        ...


@runtime_checkable
class Machine(Protocol):
    """What an estimator needs of the model that it trains; ``EnergyModel`` is its base."""

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Any:
        """The ``Energy`` at the current parameters, with ``fast`` added to the overlaid ones if given."""
        ...

    def overlaid(self) -> Mapping[str, Tensor]:
        """The parameters that fast weights lie over, by name."""
        ...

    def slow_gradient(self) -> Sequence[Tensor]:
        """The gradients of the last loss that moved these parameters."""
        ...

    def base(self) -> Independent:
        """Independent units with the data's moments: where chains start, and the noise of NCE."""
        ...

    def state_sizes(self) -> tuple[int, int]:
        """Units that chains carry, and units besides."""
        ...

    def positive(self, now: Any, v: Tensor, generator: Generator | None = None) -> Tensor:
        """Free energy of data v (b, visible), or a bound of it, (b,)."""
        ...

    def contrast(self, now: Any, v: Tensor, particles: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """``positive`` of data, and the free energy of particles."""
        ...

    def from_data(self, now: Any, v: Tensor, steps: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """``positive`` of data, and particles after ``steps`` steps of chains that start at the data."""
        ...


def _contrast(data: Tensor, model: Tensor) -> tuple[Tensor, Logs]:
    """Mean free energy of the data minus that of the fantasy particles."""
    data, model = data.mean(), model.mean()
    return data - model, {"free_energy_data": data.detach(), "free_energy_model": model.detach()}


class Estimator(nn.Module):
    """Base of the estimators."""

    binary_only: ClassVar[bool] = False  # whether the data must be 0 and 1, not means in between
    persistent: ClassVar[bool] = False  # whether chains live on between batches
    learns_log_z: ClassVar[bool] = False  # as a number, so that it must be one for all examples
    kinds: ClassVar[tuple[str, ...]] = ("binary", "discrete", "real", "counts")  # of data that it is for
    otherwise: ClassVar[str] = ""  # what it needs, and what to use of other data
    needs: ClassVar[tuple[str, ...]] = ()  # of an energy, beside ``free_energy`` and ``gibbs``

    @property
    def particles(self) -> Tensor | None:
        """States (chains, d) that follow the model itself; None where no chains persist."""
        return None

    def attach(self, rbm: Machine) -> None:
        """Register the buffers and parameters for a machine of this size; called once, by the machine."""

    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Set the state before the first update."""

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """Return the scalar to minimise and detached scalars to log."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(rbm, v, generator)")

    def after_step(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> None:
        """Move the state after the optimiser's step."""


class CD(Estimator):
    """Contrastive divergence: the chain starts at the data and runs k Gibbs steps."""

    def __init__(self, *, k: int = 1) -> None:
        super().__init__()
        require("model.estimator", least=1, k=k)
        self.k = k

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - F(v-)."""
        now = rbm.couplings()
        data, negative = rbm.from_data(now, v, self.k, generator)
        return _contrast(data, now.free_energy(negative))


class PCD(Estimator):
    """Persistent contrastive divergence: ``chains`` fantasy particles, whatever the batch size."""

    persistent = True
    chain: Tensor

    def __init__(self, *, k: int = 1, chains: int = 100) -> None:
        super().__init__()
        require("model.estimator", least=1, k=k, chains=chains)
        self.k, self.chains = k, chains

    @property
    def particles(self) -> Tensor:
        """The chains' states."""
        return self.chain

    def attach(self, rbm: Machine) -> None:
        """The particles' states."""
        self.register_buffer("chain", torch.zeros(self.chains, rbm.state_sizes()[0]))

    @torch.no_grad()
    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Base rates, then k steps."""
        self.chain.copy_(rbm.base().sample(self.chains, generator))
        self.chain.copy_(rbm.couplings().gibbs(self.chain, self.k, generator))

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - F(particles as they are)."""
        return _contrast(*rbm.contrast(rbm.couplings(), v, self.chain, generator))

    @torch.no_grad()
    def after_step(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> None:
        """Move the particles k Gibbs steps under the new parameters."""
        self.chain.copy_(rbm.couplings().gibbs(self.chain, self.k, generator))


class FPCD(PCD):
    """PCD with fast weights, an overlay that learns and decays quickly and drives the particles from where they are.

    The negative phase (moving the particles, and their hidden units' probabilities) uses weights + fast weights; the
    positive phase and the model use the weights alone. fast <- decay fast + fast_rate g, with g the same gradient that
    has just moved the weights.
    """

    needs = ("variational_free_energy",)

    def __init__(self, *, k: int = 1, chains: int = 100, fast_rate: float = 0.01, decay: float = 19 / 20) -> None:
        super().__init__(k=k, chains=chains)
        require("model.estimator", least=0, fast_rate=fast_rate)
        require("model.estimator", least=0, most=1, decay=decay)
        self.fast_rate, self.decay = fast_rate, decay

    def attach(self, rbm: Machine) -> None:
        """The particles, and a fast weight for every overlaid parameter."""
        super().attach(rbm)
        self.names = [f"fast_{name.replace('.', '_')}" for name in rbm.overlaid()]
        for name, parameter in zip(self.names, rbm.overlaid().values(), strict=True):
            self.register_buffer(name, torch.zeros_like(parameter))

    def fast(self) -> tuple[Tensor, ...]:
        """The fast weights and biases, in the order of the overlaid parameters."""
        return tuple(getattr(self, name) for name in self.names)

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - E(v-, h-) + H(h-), h- the probabilities under weights + fast weights: gradient <v h'> - <v- h-'>.

        The constant entropy H makes the second term a variational free energy, F(v-) itself at fast weights 0.
        """
        now = rbm.couplings()
        with torch.no_grad():
            overlaid = rbm.couplings(self.fast())
        return _contrast(rbm.positive(now, v, generator), now.variational_free_energy(self.chain, overlaid))

    @torch.no_grad()
    def after_step(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> None:
        """Update the fast weights, then k Gibbs steps under weights + fast weights."""
        for fast, gradient in zip(self.fast(), rbm.slow_gradient(), strict=True):
            fast.mul_(self.decay).sub_(gradient, alpha=self.fast_rate)  # the loss falls along -gradient
        self.chain.copy_(rbm.couplings(self.fast()).gibbs(self.chain, self.k, generator))


def swap_probability(beta_a: Tensor, beta_b: Tensor, energy_a: Tensor, energy_b: Tensor) -> Tensor:
    """min(1, exp((beta_a - beta_b)(E_a - E_b))): acceptance of exchanging the states of two temperatures."""
    return ((beta_a - beta_b) * (energy_a - energy_b)).clamp(max=0).exp()


class PT(Estimator):
    """Parallel tempering: ``chains`` times M states (v, h) at inverse temperatures 0 = beta_1 < ... < beta_M = 1.

    Temperature beta has the energy beta E (of other units than bits: but for the references), so at beta = 0 units are
    independent, bits uniform, and mix at once. A sweep is one Gibbs step at every
    temperature, then proposals to swap neighbours, first the pairs (1, 2), (3, 4), ..., then (2, 3), (4, 5), ....
    """

    persistent = True
    needs = ("sweep", "hidden_at", "tempered_energy")
    betas: Tensor
    visible: Tensor
    hidden: Tensor

    def __init__(self, *, k: int = 1, chains: int = 100, temperatures: int = 10) -> None:
        super().__init__()
        require("model.estimator", least=1, k=k, chains=chains)
        require("model.estimator", least=2, temperatures=temperatures)
        self.k, self.chains, self.temperatures = k, chains, temperatures

    @property
    def particles(self) -> Tensor:
        """The states at beta = 1."""
        return self.visible[-1]

    def attach(self, rbm: Machine) -> None:
        """The states (temperatures, chains, units) and the inverse temperatures."""
        visible, hidden = rbm.state_sizes()
        self.register_buffer("betas", torch.linspace(0, 1, self.temperatures))
        self.register_buffer("visible", torch.zeros(self.temperatures, self.chains, visible))
        self.register_buffer("hidden", torch.zeros(self.temperatures, self.chains, hidden))

    @torch.no_grad()
    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Base rates at every temperature, then k sweeps."""
        now, states = rbm.couplings(), rbm.base().sample(self.temperatures * self.chains, generator)
        self.visible.copy_(states.view_as(self.visible))
        self.hidden.copy_(now.hidden_at(states, self._beta(), generator).view_as(self.hidden))
        self.sweep(now, self.k, generator)

    def _beta(self) -> Float[Tensor, "mc 1"]:
        """The inverse temperature of every state."""
        return self.betas.repeat_interleave(self.chains)[:, None]

    @torch.no_grad()
    def gibbs(self, now: Energy, generator: Generator | None = None) -> None:
        """One sweep of the units at every temperature, in one batched product."""
        v, h = now.sweep(self.visible.flatten(0, 1), self.hidden.flatten(0, 1), self._beta(), generator)
        self.visible.copy_(v.view_as(self.visible))
        self.hidden.copy_(h.view_as(self.hidden))

    @torch.no_grad()
    def swap(self, now: Energy, generator: Generator | None = None) -> None:
        """Propose to exchange the states of neighbouring temperatures, even pairs and then odd pairs."""
        energy = now.tempered_energy(self.visible.flatten(0, 1), self.hidden.flatten(0, 1))
        energy = energy.view(self.temperatures, self.chains)
        order = torch.arange(self.temperatures, device=energy.device)[:, None].repeat(1, self.chains)
        for first in (0, 1):
            low = torch.arange(first, self.temperatures - 1, 2, device=energy.device)
            a, b = self.betas[low, None], self.betas[low + 1, None]
            p = swap_probability(a, b, energy[low], energy[low + 1])
            accepted = draw(p, generator).bool()
            for table in (energy, order):
                below, above = table[low], table[low + 1]
                table[low], table[low + 1] = torch.where(accepted, above, below), torch.where(accepted, below, above)
        for states in (self.visible, self.hidden):
            states.copy_(states.gather(0, order[:, :, None].expand_as(states)))

    def sweep(self, now: Energy, steps: int, generator: Generator | None = None) -> None:
        """``steps`` times Gibbs and swaps."""
        for _ in range(steps):
            self.gibbs(now, generator)
            self.swap(now, generator)

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - F(states at beta = 1)."""
        return _contrast(*rbm.contrast(rbm.couplings(), v, self.visible[-1], generator))

    def after_step(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> None:
        """Run k sweeps under the new parameters."""
        self.sweep(rbm.couplings(), self.k, generator)


class RatioMatching(Estimator):
    """Match the ratios p(v) / p(v with bit i flipped), in which Z cancels: mean of sum_i sigma(F(v) - F(v^i))^2.

    The inputs of the hidden units after a flip differ by one row of W, so the cost is O(batch visible hidden), no
    product. It is for machines of two sides, ``Couplings``, whose visible units are bits.
    """

    binary_only = True
    needs = ("hidden_logits", "hidden_units")
    kinds = ("binary",)
    otherwise = "it flips bits; of real values the like is model/estimator=score_matching"

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """The objective; it needs 0/1 data and no negative phase."""
        now = rbm.couplings()
        sign = 1 - 2 * v  # the change of v_i by its flip
        logits = now.hidden_logits(v)
        hidden = now.hidden_units
        flipped = hidden.log_partition(logits[:, None, :] + sign[:, :, None] * now.weight)
        excess = hidden.log_partition(logits)[:, None]
        objective = (flipped + sign * now.visible_bias - excess).sigmoid().square().sum(-1).mean()
        return objective, {}


class NCE(Estimator):
    """Noise-contrastive estimation: tell data from ``nu`` draws per datum of the machine's base, independent units.

    With G(u) = -F(u) - log Z - log p_noise(u) - log nu the loss is -E_data log sigma(G) - nu E_noise log sigma(-G);
    log Z is a parameter of its own, started at its value for independent units.
    """

    binary_only = True  # its noise is of the data's own space
    learns_log_z = True

    def __init__(self, *, nu: int = 10) -> None:
        super().__init__()
        require("model.estimator", least=1, nu=nu)
        self.nu = nu
        self.log_z = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Log Z of the machine without its weights, of two sides."""
        now = rbm.couplings()
        visible, hidden = (
            now.visible_units.log_partition(now.visible_bias),
            now.hidden_units.log_partition(now.hidden_bias),
        )
        self.log_z.copy_(visible + hidden)

    def log_ratio(self, rbm: Machine, u: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
        """G(u), the log-odds that u is data."""
        return -rbm.positive(rbm.couplings(), u) - self.log_z - rbm.base().log_prob(u) - log(self.nu)

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """Logistic loss of data against fresh noise."""
        noise = rbm.base().sample(self.nu * len(v), generator)
        data, false = self.log_ratio(rbm, v), self.log_ratio(rbm, noise)
        loss = F.softplus(-data).mean() + self.nu * F.softplus(false).mean()
        return loss, {"log_z": self.log_z.detach().clone()}
