"""Estimators of an RBM's log-likelihood gradient: what stands in for the intractable negative phase.

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

Persistent chains advance after the optimiser's step, under the new parameters, and the next ``loss`` uses them: the
textbook order, in which the chains meet every set of parameters once.
"""

from math import log
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.errors import require
from dgmbench.models.boltzmann.couplings import Couplings, draw
from dgmbench.models.contract import Logs


@runtime_checkable
class Machine(Protocol):
    """What an estimator needs of the model that it trains."""

    base_logits: Tensor

    def couplings(self, fast: Couplings | None = None) -> Couplings:
        """The current weights and biases, with ``fast`` added if given."""
        ...

    def slow_gradient(self) -> Couplings:
        """The gradient of the last loss that moved the weights and biases."""
        ...


def _contrast(data: Tensor, model: Tensor) -> tuple[Tensor, Logs]:
    """Mean free energy of the data minus that of the fantasy particles."""
    data, model = data.mean(), model.mean()
    return data - model, {"free_energy_data": data.detach(), "free_energy_model": model.detach()}


def _free_energies(now: Couplings, v: Tensor, fantasy: Tensor) -> tuple[Tensor, Tensor]:
    """F of data and of fantasy particles from one matrix product, forwards and backwards."""
    both = now.free_energy(torch.cat([v, fantasy]))
    return both[: len(v)], both[len(v) :]


class Estimator(nn.Module):
    """Base of the estimators."""

    binary_only: ClassVar[bool] = False  # whether the data must be 0 and 1, not means in between

    def attach(self, visible: int, hidden: int) -> None:
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
        """F(v) - F(v-); the hidden units' log-odds serve both F(v) and the first half of the chain."""
        now = rbm.couplings()
        logits = now.hidden_logits(v)
        with torch.no_grad():
            chain = now.detached()
            negative = chain.sample_visible(draw(logits.sigmoid(), generator), generator)
            negative = chain.gibbs(negative, self.k - 1, generator)
        data = -(v @ now.visible_bias) - F.softplus(logits).sum(-1)
        return _contrast(data, now.free_energy(negative))


