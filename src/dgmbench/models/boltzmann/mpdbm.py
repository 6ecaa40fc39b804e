"""Multi-prediction deep Boltzmann machine: trained to predict any part of the data and the label from the rest.

Mean field in a machine where some inputs are missing fills them in, together with the hidden units. Unrolled for K
updates it is a recurrent network with shared weights; training back-propagates through it, so that the very inference
that is used later becomes right, whichever variables are known. No chain, no pre-training, no log Z:

    min  E_S [ -log q(x_missing, y_missing | x_known, y_known) ],      q the mean field after K updates,

where the set S of what is known has each input, and the label, with probability 1 - ``missing``. The machine is a deep
Boltzmann machine with the label as one softmax above its highest layer:

    E(v, h, y) = -v'W1 h1 - ... - h_L'U y - a'v - sum_l b_l'h_l - c'y,      p(v) = sum_{h, y} exp(-E) / Z

Examples without a label (y = -1) have no label term, and data without labels no label layer.

Shapes: raw x (b, *shape), flattened to v (b, visible); y (b,) int64; scores (b, classes). Units: nats per example.
Paper: Goodfellow, Mirza, Courville, Bengio 2013, "Multi-prediction deep Boltzmann machines",
https://papers.nips.cc/paper/5024-multi-prediction-deep-boltzmann-machines. Differs: Adam for conjugate gradients, no
averaging of several inferences ("multi-inference trick") and no second training of the label's scores alone. The
objective says little of log p(x), for which the machine is no better than what it was not trained for.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.layered import Layered
from dgmbench.models.boltzmann.machine import Machine
from dgmbench.models.contract import Logs
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.labels import one_hot
from dgmbench.nn.mean_units import BITS, MeanUnits, OneOf
from dgmbench.nn.unit_layers import smoothed_rates


def filled_in(
    machine: Machine, known: Mapping[int, tuple[Tensor, Tensor]], n: int, steps: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Means and natural parameters of every layer after ``steps`` updates, all layers by turns from the lowest hidden.

    ``known`` has, of layers that are known in part, values (n, units) and which of them are known; those stay. Unknown
    units start at what their bias alone gives. Gradients run through all updates.
    """
    eta = [layer.eta.expand(n, -1) for layer in machine.layers]
    means = [layer.units.mean(layer.eta).expand(n, -1) for layer in machine.layers]
    for k, (values, kept) in known.items():
        means[k] = torch.where(kept, values, means[k])
    for _ in range(steps):
        for k in (*range(1, len(means)), 0):
            eta[k] = machine.inputs(k, means)
            new = machine.layers[k].units.mean(eta[k])
            values, kept = known.get(k, (new, torch.zeros_like(new, dtype=torch.bool)))
            means[k] = torch.where(kept, values, new)
    return means, eta


class MpDbm(Layered):
    """Deep Boltzmann machine with labels at its top, trained by multi-prediction.

    Args:
        spec: binary data of any shape, with or without labels.
        hidden_sizes: units of each hidden layer, from the data upwards; at least two.
        missing: the probability that an input, or the label, is to be predicted.
        updates: updates of the unrolled mean field.
        mean_field_steps: the most updates of the mean field where all inputs are known.
        tolerance: an example's mean field has settled when no mean changes by more in an update.
        weight_std: standard deviation of the initial weights.
        sample_steps: Gibbs steps of ``sample`` and ``complete``.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (500, 500),
        missing: float = 0.5,
        updates: int = 10,
        mean_field_steps: int = 50,
        tolerance: float = 1e-4,
        weight_std: float = 0.05,
        sample_steps: int = 1000,
    ) -> None:
        if len(hidden_sizes) < 2:
            raise UserError(f"mpdbm needs two or more hidden layers, but model.hidden_sizes is {list(hidden_sizes)}.")
        self.classes = 0 if spec.step_labels else spec.num_classes or 0
        self.labels = len(hidden_sizes) + 1  # the number of the labels' layer, if there is one
        super().__init__(
            spec,
            hidden_sizes=(*hidden_sizes, self.classes) if self.classes else hidden_sizes,
            mean_field_steps=mean_field_steps,
            tolerance=tolerance,
            weight_std=weight_std,
            sample_steps=sample_steps,
        )
        require(least=0, most=1, missing=missing)
        require(least=1, updates=updates)
        self.missing, self.updates = missing, updates

    def units(self, number: int) -> MeanUnits:
        """Bits, but for the label."""
        return BITS if number < self.labels else OneOf()

    # ---- training ----

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the data's log-odds."""
        v = self.flatten(batch.x)
        rates = smoothed_rates(v.mean(0), len(v))
        self.rates[: self.spec.dim] = rates
        self.biases[0].copy_(rates.logit())

    def nll(self, batch: Batch, known: Bool[Tensor, "b v"], known_label: Bool[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        """-log q of the inputs, and of the labels, that are not known, given those that are: (b,) each."""
        v = self.flatten(batch.x)
        given = {0: (v, known)}
        y = batch.x.new_full((len(v),), -1, dtype=torch.int64) if batch.y is None else batch.y
        if self.classes:
            shown = (known_label & (y >= 0))[:, None].expand(-1, self.classes)
            given[self.labels] = (one_hot(y.clamp_min(0), self.classes, v.dtype), shown)
        _, eta = filled_in(self.machine(), given, len(v), self.updates)
        inputs = (F.binary_cross_entropy_with_logits(eta[0], v, reduction="none") * ~known).sum(1)
        if not self.classes:
            return inputs, torch.zeros_like(inputs)
        hit = eta[self.labels].log_softmax(1).gather(1, y.clamp_min(0)[:, None])[:, 0]
        return inputs, torch.where(known_label | (y < 0), 0.0, -hit)

    def draw_known(self, n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Which inputs (n, visible), and which labels (n,), are known."""
        u = torch.rand(n, self.spec.dim + 1, generator=generator, device=self.rates.device)
        known = u >= self.missing
        return known[:, :-1], known[:, -1]

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The multi-prediction objective, on one draw of what is known for each example."""
        inputs, labels = self.nll(batch, *self.draw_known(len(batch.x), generator))
        return (inputs + labels).mean(), {"inputs": inputs.detach().mean(), "labels": labels.detach().mean()}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """There are no chains."""

    # ---- what is measured ----

    def objectives(self) -> Mapping[str, HeldOut]:
        """The training's objective: how well what is missing is predicted."""
        return {"missing_nll": HeldOut("nats", "lower")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        """One draw of what is known for each example; a label that is not known counts with the inputs."""
        inputs, labels = self.nll(batch, *self.draw_known(len(batch.x), generator))
        return {"missing_nll": inputs + labels}

    # ---- capabilities ----

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Mean-field means of the highest hidden layer."""
        return self.mean_field(self.flatten(x)).means[self.labels - 1]

    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Mean-field log-probabilities of the labels, all inputs known."""
        if not self.classes:
            raise UserError("These data have no labels, so mpdbm cannot classify them.")
        known = torch.ones(len(x), self.spec.dim, dtype=torch.bool, device=x.device)
        _, eta = filled_in(self.machine(), {0: (self.flatten(x), known)}, len(x), self.updates)
        return eta[self.labels].log_softmax(1)
