"""Boltzmann machine: visible and hidden bits of which any two are coupled, also two of one layer.

    E(v, h) = -v'W h - v'L v / 2 - h'J h / 2 - a'v - b'h,      p(v) = sum_h exp(-E(v, h)) / Z,

L and J symmetric with empty diagonals. Without them it is the restricted machine. The log-likelihood gradient of every
coupling is <x_i x_j> under the data less <x_i x_j> under the model. Under the data, h follows p(h | v), which couples
the h_j; it is replaced by the factorised q whose means solve mu = sigmoid(b + W'v + J mu), so that

    log p(v) >= -E(v, mu) + H(q) - log Z,

and it is that bound that is measured. Under the model, persistent chains of all units: one unit is drawn after the
other given all others (asynchronous Gibbs). log Z is annealed over all units (``whole_path.py``), since none can be
summed out; there the units are drawn in their order and then in the opposite one, which alone is reversible, as
annealing backwards needs it.

Shapes: raw x (b, *shape), flattened to v (b, visible); h (b, hidden). Units: nats.
Papers: Ackley, Hinton, Sejnowski 1985, "A learning algorithm for Boltzmann machines",
https://doi.org/10.1016/S0364-0213(85)80012-4; mean field and persistent chains: Salakhutdinov, Hinton 2009, "Deep
Boltzmann machines", https://proceedings.mlr.press/v5/salakhutdinov09a.html.

Different from the first paper: it anneals both phases to estimate their moments; here the positive phase is mean field
and the negative one persistent. It takes units in random order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.energy_model import EnergyModel
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.machine import Machine, MeanField, WholeMachine
from dgmbench.models.boltzmann.whole_path import WholePath
from dgmbench.nn.unit_layers import BERNOULLI, Independent, draw, joined, smoothed_rates


def symmetric(values: Float[Tensor, " pairs"], units: int) -> Float[Tensor, "units units"]:
    """The symmetric matrix with an empty diagonal whose values below it, row by row, are ``values``."""
    below = torch.tril_indices(units, units, -1, device=values.device)
    half = values.new_zeros(units, units).index_put((below[0], below[1]), values)
    return half + half.t()


class Bm(EnergyModel):
    """Boltzmann machine with lateral couplings among the visible and among the hidden bits.

    Args:
        spec: binary data of any shape.
        hidden: number of hidden units.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        mean_field_steps: the most updates of the mean field, each halfway to its equation.
        tolerance: an example's mean field has settled when no mean changes by more in an update.
        weight_std: standard deviation of the initial weights; lateral ones start at 0.
        sample_steps: sweeps of ``sample``, started from the data's base rates.
    """

    base_logits: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 50,
        estimator: Estimator | None = None,
        mean_field_steps: int = 50,
        tolerance: float = 1e-4,
        weight_std: float = 0.01,
        sample_steps: int = 200,
    ) -> None:
        super().__init__(spec)
        if spec.kind != "binary":
            raise UserError(
                f"bm models binary data, but these are {spec}; choose a binary data set, such as data=digits_binary."
            )
        require(least=1, hidden=hidden, mean_field_steps=mean_field_steps, sample_steps=sample_steps)
        require(least=0, tolerance=tolerance, weight_std=weight_std)
        if estimator is not None and estimator.binary_only:
            raise UserError(
                f"{type(estimator).__name__} needs p(v) without its hidden units, which lateral couplings among them "
                "only let one bound; use model/estimator=pcd."
            )
        self.mean_field_steps, self.tolerance, self.sample_steps = mean_field_steps, tolerance, sample_steps
        visible = spec.dim
        self.weight = nn.Parameter(weight_std * torch.randn(visible, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.visible_lateral = nn.Parameter(torch.zeros(visible * (visible - 1) // 2))
        self.hidden_lateral = nn.Parameter(torch.zeros(hidden * (hidden - 1) // 2))
        self.register_buffer("base_logits", torch.zeros(visible))  # the data's log-odds: base of AIS and chains
        self.train_by(estimator)

    # ---- the distribution ----

    def machine(self, fast: Sequence[Tensor] | None = None) -> Machine:
        """Two layers, their lateral weights and those between them, with ``fast`` added first if given."""
        own: list[Tensor] = list(self.overlaid().values())
        if fast is not None:
            own = [slow + quick for slow, quick in zip(own, fast, strict=True)]
        weight, a, b, visible, hidden = own
        weights = {
            (0, 1): weight,
            (0, 0): symmetric(visible, len(a)),
            (1, 1): symmetric(hidden, len(b)),
        }
        return Machine((Independent(BERNOULLI, a), Independent(BERNOULLI, b)), weights)

    def couplings(self, fast: Sequence[Tensor] | None = None) -> WholeMachine:
        """The energy of all units, visible and hidden side by side, which chains carry."""
        return self.machine(fast).whole()

    def base(self) -> Independent:
        """Visible bits with the data's means, and hidden ones that are on half of the time."""
        hidden = Independent(BERNOULLI, torch.zeros_like(self.hidden_bias.detach()))
        return joined([Independent(BERNOULLI, self.base_logits), hidden])

    def state_sizes(self) -> tuple[int, int]:
        """All units, and none besides."""
        return sum(self.weight.shape), 0

    def mean_field(self, v: Float[Tensor, "b v"], now: Machine | None = None) -> MeanField:
        """Means of both layers given v, and the variational free energy."""
        machine = self.machine() if now is None else now
        return machine.mean_field({0: v}, steps=self.mean_field_steps, tolerance=self.tolerance)

    # ---- training ----

    def positive(self, now: WholeMachine, v: Tensor, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The variational free energy, above the exact one."""
        return self.mean_field(v, now.machine).free_energy

    def from_data(
        self, now: WholeMachine, v: Tensor, steps: int, generator: Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b units"]]:
        """``positive`` of data, and all units after ``steps`` sweeps from v and a draw of q."""
        found = self.mean_field(v, now.machine)
        with torch.no_grad():
            return found.free_energy, now.gibbs(self._drawn(v, found, generator), steps, generator)

    def _drawn(self, v: Tensor, found: MeanField, generator: Generator | None) -> Float[Tensor, "b units"]:
        return torch.cat([v, draw(found.means[1].detach(), generator)], 1)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the data's log-odds (Hinton 2012), then the estimator's chains."""
        v = self.flatten(batch.x)
        self.base_logits.copy_(smoothed_rates(v.mean(0), len(v)).logit())
        self.visible_bias.copy_(self.base_logits)
        self.estimator.initialise(self, generator)

    # ---- capabilities ----

    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The mean-field bound of log p(x) + log Z; nothing is drawn."""
        return -self.mean_field(self.flatten(x)).free_energy

    def annealing_path(self) -> WholePath:
        """Over all units, from independent ones to the machine with the parameters as they are now."""

        def upwards(x: Tensor, generator: Generator | None) -> Tensor:
            v = self.flatten(x)
            return self._drawn(v, self.mean_field(v), generator)

        return WholePath(self.machine(), self.base(), upwards=upwards)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Run n chains of ``sample_steps`` sweeps from the base (MCMC, not exact draws)."""
        state = self.couplings().gibbs(self.base().sample(n, generator), self.sample_steps, generator)
        return state[:, : self.spec.dim].to(self.spec.dtype).view(n, *self.spec.shape)

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Mean-field means of the hidden units."""
        return self.mean_field(self.flatten(x)).means[1]

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Probability of each visible unit given the others and the hidden units' means, (b, *shape)."""
        machine = self.machine()
        means: Any = self.mean_field(self.flatten(x), machine).means
        return machine.inputs(0, means).sigmoid().view(x.shape)
