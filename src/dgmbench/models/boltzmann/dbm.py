"""Deep Boltzmann machine: several hidden layers, joined by undirected weights to the layers below and above.

    E(v, h1, ..., hL) = -v'W1 h1 - h1'W2 h2 - ... - a'v - b1'h1 - ... - bL'hL,      p(v) = sum_h exp(-E) / Z

*Positive phase.* The posterior of the hidden units is not independent, so it is replaced by the factorised q whose
means solve the mean-field equations, mu_l = sigmoid(W_l' mu_{l-1} + W_{l+1} mu_{l+1} + b_l). It gives the bound

    log p(v) + log Z >= -E(v, mu) + H(q),

whose gradient at fixed means is the first term of the estimate. *Negative phase.* Given the odd layers the even ones
are independent, and the reverse, so chains carry the even layers and move by block Gibbs under any estimator of
``estimators.py``; the odd layers are summed out of the particles' energy. log Z is annealed over the even layers too.

*Pre-training.* RBMs between neighbouring layers are trained from the data upwards, with inputs doubled where a
neighbour is missing (``dbm_pretraining.py``), then halved and joined: weights as they are, the bias of a layer that two
RBMs share as the mean of both.

*Centring* (Montavon & Mueller 2012; Melchior, Fischer, Wiskott 2016): the energy is written in x_l - o_l, o_l offsets,

    E = -sum_l (x_l - o_l)'b_l - sum_l (x_l - o_l)'W_l (x_{l+1} - o_{l+1}),

the same distributions in coordinates whose gradient is better conditioned, so that no pre-training is needed. Offsets
follow the data's means, the model's (those of the particles) or their average, in which case the gradient of a weight
is Cov_data - Cov_model, the enhanced gradient (Cho, Raiko, Ilin 2011). When they move, the biases compensate. Terms
that depend on no unit are left out of E, the bound and log Z alike.

*Recognition* (Salakhutdinov & Larochelle 2010): a network nu_l = sigmoid(R_l' nu_{l-1} + r_l), nu_0 = v, learns to
say where the mean field will end, min E[-sum_l mu_l log nu_l + (1 - mu_l) log(1 - nu_l)], mu the end as it is; the mean
field then starts there, instead of at the pass upwards with doubled weights, which is where the network itself starts.

Shapes: raw x (b, *shape), flattened to v (b, visible); h_l (b, units). Units: nats.
Papers: Salakhutdinov & Hinton 2009, "Deep Boltzmann machines", https://proceedings.mlr.press/v5/salakhutdinov09a.html;
Montavon & Mueller 2012, "Deep Boltzmann machines and the centering trick",
https://doi.org/10.1007/978-3-642-35289-8_33; Salakhutdinov & Larochelle 2010, "Efficient learning of deep Boltzmann
machines", https://proceedings.mlr.press/v9/salakhutdinov10a.html. Differs: the mean field stops by itself, example by
example, and not after a fixed number of updates; no discriminative fine-tuning and no sparsity target; the paper leaves
open what becomes of shared biases.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.dbm_pretraining import Pair, composed
from dgmbench.models.boltzmann.estimators import PCD, Estimator
from dgmbench.models.boltzmann.layered import Layered
from dgmbench.models.contract import Logs, Stage
from dgmbench.nn.unit_layers import draw, smoothed_rates

EXAMPLES = 1000  # training examples that are kept to start the upper layers and the chains


class Dbm(Layered):
    """Deep Boltzmann machine of binary units.

    Args:
        spec: binary data of any shape.
        hidden_sizes: units of each hidden layer, from the data upwards; at least two.
        estimator: negative phase of the joint training; a copy is kept as a submodule. Default: ``PCD(k=5)``.
        pretraining: share of the budget for each layer's RBM, where joint training has share 1; 0 leaves it out.
        centring: which means the offsets follow.
        centring_rate: how fast they do, per update.
        recognition: whether a network, trained to, says where the mean field starts.
        mean_field_steps: the most updates of the mean field.
        tolerance: an example's mean field has settled when no mean changes by more in an update.
        weight_decay: half the squared weights, never the biases, are added to the loss with this factor.
        weight_std: standard deviation of the initial weights.
        sample_steps: Gibbs steps of ``sample`` and ``complete``.
    """

    examples: Tensor
    joint: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (500, 1000),
        estimator: Estimator | None = None,
        pretraining: float = 0.2,
        centring: Literal["none", "data", "model", "average"] = "none",
        centring_rate: float = 0.01,
        recognition: bool = False,
        mean_field_steps: int = 50,
        tolerance: float = 1e-4,
        weight_decay: float = 2e-4,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(
            spec,
            hidden_sizes=hidden_sizes,
            mean_field_steps=mean_field_steps,
            tolerance=tolerance,
            weight_std=weight_std,
            sample_steps=sample_steps,
        )
        own = PCD(k=5) if estimator is None else estimator
        if centring not in ("none", "data", "model", "average"):
            raise UserError(f"model.centring must be none, data, model or average, but it is {centring}.")
        require(least=0, pretraining=pretraining, weight_decay=weight_decay)
        require(least=0, most=1, centring_rate=centring_rate)
        if own.binary_only:
            raise UserError(
                f"{type(own).__name__} needs p(v) without its hidden units, which a machine of several hidden layers "
                "only bounds; use model/estimator=pcd_5."
            )
        if centring in ("model", "average") and not own.persistent:
            raise UserError(
                f"model.centring={centring} needs the model's means, from chains that {type(own).__name__} does not "
                "keep; use model/estimator=pcd_5, or model.centring=data."
            )
        self.pretraining, self.centring, self.centring_rate = pretraining, centring, centring_rate
        self.weight_decay = weight_decay
        last = len(hidden_sizes) - 1
        self.pairs = nn.ModuleList(
            Pair(*self.sizes[n : n + 2], bottom=n == 0, top=n == last, weight_std=weight_std)
            for n in range(len(hidden_sizes) if pretraining else 0)
        )
        pairs = list(pairwise(self.sizes)) if recognition else []
        self.recognition = nn.ModuleList(nn.Linear(below, above) for below, above in pairs)
        self.register_buffer("joint", torch.tensor(not pretraining))  # whether the machine's own parameters count
        self.register_buffer("examples", torch.zeros(EXAMPLES, spec.dim, dtype=torch.uint8))
        if centring != "none" and not pretraining:
            self.offsets.copy_(self.rates)
        self.train_by(own)

    def pair(self, number: int) -> Pair:
        """The RBM between layers ``number`` and ``number + 1``, the data being layer 0."""
        return cast(Pair, self.pairs[number])

    def own_parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Biases and weights; before the joint training, those that the RBMs make up as they are."""
        return super().own_parameters() if self.joint else composed(cast("Sequence[Pair]", list(self.pairs)))

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM of the pre-training, and the machine."""
        players = {f"rbm_{n}": list(pair.parameters()) for n, pair in enumerate(self.pairs, start=1)}
        players["model"] = [*self.overlaid().values(), *self.estimator.parameters()]
        return players | ({"recognition": list(self.recognition.parameters())} if self.recognition else {})

    def stages(self) -> tuple[Stage, ...]:
        """The RBMs from the data upwards, then all layers together."""
        greedy = [
            Stage(f"rbm_{n}", (f"rbm_{n}",), self.pretraining, self._view(n - 1) if n > 1 else None)
            for n in range(1, len(self.pairs) + 1)
        ]
        return (*greedy, Stage("joint", ("model", "recognition") if self.recognition else ("model",)))

    def _view(self, layers: int) -> Callable[[Batch, Generator], Batch]:
        """The view of data from hidden layer ``layers``: draws, layer by layer."""

        def view(batch: Batch, generator: Generator) -> Batch:
            states = self.flatten(batch.x)
            for number in range(layers):
                states = draw(self.pair(number).up(states), generator)
            return batch._replace(x=states)

        return view

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the data's log-odds, and examples (drawn with replacement) for the layers above."""
        chosen = torch.randint(len(batch.x), (EXAMPLES,), device=batch.x.device, generator=generator)
        self.examples.copy_(batch.x.flatten(1)[chosen])
        v = self.flatten(batch.x)
        rates = smoothed_rates(v.mean(0), len(v))
        self.rates[: self.spec.dim] = rates
        if self.pairs:
            self.pair(0).visible_bias.copy_(rates.logit())
            return
        self.biases[0].copy_(rates.logit())
        if self.centring != "none":
            self.offsets[: self.spec.dim] = rates
        self._start_chains(generator)

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start an RBM at the means of what it will see; join them all."""
        if stage.view is not None:
            states = stage.view(Batch(self.examples), generator).x
            pair = self.pair(int(stage.name.removeprefix("rbm_")) - 1)
            pair.visible_bias.copy_(smoothed_rates(states.mean(0), len(states)).logit())
        elif stage.name == "joint" and self.pairs:
            biases, weights = self.own_parameters()
            for own, value in zip(self.overlaid().values(), [*biases, *weights], strict=True):
                own.copy_(value)
            self.joint.fill_(True)
            self._start_chains(generator)
            if self.centring != "none":
                self.move_offsets(self.rates, 1.0)

    def _start_chains(self, generator: Generator) -> None:
        """Chains from the means of the layers under the data."""
        self._start_recognition()
        self.settle(iter([Batch(self.examples)]), generator)
        self.estimator.initialise(self, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """A scalar whose gradient is the estimator's, and that of the weights' decay."""
        if player == "recognition":
            return self.recognition_loss(self.flatten(batch.x)), {}
        if player == "model":
            loss, logs = super().loss(player, batch, generator)
            weights = list(self.weights)
        else:
            number = int(player.removeprefix("rbm_")) - 1
            if number and not batch.x.is_floating_point():  # data that have not been through the stage's view
                batch = self._view(number)(batch, generator)
            loss, logs = self.pair(number).loss(player, batch, generator)
            weights = [self.pair(number).weight]
        return loss + 0.5 * self.weight_decay * torch.stack([w.square().sum() for w in weights]).sum(), logs

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance chains and fast weights, then move the centring offsets."""
        if player != "model":
            return
        super().after_step(player, batch, generator)
        if self.centring != "none":
            self.move_offsets(self.centre(self.flatten(batch.x)), self.centring_rate)

    # ---- recognition ----

    def _start_recognition(self) -> None:
        """The network's weights such that it is the pass upwards with doubled weights."""
        biases, weights = self.own_parameters()
        for n, linear in enumerate(self.recognition):
            own = cast(nn.Linear, linear)
            own.weight.copy_((2 if n + 1 < len(weights) else 1) * weights[n].t())
            own.bias.copy_(biases[n + 1] - own.weight @ self.of_layers(self.offsets)[n])

    def recognised(self, v: Float[Tensor, "b v"]) -> list[Tensor]:
        """The network's log-odds of each hidden layer's units."""
        logits: list[Tensor] = []
        for linear in self.recognition:
            logits.append(linear(logits[-1].sigmoid() if logits else v))
        return logits

    def start(self, v: Float[Tensor, "b v"]) -> dict[int, Tensor]:
        """What the network says, if there is one and the machine is whole; else the pass upwards."""
        if not (self.recognition and self.joint):
            return super().start(v)
        return {0: v} | {n: logits.sigmoid() for n, logits in enumerate(self.recognised(v), start=1)}

    def recognition_loss(self, v: Float[Tensor, "b v"]) -> Float[Tensor, ""]:
        """Cross-entropy of the mean field's end, a target, and what the network says of it, nats per example."""
        ends = self.mean_field(v).means[1:]
        pairs = zip(self.recognised(v), ends, strict=True)
        return torch.stack(
            [F.binary_cross_entropy_with_logits(own, end, reduction="sum") for own, end in pairs]
        ).sum() / len(v)

    # ---- centring ----

    def centre(self, v: Float[Tensor, "b v"]) -> Float[Tensor, " units"]:
        """The means that the offsets follow, of all layers side by side, from a batch and the particles."""
        found = []
        if self.centring != "model":
            found.append(torch.cat([mean.mean(0) for mean in self.mean_field(v).means]))
        if self.centring != "data":
            now, particles = self.couplings(), cast(Tensor, self.estimator.particles)
            even = particles.mean(0).split(self.sizes[::2])
            odd = now.hidden_units.mean(now.hidden_logits(particles)).mean(0).split(self.sizes[1::2])
            found.append(torch.cat([(odd if n % 2 else even)[n // 2] for n in range(len(self.sizes))]))
        return torch.stack(found).mean(0)

    @torch.no_grad()
    def move_offsets(self, to: Float[Tensor, " units"], rate: float) -> None:
        """Move the offsets by ``rate`` towards ``to``; the biases compensate, so that p(v) does not change."""
        by = rate * (to - self.offsets)
        for bias, value in zip(self.biases, self.shifted(list(self.biases), list(self.weights), by), strict=True):
            bias.copy_(value)
        self.offsets.add_(by)
