"""Point-wise gated Boltzmann machine: at every pixel a gate chooses which group of hidden units explains it.

    E(v, z, h) = - sum_r sum_i z_i^r v_i (c_i^r + W_i^r h^r) - sum_r b^r'h^r,      sum_r z_i^r = 1 for every pixel i,
    p(z_i = r | v, h) = softmax_r(v_i (c_i^r + W_i^r h^r)),      p(h^r | v, z) = sigmoid(b^r + W^r'(z^r v))

The first group is the relevant one, whose hidden units are the code. With ``supervised`` the label meets it, and no
other: E - y'(d + U h^1), y one softmax, so that what tells the classes apart goes where the code is.

Pixel and gate together are a unit that is off, or on in one of R ways: f_i^r = z_i^r v_i is a block of bits of which at
most one is on, and the machine an RBM over f. So chains move f given h and h given f, under any estimator of
``estimators.py``, and annealing carries f. (A pixel that is off has R gates of one energy: so the biases of f are
c - log R, and the constant dim log R is left out of F, the bound and log Z alike.) Given v alone gates and hidden units
depend on each other, so that the positive phase, and every question about data, goes by the mean field q(z) q(h) q(y),
by turns. Its bound

    log p(v) + log Z >= - E(v, means) + H(q)

is what is measured; the gradient is taken at fixed means. Nothing says which group is to be which, so the relevant one
starts as an RBM trained on the data, a first stage, and the others at the level of the pixels that are seldom on.

Shapes: raw x (b, *shape), flattened to v (b, visible); f (b, visible * groups), the groups of a pixel side by side; h
(b, sum of hidden_sizes), group by group; y (b, classes). Units: nats.
Paper: Sohn, Zhou, Lee, Lee 2013, "Learning and selecting features jointly with point-wise gated Boltzmann machines",
https://proceedings.mlr.press/v28/sohn13.html. Differs: the paper shares out the pre-trained features among the groups
by how well they tell the classes apart; here all start in the relevant one. No sparsity and no convolution.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.energy_model import EnergyModel
from dgmbench.models.boltzmann.estimators import CD, Estimator
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import Logs, Stage
from dgmbench.nn.labels import class_count
from dgmbench.nn.mean_units import OneOf, Pooled
from dgmbench.nn.unit_layers import BERNOULLI, Independent, Joined, joined

SELDOM = 0.1  # the share of the pixels, least often on, whose level is taken for that of the background
SETTLING = 10_000  # training examples from which the units' means are taken


class Posterior(NamedTuple):
    """Means of the visible side (pixels by group, and the label) and of the hidden units; the free energy (b,)."""

    visible: Tensor
    hidden: Tensor
    free_energy: Tensor


class GatedPath(GeometricPath):
    """A path whose states are pixels by group, and a label: no pixel is on in two ways, and one label is."""

    def possible(self, v: Float[Tensor, "n f"]) -> Bool[Tensor, " n"]:
        """Which of these bits are such states."""
        units = self.couplings.visible_units
        parts, sizes = (units.parts, units.sizes) if isinstance(units, Joined) else ((units,), (v.shape[1],))
        found = torch.ones(len(v), dtype=torch.bool, device=v.device)
        for part, own in zip(parts, v.split(sizes, dim=-1), strict=True):
            on = part.blocks(own).sum(-1) if isinstance(part, Pooled) else own.sum(-1, keepdim=True)
            found &= (on <= 1 if isinstance(part, Pooled) else on == 1).all(-1)
        return found

    def log_unnormalised(self, v: Float[Tensor, "n f"], beta: float) -> Float[Tensor, " n"]:
        """Log p*_beta(v), float64; -inf of what is no state."""
        return super().log_unnormalised(v, beta).masked_fill(~self.possible(v), -torch.inf)


class Pgbm(EnergyModel):
    """Boltzmann machine of bits with a gate at every pixel; with ``supervised``, a ``SupervisedPgbm``.

    Args:
        spec: binary data of any shape; with labels, where it is supervised.
        hidden_sizes: hidden units of each group, the relevant one first; two groups or more.
        supervised: whether the label is a softmax unit on the relevant group.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        pretraining: share of the budget for the RBM, where joint training has share 1; 0 leaves it out.
        mean_field_steps: updates of the mean field.
        weight_decay: half the squared weights, never the biases, are added to the losses with this factor.
        weight_std: standard deviation of the initial weights.
        sample_steps: Gibbs steps of ``sample``.
    """

    rates: Tensor
    joint: Tensor
    level: Tensor

    def __new__(cls, spec: DataSpec | None = None, *, supervised: bool = False, **settings: Any) -> "Pgbm":
        """The class with labels or without; without a spec (copying, unpickling), the class itself."""
        return super().__new__(SupervisedPgbm if supervised else cls)

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (200, 200),
        supervised: bool = False,
        estimator: Estimator | None = None,
        pretraining: float = 1.0,
        mean_field_steps: int = 10,
        weight_decay: float = 0.0,
        weight_std: float = 0.01,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec)
        if spec.kind != "binary":
            raise UserError(
                f"pgbm models binary data, but these are {spec}; choose a binary data set, such as "
                "data=digits_background."
            )
        if len(hidden_sizes) < 2:
            raise UserError(
                f"pgbm needs two or more groups, but model.hidden_sizes is {list(hidden_sizes)}; for one, use "
                "model=rbm."
            )
        own = CD() if estimator is None else estimator
        if own.binary_only:
            raise UserError(
                f"{type(own).__name__} needs p(v) without gates and hidden units, which is only bounded; use "
                "model/estimator=cd."
            )
        require(least=1, hidden_sizes=hidden_sizes, mean_field_steps=mean_field_steps, sample_steps=sample_steps)
        require(least=0, pretraining=pretraining, weight_decay=weight_decay, weight_std=weight_std)
        self.hidden_sizes, self.groups = list(hidden_sizes), len(hidden_sizes)
        self.classes = class_count(spec) if supervised else 0
        self.pretraining, self.mean_field_steps = pretraining, mean_field_steps
        self.weight_decay, self.sample_steps = weight_decay, sample_steps
        self.units = Pooled(self.groups)
        self.of_pixels = spec.dim * self.groups  # units of the visible side that are no label
        self.weights = nn.ParameterList(weight_std * torch.randn(spec.dim, size) for size in hidden_sizes)
        if self.classes:
            self.label_weight = nn.Parameter(weight_std * torch.randn(self.classes, hidden_sizes[0]))
        self.visible_bias = nn.Parameter(torch.zeros(self.of_pixels + self.classes))
        self.hidden_bias = nn.Parameter(torch.zeros(sum(hidden_sizes)))
        plain = DataSpec((spec.dim,), "binary")
        self.rbm = Rbm(plain, hidden=hidden_sizes[0], weight_decay=weight_decay) if pretraining else None
        self.register_buffer("joint", torch.tensor(not pretraining))  # whether the machine's own parameters count
        self.register_buffer("level", torch.zeros(()))  # log-odds of the pixels that are seldom on
        sizes, shares = [self.of_pixels, self.classes], [self.groups + 1.0, max(1.0, self.classes)]
        even = [torch.full((size,), 1 / share) for size, share in zip(sizes, shares, strict=True)]
        self.register_buffer("rates", torch.cat(even))  # means of the visible side under the data
        self.train_by(own)

    __signature__ = inspect.Signature([*inspect.signature(__init__).parameters.values()][1:])  # not that of __new__

    # ---- the distribution ----

    def overlaid(self) -> Mapping[str, nn.Parameter]:
        """The machine's own parameters, not the RBM's."""
        named = {f"weight_{r}": weight for r, weight in enumerate(self.weights)}
        others = {"visible_bias": self.visible_bias, "hidden_bias": self.hidden_bias}
        return named | others | ({"label_weight": self.label_weight} if self.classes else {})

    def own_parameters(self) -> list[Tensor]:
        """In the order of ``overlaid``; before the joint training, the RBM as the first group."""
        now: list[Tensor] = list(self.overlaid().values())
        if self.joint or self.rbm is None:
            return now
        first, visible, hidden = self.rbm.couplings()
        biases = self.level.expand(self.spec.dim, self.groups) - torch.tensor(self.groups - 1.0).log()
        biases = torch.cat([visible[:, None], biases[:, 1:]], 1).flatten()
        now[0] = first
        now[self.groups] = torch.cat([biases, self.visible_bias[self.of_pixels :]])
        now[self.groups + 1] = torch.cat([hidden, self.hidden_bias[len(hidden) :]])
        return now

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Pixels by group, and the label, on the side that chains carry; all hidden units on the other."""
        own = self.own_parameters()
        if fast is not None:
            own = [slow + quick for slow, quick in zip(own, fast, strict=True)]
        columns = []
        for r, weight in enumerate(own[: self.groups]):
            rows = [weight if s == r else torch.zeros_like(weight) for s in range(self.groups)]
            columns.append(torch.stack(rows, 1).flatten(0, 1))
        matrix = torch.cat(columns, 1)
        if self.classes:
            others = matrix.new_zeros(self.classes, sum(self.hidden_sizes[1:]))
            matrix = torch.cat([matrix, torch.cat([own[-1], others], 1)])
        visible, hidden = own[self.groups : self.groups + 2]
        return Couplings(matrix, visible, hidden, self._visible(visible).units, BERNOULLI)

    def _visible(self, eta: Tensor) -> Independent:
        """Units of the visible side, alone."""
        layers = [Independent(self.units, eta[: self.of_pixels])]
        return joined([*layers, Independent(OneOf(), eta[self.of_pixels :])] if self.classes else layers)

    def base(self) -> Independent:
        """The visible side as independent units with their means under the data."""
        pixels, label = self.rates[: self.of_pixels], self.rates[self.of_pixels :]
        return self._visible(torch.cat([self.units.at_mean(pixels), label.log()]))

    def state_sizes(self) -> tuple[int, int]:
        """Units of the visible side, and hidden ones."""
        return len(self.visible_bias), len(self.hidden_bias)

    # ---- the posterior ----

    def mean_field(self, v: Float[Tensor, "b v"], now: Couplings | None = None) -> Posterior:
        """Means given pixels, and labels beside them where there are any (one-hot; zeros are unknown).

        Gates start at what the biases say of them.
        """
        now = self.couplings() if now is None else now
        pixels, label = v[:, : self.spec.dim, None], v[:, self.spec.dim :]
        if self.classes and not label.shape[1]:
            label = v.new_zeros(len(v), self.classes)
        with torch.no_grad():
            eta = now.visible_bias.expand(len(v), -1)
            for _ in range(self.mean_field_steps + 1):
                gates = self.units.blocks(eta[:, : self.of_pixels]).softmax(-1)
                guessed = eta[:, self.of_pixels :].softmax(1)
                known = label.sum(1, keepdim=True) > 0
                visible = torch.cat([(gates * pixels).flatten(1), torch.where(known, label, guessed)], 1)
                hidden = now.hidden_logits(visible).sigmoid()
                eta = now.visible_logits(hidden)
            entropy = BERNOULLI.entropy_of_mean(hidden) - torch.special.xlogy(visible, visible).sum(1)
        return Posterior(visible, hidden, now.tempered_energy(visible, hidden) - entropy)

    def positive(self, now: Any, v: Tensor, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The variational free energy, above the exact one."""
        return self.mean_field(v, now).free_energy

    def from_data(self, now: Any, v: Tensor, steps: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """``positive`` of data, and particles after ``steps`` steps that start at draws of h from q."""
        found, chain = self.mean_field(v, now), now.detached()
        with torch.no_grad():
            start = chain.sample_visible(BERNOULLI.sample(found.hidden.logit(), generator), generator)
            return found.free_energy, chain.gibbs(start, steps - 1, generator)

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The RBM of the first stage, if there is one, and the machine."""
        machine = [*self.overlaid().values(), *self.estimator.parameters()]
        return ({} if self.rbm is None else {"rbm": list(self.rbm.parameters())}) | {"model": machine}

    def stages(self) -> tuple[Stage, ...]:
        """The RBM, then all groups together."""
        joint = Stage("joint", ("model",))
        return (joint,) if self.rbm is None else (Stage("rbm", ("rbm",), self.pretraining), joint)

    def states(self, batch: Batch) -> Float[Tensor, "b v"]:
        """Pixels of a batch."""
        return self.flatten(batch.x)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Biases at the data's log-odds; all groups alike, where no RBM comes before them."""
        v = self.flatten(batch.x)
        rates = ((v.sum(0) + 1) / (len(v) + 2)).logit()
        self.level.copy_(rates.quantile(SELDOM))
        share = rates - torch.tensor(float(self.groups)).log()
        self.visible_bias[: self.of_pixels] = share.repeat_interleave(self.groups)
        if self.rbm is not None:
            self.rbm.initialise(Batch(v), generator)
        self.settle(iter([batch]), generator)
        self.estimator.initialise(self, generator)

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Take over the RBM as the first group, then start the estimator's chains."""
        if stage.name == "joint" and self.rbm is not None:
            for own, value in zip(self.overlaid().values(), self.own_parameters(), strict=True):
                own.copy_(value)
            self.joint.fill_(True)
            self.estimator.initialise(self, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The RBM's own; the estimator's, and the weights' decay."""
        if player == "rbm":
            assert self.rbm is not None
            return self.rbm.loss("model", Batch(self.flatten(batch.x)), generator)
        loss, logs = self.estimator.loss(self, self.states(batch), generator)
        squares = torch.stack([weight.square().sum() for weight in self.weights]).sum()
        return loss + 0.5 * self.weight_decay * squares, logs

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Advance chains and fast weights."""
        if player == "rbm":
            assert self.rbm is not None
            self.rbm.after_step("model", Batch(self.flatten(batch.x)), generator)
        else:
            self.estimator.after_step(self, self.states(batch), generator)

    @torch.no_grad()
    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """The visible side's means under the data, the base of annealing and of samples."""
        total, count = torch.zeros_like(self.rates), 0
        for batch in batches:
            total += self.mean_field(self.states(batch)).visible.sum(0)
            count += len(batch.x)
            if count >= SETTLING:
                break
        mean, n = total / max(count, 1), self.of_pixels
        self.rates.copy_(torch.cat([self.units.smoothed(mean[:n], count), OneOf().smoothed(mean[n:], count)]))

    # ---- capabilities ----

    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """The mean-field bound of log p(x) + log Z, a label summed out; nothing is drawn."""
        return -self.mean_field(self.flatten(x)).free_energy

    def annealing_path(self) -> GeometricPath:
        """Over pixels by group and the label, from their means under the data; hidden units are summed out."""

        def upwards(x: Tensor, generator: Generator | None) -> Tensor:
            mean, pixels = self.mean_field(self.flatten(x)).visible, self.flatten(x)
            inside = self.units.blocks(mean[:, : self.of_pixels]).clamp_min(1e-30).log().flatten(1)
            drawn = self.units.sample_within(inside, pixels, generator)
            return torch.cat([drawn, OneOf().draw_at_mean(mean[:, self.of_pixels :], generator)], 1)

        base = self.base()
        return GatedPath(self.couplings(), base.eta, base_units=base.units, upwards=upwards)

    def by_group(self, visible: Float[Tensor, "b f"]) -> Float[Tensor, "b r ..."]:
        """Of each group, what it has of the visible side's pixels, (b, groups, *shape)."""
        return self.units.blocks(visible[:, : self.of_pixels]).mT.unflatten(-1, self.spec.shape)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Run n chains of ``sample_steps`` steps from the base (MCMC, not exact draws)."""
        state = self.couplings().gibbs(self.base().sample(n, generator), self.sample_steps, generator)
        return self.by_group(state).sum(1).to(self.spec.dtype)

    @torch.no_grad()
    def parts(self, x: Tensor) -> Float[Tensor, "b r ..."]:
        """What of x each group explains, by the mean of the gates: the parts add up to x."""
        return self.by_group(self.mean_field(self.flatten(x)).visible)

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Means of the relevant group's hidden units."""
        return self.mean_field(self.flatten(x)).hidden[:, : self.hidden_sizes[0]]

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Probabilities of the pixels given the means of all hidden units, (b, *shape)."""
        now = self.couplings()
        eta = now.visible_logits(self.mean_field(self.flatten(x), now).hidden)
        return self.by_group(now.visible_units.mean(eta)).sum(1)


class SupervisedPgbm(Pgbm):
    """With the label on the relevant group."""

    def states(self, batch: Batch) -> Float[Tensor, "b v"]:
        """Pixels and labels; zeros where one is not known."""
        if batch.y is None:
            return self.flatten(batch.x)
        y = batch.y
        label = nn.functional.one_hot(y.clamp_min(0), self.classes) * (y >= 0)[:, None]
        return torch.cat([self.flatten(batch.x), label.to(self.rates)], 1)

    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Mean-field log-probabilities of the labels."""
        found, now = self.mean_field(self.flatten(x)), self.couplings()
        return now.visible_logits(found.hidden)[:, self.of_pixels :].log_softmax(1)
