"""Persistent chains that leave a mode by way of higher temperatures: tempered transitions, and coupled tempering.

At an inverse temperature beta states (v, h) follow p_beta proportional to exp(-beta E), references left alone; beta = 1
is the machine.

*Tempered transitions* (Neal 1996; Salakhutdinov 2009): each particle is heated step by step, cooled step by step by the
reversed moves, and the end is accepted as a whole,

    1 = beta_0 > ... > beta_n,   x^_i after a move at beta_i on the way up, x~_i before one on the way down,
    log ratio = sum_{i < n} (beta_i - beta_{i+1}) (E(x^_i) - E(x~_i)),

so that the particles' distribution is left as it is.

*Coupled adaptive simulated tempering* (Salakhutdinov 2010): beside every particle runs a chain over states and
temperatures, whose stationary distribution is p(x, k) proportional to exp(-beta_k E(x)) / g_k. Where it comes to beta =
1 its state becomes the particle's. The weights adapt (Wang & Landau 2001): log g_k grows by a step times the share of
chains at k, steps shrink as 1/t, and where all temperatures are visited alike g_k is proportional to Z_k.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.estimators import PCD, Energy, Machine
from dgmbench.models.contract import Logs
from dgmbench.nn.unit_layers import draw


class TemperedTransitions(PCD):
    """PCD whose particles, after k Gibbs steps, make one tempered transition.

    Args:
        k: Gibbs steps at beta = 1 before it.
        chains: particles.
        temperatures: inverse temperatures, evenly from 1 to ``lowest``, both included.
        lowest: the smallest of them; far from 1 transitions are long, or rarely accepted.
    """

    betas: Tensor
    accepted: Tensor

    def __init__(self, *, k: int = 1, chains: int = 100, temperatures: int = 20, lowest: float = 0.9) -> None:
        super().__init__(k=k, chains=chains)
        require("model.estimator", least=2, temperatures=temperatures)
        require("model.estimator", least=0, below=1, lowest=lowest)
        self.temperatures, self.lowest = temperatures, lowest

    def attach(self, rbm: Machine) -> None:
        """The particles, the temperatures, and the share of transitions accepted last."""
        super().attach(rbm)
        require_two_sides(rbm, self)
        self.register_buffer("betas", torch.linspace(1.0, self.lowest, self.temperatures))
        self.register_buffer("accepted", torch.zeros(()))

    @torch.no_grad()
    def transition(
        self, now: Energy, v: Float[Tensor, "n d"], generator: Generator | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """States after one tempered transition that leaves exp(-free_energy) unchanged, and which were accepted."""
        betas = [beta.expand(len(v), 1) for beta in self.betas]
        gaps = (self.betas[:-1] - self.betas[1:]).tolist()
        start, x, h = v, v, now.hidden_at(v, betas[0], generator)
        log_ratio = torch.zeros(len(v), dtype=v.dtype, device=v.device)
        for beta, gap in zip(betas[1:], gaps, strict=True):
            log_ratio = log_ratio + gap * now.tempered_energy(x, h)
            x, h = now.sweep(x, h, beta, generator)
        for beta, gap in zip(reversed(betas[1:]), reversed(gaps), strict=True):
            h = now.hidden_at(x, beta, generator)  # the sweep reversed: h given v, then v given h
            x = now.sweep(x, h, beta, generator)[0]
            log_ratio = log_ratio - gap * now.tempered_energy(x, h)
        accepted = draw(log_ratio.clamp(max=0).exp(), generator)
        return torch.where(accepted[:, None] > 0, x, start), accepted

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - F(particles as they are)."""
        loss, logs = super().loss(rbm, v, generator)
        return loss, {**logs, "accepted": self.accepted.clone()}

    @torch.no_grad()
    def after_step(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> None:
        """Move the particles k Gibbs steps and one transition under the new parameters."""
        now = rbm.couplings()
        moved, accepted = self.transition(now, now.gibbs(self.chain, self.k, generator), generator)
        self.chain.copy_(moved)
        self.accepted.copy_(accepted.mean())


class CAST(PCD):
    """PCD whose every particle is coupled with a chain of adaptive simulated tempering.

    Args:
        k: Gibbs steps of a particle, and steps of its tempering chain, an update.
        chains: particles, and tempering chains.
        temperatures: inverse temperatures, evenly from ``lowest`` to 1, both included.
        lowest: the smallest of them.
        step: how much log g grows at first, were all chains at one temperature.
        steady: updates after which the steps shrink as 1/t.
    """

    betas: Tensor
    log_g: Tensor
    level: Tensor
    tempering: Tensor
    tempering_rest: Tensor
    updates: Tensor

    def __init__(
        self,
        *,
        k: int = 1,
        chains: int = 100,
        temperatures: int = 20,
        lowest: float = 0.5,
        step: float = 1.0,
        steady: int = 100,
    ) -> None:
        super().__init__(k=k, chains=chains)
        require("model.estimator", least=2, temperatures=temperatures)
        require("model.estimator", least=0, below=1, lowest=lowest)
        require("model.estimator", least=0, step=step)
        require("model.estimator", least=1, steady=steady)
        self.temperatures, self.lowest, self.step, self.steady = temperatures, lowest, step, steady

    def attach(self, rbm: Machine) -> None:
        """The particles; states, temperatures and weights of the tempering chains."""
        super().attach(rbm)
        carried, rest = rbm.state_sizes()
        self.register_buffer("betas", torch.linspace(self.lowest, 1.0, self.temperatures))
        self.register_buffer("log_g", torch.zeros(self.temperatures))
        self.register_buffer("level", torch.arange(self.chains) % self.temperatures)
        self.register_buffer("tempering", torch.zeros(self.chains, carried))
        self.register_buffer("tempering_rest", torch.zeros(self.chains, rest))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialise(self, rbm: Machine, generator: Generator) -> None:
        """Particles and tempering chains at base rates; weights that would be right without interactions."""
        super().initialise(rbm, generator)
        now = rbm.couplings()
        states = rbm.base().sample(self.chains, generator)
        self.tempering.copy_(states)
        self.tempering_rest.copy_(now.hidden_at(states, self.betas[self.level][:, None], generator))
        energy = now.tempered_energy(self.tempering, self.tempering_rest).mean()
        self.log_g.copy_(-energy * (self.betas - self.betas[0]))

    @torch.no_grad()
    def temper(self, now: Energy, generator: Generator | None = None) -> None:
        """One step of the tempering chains at fixed weights: their units, then a proposal of a neighbouring level."""
        v, h = now.sweep(self.tempering, self.tempering_rest, self.betas[self.level][:, None], generator)
        self.tempering.copy_(v)
        self.tempering_rest.copy_(h)
        up = torch.rand(self.chains, generator=generator, device=v.device) < 0.5
        proposed = self.level + torch.where(up, 1, -1)
        inside = (proposed >= 0) & (proposed < self.temperatures)
        proposed = proposed.clamp(0, self.temperatures - 1)
        log_ratio = (self.betas[self.level] - self.betas[proposed]) * now.tempered_energy(v, h)
        log_ratio = log_ratio + self.log_g[self.level] - self.log_g[proposed]
        accepted = draw(log_ratio.clamp(max=0).exp(), generator) > 0
        self.level.copy_(torch.where(accepted & inside, proposed, self.level))

    @torch.no_grad()
    def adapt(self) -> None:
        """Let the weights of the levels grow by the share of chains that are there."""
        self.updates += 1
        share = torch.bincount(self.level, minlength=self.temperatures) / self.chains
        self.log_g.add_(self.step * min(1.0, self.steady / int(self.updates)) * share)
        self.log_g.sub_(self.log_g[0].clone())

    @torch.no_grad()
    def after_step(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> None:
        """Move particles and tempering chains; a chain that is at beta = 1 hands its state to its particle."""
        super().after_step(rbm, v, generator)
        now = rbm.couplings()
        for _ in range(self.k):
            self.temper(now, generator)
            self.adapt()
        there = self.level == self.temperatures - 1
        self.chain.copy_(torch.where(there[:, None], self.tempering, self.chain))

    def loss(self, rbm: Machine, v: Float[Tensor, "b v"], generator: Generator) -> tuple[Tensor, Logs]:
        """F(v) - F(particles as they are)."""
        loss, logs = super().loss(rbm, v, generator)
        there = self.level == self.temperatures - 1
        return loss, {**logs, "coupled": there.to(loss.dtype).mean()}


def require_two_sides(rbm: Machine, estimator: PCD) -> None:
    """Refuse machines whose units take turns one by one, a sweep of which is not undone by another."""
    if not isinstance(rbm.couplings(), Couplings):
        raise UserError(
            f"{type(estimator).__name__} needs a machine of two sides, whose sweeps can be reversed, and "
            f"{type(rbm).__name__} has none; use model/estimator=pcd_5."
        )
