"""Bases of models that an energy defines and an estimator trains.

``EnergyModel`` joins a machine to an estimator of ``estimators.py``: it asks a subclass for ``couplings()``, the energy
at the current parameters, and for ``base()``, independent units with the data's moments. ``TwoSided`` is for machines
whose data are all that a chain carries, as in every restricted Boltzmann machine: likelihood up to log Z, annealing
path, chain and samples follow from the couplings. A machine with hidden layers of its own defines them, with the parts
of ``machine.py``.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.estimators import CD, Estimator
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.unit_layers import Independent


class EnergyModel(Model):
    """A machine and the estimator of its gradient.

    A subclass registers its parameters and calls ``train_by`` at the end of its constructor.
    """

    estimator: Estimator
    conditioned: ClassVar[bool] = False  # whether the couplings depend on the example, so that no chain can persist

    def train_by(self, estimator: Estimator | None) -> None:
        """Keep a copy of the estimator as a submodule (``CD(k=1)`` by default), sized for this machine."""
        own = copy.deepcopy(estimator) if estimator is not None else CD()
        if self.conditioned and own.persistent:
            raise UserError(
                f"{type(own).__name__} keeps chains between batches, but the energy of {type(self).__name__} depends "
                "on the example, so that a chain would outlive what it is given; use model/estimator=cd."
            )
        if self.conditioned and own.one_log_z:
            raise UserError(
                f"{type(own).__name__} learns one log Z, but that of {type(self).__name__} depends on the example; "
                "use model/estimator=cd."
            )
        if self.spec.kind not in own.kinds:
            raise UserError(f"{type(own).__name__} is not for {self.spec}: {own.otherwise}.")
        own.attach(cast(Any, self))
        self.estimator = own

    # ---- what a subclass says of its energy ----

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Any:
        """The energy at the current parameters, with ``fast`` added to the overlaid ones if given."""
        raise NotImplementedError(f"{type(self).__name__} must define couplings(fast)")

    def couplings_given(self, x: Tensor, fast: Sequence[Tensor] | None = None) -> Any:
        """The same where it depends on the example: a row of its own for each of x (b, *shape)."""
        raise NotImplementedError(f"{type(self).__name__} is conditioned, so it must define couplings_given(x, fast)")

    def base(self) -> Independent:
        """Independent units with the data's moments, over the states that chains carry."""
        raise NotImplementedError(f"{type(self).__name__} must define base()")

    def state_sizes(self) -> tuple[int, int]:
        """Units that chains carry, and units besides."""
        raise NotImplementedError(f"{type(self).__name__} must define state_sizes()")

    def flatten(self, x: Tensor) -> Float[Tensor, "b v"]:
        """Raw values (b, *shape) to states (b, visible)."""
        return x.flatten(1).to(next(self.parameters()).dtype)

    def overlaid(self) -> Mapping[str, nn.Parameter]:
        """The parameters that fast weights lie over: all but the estimator's own."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("estimator.")}

    def slow_gradient(self) -> tuple[Tensor, ...]:
        """The gradient that the last step used, for estimators with weights of their own."""
        return tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in self.overlaid().values())

    # ---- the positive phase ----

    def positive(self, now: Any, v: Tensor, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """Free energy of data: exact, unless a subclass has a bound of it, by mean field say."""
        return now.free_energy(v)

    def contrast(self, now: Any, v: Tensor, particles: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """``positive`` of data and the free energy of particles."""
        return self.positive(now, v, generator), now.free_energy(particles)

    def from_data(self, now: Any, v: Tensor, steps: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """``positive`` of data, and particles after ``steps`` steps from it."""
        return now.from_data(v, steps, generator)

    # ---- training ----

    def view(self, x: Tensor) -> Any:
        """The machine as its estimator sees it on this batch."""
        return Given(self, x) if self.conditioned else self

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """A scalar whose gradient is the estimator's."""
        return self.estimator.loss(self.view(batch.x), self.flatten(batch.x), generator)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance chains and fast weights."""
        self.estimator.after_step(self.view(batch.x), self.flatten(batch.x), generator)


@dataclass(frozen=True)
class Given:
    """A machine whose couplings are those given a batch of examples, one row for each."""

    machine: EnergyModel
    x: Tensor

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Any:
        """The energy of these examples."""
        return self.machine.couplings_given(self.x, fast)

    def overlaid(self) -> Mapping[str, nn.Parameter]:
        """The machine's."""
        return self.machine.overlaid()

    def slow_gradient(self) -> tuple[Tensor, ...]:
        """The machine's."""
        return self.machine.slow_gradient()

    def base(self) -> Independent:
        """The machine's."""
        return self.machine.base()

    def state_sizes(self) -> tuple[int, int]:
        """The machine's."""
        return self.machine.state_sizes()

    def positive(self, now: Any, v: Tensor, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The machine's."""
        return self.machine.positive(now, v, generator)

    def contrast(self, now: Any, v: Tensor, particles: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The machine's."""
        return self.machine.contrast(now, v, particles, generator)

    def from_data(self, now: Any, v: Tensor, steps: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The machine's."""
        return self.machine.from_data(now, v, steps, generator)


class TwoSided(EnergyModel):
    """A machine whose ``couplings`` are ``Couplings`` with the data on their visible side.

    Args:
        spec: the data.
        sample_steps: Gibbs steps of ``sample``, started from the base.
    """

    def __init__(self, spec: DataSpec, *, sample_steps: int) -> None:
        super().__init__(spec)
        require(least=1, sample_steps=sample_steps)
        self.sample_steps = sample_steps

    def contrast(self, now: Any, v: Tensor, particles: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Both free energies from one matrix product, forwards and backwards."""
        both = now.free_energy(torch.cat([v, particles]))
        return both[: len(v)], both[len(v) :]

    def raw(self, v: Float[Tensor, "n v"]) -> Tensor:
        """States (n, visible) to raw values (n, *shape)."""
        return v.to(self.spec.dtype).view(len(v), *self.spec.shape)

    def free_energy(self, v: Float[Tensor, "b v"]) -> Float[Tensor, " b"]:
        """F(v) = -log sum_h exp(-E(v, h))."""
        return cast(Couplings, self.couplings()).free_energy(v)

    def log_prob_unnormalised(self, x: Tensor) -> Float[Tensor, " b"]:
        """Log p(x) + log Z = -F(x)."""
        return -cast(Couplings, self.view(x).couplings()).free_energy(self.flatten(x))

    def annealing_path(self) -> GeometricPath:
        """From the base to this machine, with the parameters as they are now."""
        return GeometricPath.between(self.base(), self.couplings())

    def log_partition(self) -> Float[Tensor, ""] | None:
        """Exact log Z in float64 where one side is at most 20 bits, else None."""
        return cast(Couplings, self.couplings()).log_partition()

    @torch.no_grad()
    def gibbs(
        self, v: Float[Tensor, "b v"], steps: int = 1, *, generator: Generator | None = None
    ) -> Float[Tensor, "b v"]:
        """``steps`` block Gibbs steps v -> h -> v."""
        return cast(Couplings, self.couplings()).gibbs(v, steps, generator)

    @torch.no_grad()
    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """One Gibbs step from raw values to raw values; leaves p(x), or p(x | what is given), invariant."""
        return self.raw(cast(Couplings, self.view(x).couplings()).gibbs(self.flatten(x), 1, generator))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Run n Gibbs chains of ``sample_steps`` steps from the base (MCMC, not exact draws)."""
        v = self.base().sample(n, generator)
        return self.raw(self.gibbs(v, self.sample_steps, generator=generator))