class PCD(Estimator):
    """Persistent contrastive divergence: ``chains`` fantasy particles, whatever the batch size."""

    chain: Tensor

    def __init__(self, *, k: int = 1, chains: int = 100) -> None:
        super().__init__()
        require("model.estimator", least=1, k=k, chains=chains)
        self.k, self.chains = k, chains

    def attach(self, visible: int, hidden: int) -> None:
        """The particles' visible states."""
        self.register_buffer("chain", torch.zeros(self.chains, visible))

    @torch.no_grad()
    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Base rates, then k steps."""
        self.chain.copy_(draw(rbm.base_logits.sigmoid().expand_as(self.chain), generator))
        self.chain.copy_(rbm.couplings().gibbs(self.chain, self.k, generator))

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - F(particles as they are)."""
        return _contrast(*_free_energies(rbm.couplings(), v, self.chain))

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

    fast_weight: Tensor
    fast_visible_bias: Tensor
    fast_hidden_bias: Tensor

    def __init__(self, *, k: int = 1, chains: int = 100, fast_rate: float = 0.01, decay: float = 19 / 20) -> None:
        super().__init__(k=k, chains=chains)
        require("model.estimator", least=0, fast_rate=fast_rate)
        require("model.estimator", least=0, most=1, decay=decay)
        self.fast_rate, self.decay = fast_rate, decay

    def attach(self, visible: int, hidden: int) -> None:
        """The particles and the fast weights."""
        super().attach(visible, hidden)
        self.register_buffer("fast_weight", torch.zeros(visible, hidden))
        self.register_buffer("fast_visible_bias", torch.zeros(visible))
        self.register_buffer("fast_hidden_bias", torch.zeros(hidden))

    def fast(self) -> Couplings:
        """The fast weights and biases."""
        return Couplings(self.fast_weight, self.fast_visible_bias, self.fast_hidden_bias)

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - E(v-, h-) + H(h-), h- the probabilities under weights + fast weights: gradient <v h'> - <v- h-'>.

        The constant entropy H makes the second term a variational free energy, F(v-) itself at fast weights 0.
        """
        now = rbm.couplings()
        with torch.no_grad():
            logits = rbm.couplings(self.fast()).hidden_logits(self.chain)
            hidden = logits.sigmoid()
            entropy = (F.softplus(logits) - hidden * logits).sum(-1)
        return _contrast(now.free_energy(v), now.energy(self.chain, hidden) - entropy)

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

    Temperature beta has the energy beta E, so beta = 0 is uniform and mixes at once. A sweep is one Gibbs step at every
    temperature, then proposals to swap neighbours, first the pairs (1, 2), (3, 4), ..., then (2, 3), (4, 5), ....
    """

    betas: Tensor
    visible: Tensor
    hidden: Tensor

    def __init__(self, *, k: int = 1, chains: int = 100, temperatures: int = 10) -> None:
        super().__init__()
        require("model.estimator", least=1, k=k, chains=chains)
        require("model.estimator", least=2, temperatures=temperatures)
        self.k, self.chains, self.temperatures = k, chains, temperatures

    def attach(self, visible: int, hidden: int) -> None:
        """The states (temperatures, chains, units) and the inverse temperatures."""
        self.register_buffer("betas", torch.linspace(0, 1, self.temperatures))
        self.register_buffer("visible", torch.zeros(self.temperatures, self.chains, visible))
        self.register_buffer("hidden", torch.zeros(self.temperatures, self.chains, hidden))

    @torch.no_grad()
    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Base rates at every temperature, then k sweeps."""
        self.visible.copy_(draw(rbm.base_logits.sigmoid().expand_as(self.visible), generator))
        self.hidden.copy_(self._given(rbm.couplings().hidden_logits(self.visible.flatten(0, 1)), generator))
        self.sweep(rbm.couplings(), self.k, generator)

    def _given(self, logits: Tensor, generator: Generator | None) -> Tensor:
        """Draw units whose log-odds at beta = 1 are given for all temperatures, (M chains, units)."""
        tempered = self.betas[:, None, None] * logits.view(self.temperatures, self.chains, -1)
        return draw(tempered.sigmoid_(), generator)

    @torch.no_grad()
    def gibbs(self, now: Couplings, generator: Generator | None = None) -> None:
        """Draw v given h, then h given v, at every temperature in one batched product."""
        self.visible.copy_(self._given(now.visible_logits(self.hidden.flatten(0, 1)), generator))
        self.hidden.copy_(self._given(now.hidden_logits(self.visible.flatten(0, 1)), generator))

    @torch.no_grad()
    def swap(self, now: Couplings, generator: Generator | None = None) -> None:
        """Propose to exchange the states of neighbouring temperatures, even pairs and then odd pairs."""
        energy = now.energy(self.visible.flatten(0, 1), self.hidden.flatten(0, 1)).view(self.temperatures, self.chains)
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

    def sweep(self, now: Couplings, steps: int, generator: Generator | None = None) -> None:
        """``steps`` times Gibbs and swaps."""
        for _ in range(steps):
            self.gibbs(now, generator)
            self.swap(now, generator)

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - F(states at beta = 1)."""
        return _contrast(*_free_energies(rbm.couplings(), v, self.visible[-1]))

    def after_step(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> None:
        """Run k sweeps under the new parameters."""
        self.sweep(rbm.couplings(), self.k, generator)


class RatioMatching(Estimator):
    """Match the ratios p(v) / p(v with bit i flipped), in which Z cancels: mean of sum_i sigma(F(v) - F(v^i))^2.

    The hidden units' log-odds after a flip differ by one row of W, so the cost is O(batch visible hidden), no product.
    """

    binary_only = True

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """The objective; it needs 0/1 data and no negative phase."""
        now = rbm.couplings()
        sign = 1 - 2 * v  # the change of v_i by its flip
        logits = now.hidden_logits(v)
        flipped = F.softplus(logits[:, None, :] + sign[:, :, None] * now.weight).sum(-1)
        excess = F.softplus(logits).sum(-1, keepdim=True)
        objective = (flipped + sign * now.visible_bias - excess).sigmoid().square().sum(-1).mean()
        return objective, {}


class NCE(Estimator):
    """Noise-contrastive estimation: tell data from ``nu`` draws per datum of independent bits with the data's means.

    With G(u) = -F(u) - log Z - log p_noise(u) - log nu the loss is -E_data log sigma(G) - nu E_noise log sigma(-G);
    log Z is a parameter of its own, started at its value for independent units.
    """

    binary_only = True

    def __init__(self, *, nu: int = 10) -> None:
        super().__init__()
        require("model.estimator", least=1, nu=nu)
        self.nu = nu
        self.log_z = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Log Z of the machine without its weights."""
        now = rbm.couplings()
        self.log_z.copy_(F.softplus(now.visible_bias).sum() + F.softplus(now.hidden_bias).sum())

    def log_ratio(self, rbm: Machine, u: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
        """G(u), the log-odds that u is data."""
        noise = u @ rbm.base_logits - F.softplus(rbm.base_logits).sum()
        return -rbm.couplings().free_energy(u) - self.log_z - noise - log(self.nu)

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """Logistic loss of data against fresh noise."""
        noise = draw(rbm.base_logits.sigmoid().expand(self.nu * len(v), -1), generator)
        data, false = self.log_ratio(rbm, v), self.log_ratio(rbm, noise)
        loss = F.softplus(-data).mean() + self.nu * F.softplus(false).mean()
        return loss, {"log_z": self.log_z.detach().clone()}
