"""Sequences of restricted machines: at every step one whose biases depend on the steps before.

    log p(v_1, ..., v_T) = sum_t [ -F(v_t; c_t) - log Z(c_t) ],      c_t = c(v_1, ..., v_{t-1}),

with c_t the natural parameters of both sides at step t, which is what log Z of the step depends on. Given a sequence
all c_t are known, so that the machines of all steps of all examples are rows of one ``Couplings`` with biases of their
own: one negative phase serves them together, and its gradient goes on through c_t into whatever carries the past, which
for a recurrent state is backpropagation through time.

A subclass says what is carried from step to step (``start``, ``follow``) and what it means for the machine
(``condition``, ``machine``). Shapes: raw x (b, t, d...), v (b, t, d), a state (n, s), a condition (n, c). Units: nats.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.energy_model import EnergyModel, Given
from dgmbench.models.boltzmann.estimators import Machine
from dgmbench.models.contract import Logs
from dgmbench.nn.sequences import within


class Temporal(EnergyModel):
    """Base of the machines in time.

    Args:
        spec: sequences (t, ...) of two steps or more, of one length or of different ones.
        sample_steps: Gibbs steps at each step of ``sample``, ``complete`` and ``expected``.
    """

    conditioned: ClassVar[bool] = True

    def __init__(self, spec: DataSpec, *, sample_steps: int) -> None:
        super().__init__(spec)
        require(least=1, sample_steps=sample_steps)
        if len(spec.shape) < 2 or spec.shape[0] < 2:
            raise UserError(
                f"{type(self).__name__} models sequences of vectors, (t, d) with t at least 2, but these are {spec}; "
                "choose data such as data=chords."
            )
        self.sample_steps = sample_steps
        self.frame_dim = spec.dim // spec.shape[0]

    # ---- what a subclass says of the past ----

    def start(self, n: int) -> Float[Tensor, "n s"]:
        """The state before the first step."""
        raise NotImplementedError(f"{type(self).__name__} must define start(n)")

    def follow(self, state: Float[Tensor, "n s"], v: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """The state after a step v."""
        raise NotImplementedError(f"{type(self).__name__} must define follow(state, v)")

    def condition(self, state: Float[Tensor, "n s"], y: Tensor | None = None) -> Float[Tensor, "n c"]:
        """What log Z of the next step depends on."""
        raise NotImplementedError(f"{type(self).__name__} must define condition(state, y)")

    def machine(self, condition: Float[Tensor, "n c"]) -> Couplings:
        """The machines under these conditions, one a row."""
        raise NotImplementedError(f"{type(self).__name__} must define machine(condition)")

    def states(self, v: Float[Tensor, "b t d"]) -> Float[Tensor, "b t s"]:
        """The state before every step of v."""
        found = [self.start(len(v))]
        for step in v.unbind(1)[:-1]:
            found.append(self.follow(found[-1], step))
        return torch.stack(found, 1)

    # ---- the distribution ----

    def couplings_given(self, x: Tensor, fast: Sequence[Tensor] | None = None) -> Couplings:
        """The machines under conditions ``x``; nothing here has fast weights, since no chain persists."""
        return self.machine(x)

    def frames(self, x: Tensor) -> Float[Tensor, "n d"]:
        """Raw values (n, ...) of single steps to visible units."""
        return x.flatten(1).to(next(self.parameters()).dtype)

    def sequences(self, x: Tensor) -> Float[Tensor, "b t d"]:
        """Raw values (b, t, ...) to the visible units of every step."""
        return self.frames(x.flatten(0, 1)).view(*x.shape[:2], self.frame_dim)

    def counted(self, x: Tensor, length: Tensor | None) -> Tensor:
        """The steps that count, (b, t) bool."""
        b, t = x.shape[:2]
        return torch.ones(b, t, dtype=torch.bool, device=x.device) if length is None else within(length, t)

    def rows(
        self, x: Tensor, length: Tensor | None = None, y: Tensor | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n c"]]:
        """The visible units and the condition of every step that counts, example after example."""
        v, kept = self.sequences(x), self.counted(x, length)
        states = self.states(v)
        label = None if y is None else y[:, None].expand(kept.shape)[kept]
        return v[kept], self.condition(states[kept], label)

    def step_log_prob_unnormalised(
        self, x: Tensor, *, length: Tensor | None = None, y: Tensor | None = None
    ) -> Float[Tensor, " n"]:
        """-F of every step that counts."""
        v, condition = self.rows(x, length, y)
        return -self.machine(condition).free_energy(v)

    def log_prob_unnormalised(
        self, x: Tensor, *, length: Tensor | None = None, y: Tensor | None = None
    ) -> Float[Tensor, " b"]:
        """The sum over the steps, log p(x) but for their log Z."""
        each, kept = self.step_log_prob_unnormalised(x, length=length, y=y), self.counted(x, length)
        return torch.zeros(kept.shape, dtype=each.dtype, device=each.device).masked_scatter(kept, each).sum(1)

    def step_conditions(
        self, x: Tensor, *, length: Tensor | None = None, y: Tensor | None = None
    ) -> Float[Tensor, "n c"]:
        """What log Z of every step that counts depends on."""
        return self.rows(x, length, y)[1]

    def annealing_path_given(self, condition: Tensor) -> GeometricPath:
        """From the base to the machines under these conditions."""
        now = self.machine(condition.to(next(self.parameters()).dtype))
        return GeometricPath.between(self.base(), now, upwards=lambda x, _: self.frames(x))

    # ---- training ----

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The estimator's of all steps together, the mean over them."""
        v, condition = self.rows(batch.x, batch.length, batch.y)
        return self.estimator.loss(cast(Machine, Given(self, condition)), v, generator)

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Nothing: no chain persists."""

    # ---- capabilities ----

    def _step(
        self, condition: Tensor, before: Tensor, generator: Generator | None, v: Tensor, known: Tensor | None
    ) -> Float[Tensor, "n d"]:
        """A draw of a step given the past, by a chain that starts at the step before; what is known stays as in v."""
        machine = self.machine(condition)
        if known is None:
            return machine.gibbs(before, self.sample_steps, generator)
        state = torch.where(known, v, before)
        for _ in range(self.sample_steps):
            state = torch.where(known, v, machine.gibbs(state, 1, generator))
        return state

    def _run(
        self,
        v: Float[Tensor, "n t d"],
        known: Tensor | None,
        y: Tensor | None,
        length: Tensor | None,
        generator: Generator | None,
    ) -> Tensor:
        """Draw sequences step after step; raw values (n, *shape)."""
        state, before, found = self.start(len(v)), self.base().sample(len(v), generator), []
        for t in range(v.shape[1]):
            here = None if known is None else known[:, t]
            before = self._step(self.condition(state, y), before, generator, v[:, t], here)
            found.append(before)
            state = self.follow(state, before)
        x = self.raw(torch.stack(found, 1))
        return x if length is None else x * self.counted(x, length).view(len(x), -1, *[1] * (x.dim() - 2)).to(x.dtype)

    def raw(self, v: Float[Tensor, "n t d"]) -> Tensor:
        """Visible units to raw values (n, *shape)."""
        return v.to(self.spec.dtype).view(len(v), *self.spec.shape)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        length: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draw n sequences, each step by ``sample_steps`` Gibbs steps from the step before (MCMC, not exact draws)."""
        nothing = self.base().eta.new_zeros(n, self.spec.shape[0], self.frame_dim)
        return self._run(nothing, None, y, length, generator)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        length: Tensor | None = None,
        y: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Fill in what is unknown step after step, given those before and what is known of the step, not later ones."""
        filled = self._run(self.sequences(x), known.flatten(2), y, length, generator)
        return torch.where(known, x, filled)

    @torch.no_grad()
    def expected(
        self,
        x: Tensor,
        *,
        length: Tensor | None = None,
        y: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Float[Tensor, "n d"]:
        """The mean of every step that counts given the steps before; visible units.

        Of the second half of a chain that starts at the step before.
        """
        v, condition = self.rows(x, length, y)
        machine, every, kept = self.machine(condition), self.sequences(x), self.counted(x, length)
        first = self.base().sample(len(x), generator)[:, None]
        state = torch.cat([first, every[:, :-1]], 1)[kept]
        total, half = torch.zeros_like(v), (self.sample_steps + 1) // 2
        for step in range(2 * half):
            eta = machine.visible_logits(machine.sample_hidden(state, generator))
            if step >= half:
                total += self.means(machine, eta) / half
            state = machine.visible_units.sample(eta, generator)
        return total

    def means(self, machine: Couplings, eta: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Mean values of the visible units, where these are their own features."""
        return machine.visible_units.mean(eta)
