"""Machines of several layers, the data at the bottom, each joined to the next: all that does not depend on training.

    E(v, h1, ..., hL) = -v'W1 h1 - h1'W2 h2 - ... - a'v - b1'h1 - ... - bL'hL,      p(v) = sum_h exp(-E) / Z

*Posterior.* The factorised q whose means solve mu_l = mean(W_l' mu_{l-1} + W_{l+1} mu_{l+1} + b_l) gives the bound
log p(v) + log Z >= -E(v, mu) + H(q).

*Chains.* Given the odd layers the even ones are independent, and the reverse: chains, samples and annealing carry the
even layers, and the odd ones are summed out.

*Units.* Bits, unless a subclass says otherwise of a layer (``units``): labels at the top are one softmax.

*Offsets.* The energy may be written in x_l - o_l; see ``dbm.py``. Shapes: states (n, units); raw x (b, *shape).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.energy_model import EnergyModel
from dgmbench.models.boltzmann.machine import Machine, MeanField
from dgmbench.nn.mean_units import BITS, MeanUnits
from dgmbench.nn.unit_layers import Independent, joined

SETTLING = 10_000  # training examples from which the hidden layers' means are taken


class Layered(EnergyModel):
    """Layers of units, data at the bottom, and the weights between neighbours.

    Args:
        spec: binary data of any shape.
        hidden_sizes: units of each hidden layer, from the data upwards; at least two.
        mean_field_steps: the most updates of the mean field.
        tolerance: an example's mean field has settled when no mean changes by more in an update.
        weight_std: standard deviation of the initial weights.
        sample_steps: Gibbs steps of ``sample`` and ``complete``.
    """

    rates: Tensor
    offsets: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int],
        mean_field_steps: int,
        tolerance: float,
        weight_std: float,
        sample_steps: int,
    ) -> None:
        super().__init__(spec)
        name = type(self).__name__.lower()
        if spec.kind != "binary":
            raise UserError(
                f"{name} models binary data, but these are {spec}; choose a binary data set, such as "
                "data=digits_binary."
            )
        if len(hidden_sizes) < 2:
            raise UserError(
                f"{name} needs two or more hidden layers, but model.hidden_sizes is {list(hidden_sizes)}; "
                "for one layer, use model=rbm."
            )
        require(least=1, hidden_sizes=hidden_sizes, mean_field_steps=mean_field_steps, sample_steps=sample_steps)
        require(least=0, tolerance=tolerance, weight_std=weight_std)
        self.mean_field_steps, self.tolerance, self.sample_steps = mean_field_steps, tolerance, sample_steps
        self.sizes = (spec.dim, *hidden_sizes)
        self.biases = nn.ParameterList(torch.zeros(size) for size in self.sizes)
        self.weights = nn.ParameterList(weight_std * torch.randn(pair) for pair in pairwise(self.sizes))
        # means under the data, layer by layer, and what is taken off the units in the energy
        self.register_buffer("rates", torch.full((sum(self.sizes),), 0.5))
        self.register_buffer("offsets", torch.zeros(sum(self.sizes)))

    # ---- the distribution ----

    def of_layers(self, values: Tensor) -> list[Tensor]:
        """A vector over all units, layer by layer."""
        return list(values.split(self.sizes))

    def units(self, number: int) -> MeanUnits:
        """The type of layer ``number``."""
        return BITS

    def own_parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Biases and weights in the coordinates of the offsets."""
        return list(self.biases), list(self.weights)

    def overlaid(self) -> Mapping[str, nn.Parameter]:
        """Biases and weights, and no others."""
        named = {f"bias_{n}": p for n, p in enumerate(self.biases)}
        return named | {f"weight_{n}": p for n, p in enumerate(self.weights)}

    def shifted(self, biases: Sequence[Tensor], weights: Sequence[Tensor], by: Tensor) -> list[Tensor]:
        """Biases that leave p as it is when the offsets grow by ``by``."""
        moved, result = self.of_layers(by), list(biases)
        for n, weight in enumerate(weights):
            result[n] = result[n] + weight @ moved[n + 1]
            result[n + 1] = result[n + 1] + moved[n] @ weight
        return result

    def machine(self, fast: Sequence[Tensor] | None = None) -> Machine:
        """The plain energy (offsets multiplied out), with ``fast`` added to the parameters first if given."""
        biases, weights = self.own_parameters()
        if fast is not None:
            both = [slow + quick for slow, quick in zip([*biases, *weights], fast, strict=True)]
            biases, weights = both[: len(biases)], both[len(biases) :]
        return self.joined_by(biases, weights)

    def joined_by(self, biases: Sequence[Tensor], weights: Sequence[Tensor]) -> Machine:
        """The machine of these biases and weights, in the coordinates of the offsets."""
        biases = self.shifted(biases, weights, -self.offsets)
        layers = tuple(Independent(self.units(n), bias) for n, bias in enumerate(biases))
        return Machine(layers, {(n, n + 1): weight for n, weight in enumerate(weights)})

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """The even layers, data among them, on the side that chains carry; the odd ones on the other."""
        return self.machine(fast).sides(0)

    def base(self) -> Independent:
        """The even layers as independent units with their means under the data."""
        rates = list(enumerate(self.of_layers(self.rates)))[::2]
        return joined([Independent(self.units(n), self.units(n).at_mean(mean)) for n, mean in rates])

    def state_sizes(self) -> tuple[int, int]:
        """Units of the even and of the odd layers."""
        return sum(self.sizes[::2]), sum(self.sizes[1::2])

    # ---- the posterior ----

    def bottom_up(self, v: Float[Tensor, "b v"]) -> dict[int, Tensor]:
        """Means of all layers in one pass: what lies above a layer counts as much as what lies below it."""
        biases, weights = self.own_parameters()
        offsets, means = self.of_layers(self.offsets), {0: v}
        for n, weight in enumerate(weights):
            twice = 2 if n + 1 < len(weights) else 1
            means[n + 1] = self.units(n + 1).mean(twice * (means[n] - offsets[n]) @ weight + biases[n + 1])
        return means

    def start(self, v: Float[Tensor, "b v"]) -> dict[int, Tensor]:
        """Means of all layers where the mean field begins."""
        return self.bottom_up(v)

    def mean_field(self, v: Float[Tensor, "b v"]) -> MeanField:
        """Means of all layers given v, and the variational free energy."""
        with torch.no_grad():
            start = self.start(v)
        return self.machine().mean_field({0: v}, steps=self.mean_field_steps, start=start, tolerance=self.tolerance)

    def even_states(self, means: Sequence[Tensor], v: Tensor, generator: Generator | None) -> Float[Tensor, "b d"]:
        """States of the even layers: v, and draws from q with these means."""
        upper = list(enumerate(means))[2::2]
        return torch.cat([v, *(self.units(n).draw_at_mean(mean, generator) for n, mean in upper)], 1)

    def positive(self, now: Any, v: Tensor, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The variational free energy, above the exact one."""
        return self.mean_field(v).free_energy

    def from_data(self, now: Any, v: Tensor, steps: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """``positive`` of data, and particles after ``steps`` steps that start at draws from q."""
        found = self.mean_field(v)
        with torch.no_grad():
            return found.free_energy, now.gibbs(self.even_states(found.means, v, generator), steps, generator)

    @torch.no_grad()
    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """The hidden layers' means under the data, the base of annealing and of samples."""
        total, count = torch.zeros_like(self.rates), 0
        for batch in batches:
            total += torch.cat([mean.sum(0) for mean in self.mean_field(self.flatten(batch.x)).means])
            count += len(batch.x)
            if count >= SETTLING:
                break
        means = self.of_layers(total / max(count, 1))
        smoothed = [self.units(n).smoothed(mean, count) for n, mean in enumerate(means)]
        self.rates[self.sizes[0] :] = torch.cat(smoothed[1:])

    # ---- capabilities ----

    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The mean-field bound of log p(x) + log Z; nothing is drawn."""
        return -self.mean_field(self.flatten(x)).free_energy

    def annealing_path(self) -> GeometricPath:
        """Over the even layers, from their means under the data; the odd ones are summed out."""

        def upwards(x: Tensor, generator: Generator | None) -> Tensor:
            v = self.flatten(x)
            return self.even_states(self.mean_field(v).means, v, generator)

        return GeometricPath.between(self.base(), self.couplings(), upwards=upwards)

    def raw(self, state: Float[Tensor, "n d"]) -> Tensor:
        """The raw values (n, *shape) in states of the even layers."""
        return state[:, : self.spec.dim].to(self.spec.dtype).view(len(state), *self.spec.shape)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Run n chains of ``sample_steps`` steps from the base (MCMC, not exact draws)."""
        return self.raw(self.couplings().gibbs(self.base().sample(n, generator), self.sample_steps, generator))

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Run ``sample_steps`` Gibbs steps in which the known units are put back each time."""
        v, mask, now = self.flatten(x), known.flatten(1), self.couplings()
        state = self.base().sample(len(x), generator)
        for _ in range(self.sample_steps):
            state[:, : self.spec.dim] = torch.where(mask, v, state[:, : self.spec.dim])
            state = now.gibbs(state, 1, generator)
        return torch.where(known, x, self.raw(state))

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Mean-field means of the highest layer."""
        return self.mean_field(self.flatten(x)).means[-1]

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Probabilities of the visible units at the mean-field means of the layer above, (b, *shape)."""
        means = self.mean_field(self.flatten(x)).means
        return self.machine().inputs(0, means).sigmoid().view(x.shape)
