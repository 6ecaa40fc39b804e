"""Deep belief network: an RBM on top of a directed sigmoid net, built greedily from a stack of RBMs.

    p(x, h1, ..., hL) = p(x | h1) p(h1 | h2) ... p(h_{L-1}, hL),      the last factor an RBM, the others sigmoid layers

Each RBM is trained on the hidden units of the one below. The variational bound (survey, eq. 20)

    log p(x) + log Z >= E_Q [ log p(x | h1) + ... + log p*(h_{L-1}) - log Q(h1 | x) - ... - log Q(h_{L-1} | h_{L-2}) ]

never falls when an RBM whose weights start as the transpose of the one below is trained further, since the bound is
tight there: W2 = W1' with the biases exchanged leaves p(x) as it was. That start is used wherever the sizes allow it.
The data of an upper RBM are either samples (``view="sample"``: h2 from Q(h2 | h1), h1 sampled) or means
(``view="mean"``: h2 from Q(h2 | x) with mean activities passed upwards), the two ways of the survey's figure 4.

Afterwards the up-down algorithm unties the two directions of the lower layers: ``wake`` fits the generative weights to
states drawn upwards from data, the top RBM goes on learning, and ``sleep`` fits the recognition weights to states drawn
downwards after Gibbs steps at the top, started at the wake states. Its batches are the wake states side by side.

Shapes: raw x (b, *shape); layer states are floats (b, units). Units: nats.
Papers: Hinton, Osindero, Teh 2006, "A fast learning algorithm for deep belief nets",
https://doi.org/10.1162/neco.2006.18.7.1527; sizes and evaluation of Salakhutdinov & Murray 2008. Differs from the
first: no label units; any estimator of ``estimators.py``.
``sample`` runs ``sample_steps`` Gibbs steps at the top and passes down once, so its draws are approximate.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import GeometricPath
from dgmbench.models.boltzmann.estimators import CD, Estimator
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.boltzmann.stack import Stack
from dgmbench.models.contract import Logs, Stage
from dgmbench.nn.unit_layers import log_bernoulli


class Dbn(Stack):
    """Deep belief network of binary units.

    Args:
        spec: binary data of any shape.
        hidden_sizes: units of each hidden layer, from the data upwards; at least two.
        estimator: gradient estimator of every RBM (each gets a copy), or one for each. Default: ``CD(k=1)``.
        view: whether an upper RBM learns from samples or from means of the layers below.
        fine_tuning: share of the budget for the up-down algorithm, where each RBM has share 1; 0 leaves it out.
        gibbs_steps: steps at the top between the wake and the sleep phase.
        sample_steps: Gibbs steps at the top for ``sample``.
    """

    untied: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (500, 2000),
        estimator: Estimator | Sequence[Estimator] | None = None,
        view: Literal["sample", "mean"] = "sample",
        fine_tuning: float = 1.0,
        gibbs_steps: int = 3,
        sample_steps: int = 200,
    ) -> None:
        super().__init__(spec)
        if spec.kind != "binary":
            raise UserError(
                f"dbn models binary data, but these are {spec}; choose a binary data set, such as data=digits_binary."
            )
        if len(hidden_sizes) < 2:
            raise UserError(
                f"dbn needs two or more hidden layers, but model.hidden_sizes is {list(hidden_sizes)}; "
                "for one layer, use model=rbm."
            )
        require(least=1, hidden_sizes=hidden_sizes, sample_steps=sample_steps)
        require(least=0, fine_tuning=fine_tuning, gibbs_steps=gibbs_steps)
        self.fine_tuning, self.gibbs_steps = fine_tuning, gibbs_steps
        sizes = (spec.dim, *hidden_sizes)
        layers = len(hidden_sizes)
        own = (
            [CD() if estimator is None else estimator] * layers
            if not isinstance(estimator, Sequence)
            else list(estimator)
        )
        if len(own) != layers:
            raise UserError(
                f"dbn has {layers} RBMs, but {len(own)} estimators were given; give one for all, or one for each."
            )
        rbms = [
            Rbm(DataSpec((below,), "binary"), hidden=above, estimator=one, sample_steps=sample_steps)
            for (below, above), one in zip(pairwise(sizes), own, strict=True)
        ]
        self.stack(rbms, view)
        lower = list(pairwise(sizes[:-1])) if fine_tuning else []
        self.generative = nn.ModuleList(nn.Linear(above, below) for below, above in lower)
        self.recognition = nn.ModuleList(nn.Linear(below, above) for below, above in lower)
        self.register_buffer("untied", torch.zeros((), dtype=torch.bool))

    @property
    def top(self) -> Rbm:
        """The undirected part, over the last two layers."""
        return cast(Rbm, self.rbms[-1])

    def rbm(self, layer: int) -> Rbm:
        """The RBM between layers ``layer`` and ``layer + 1``, the data being layer 0."""
        return cast(Rbm, self.rbms[layer])

    # ---- the two directions of the lower layers ----

    def _down(self, layer: int, h: Tensor) -> Tensor:
        """Log-odds of the units below, given the states h above lower layer ``layer``."""
        if self.untied:
            return self.generative[layer](h)
        return super()._down(layer, h)

    def _up(self, layer: int, v: Tensor) -> Tensor:
        """Log-odds of the units above, given the states v below lower layer ``layer``."""
        if self.untied:
            return self.recognition[layer](v)
        return super()._up(layer, v)

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM, and for the two directions of the lower layers."""
        players = super().players()
        if self.fine_tuning:
            players |= {"wake": list(self.generative.parameters()), "sleep": list(self.recognition.parameters())}
        return players

    def stages(self) -> tuple[Stage, ...]:
        """The RBMs from the data upwards, then the up-down algorithm."""
        count = len(self.rbms)
        if not self.fine_tuning:
            return self.greedy()
        up_down = Stage("up_down", ("wake", f"rbm_{count}", "sleep"), self.fine_tuning, self._wake)
        return (*self.greedy(), up_down)

    def _wake(self, batch: Batch, generator: Generator) -> Batch:
        """All wake states, side by side."""
        states = self.wake_states(batch.x, len(self.rbms) - 1, generator=generator)
        return batch._replace(x=torch.cat(states, dim=1))

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start the stage's RBM from the one below it, or untie the lower layers' two directions."""
        if stage.name == "up_down":
            for layer in range(len(self.rbms) - 1):
                weight, visible_bias, hidden_bias = self.rbm(layer).couplings()
                directions = ((self.generative, weight, visible_bias), (self.recognition, weight.t(), hidden_bias))
                for net, values, bias in directions:
                    linear = cast(nn.Linear, net[layer])
                    linear.weight.copy_(values)
                    linear.bias.copy_(bias)
            self.untied.fill_(True)
        else:
            super().enter_stage(stage, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The RBMs' own losses; -log p of wake states under the generative, of dreams under the recognition weights."""
        if player.startswith("rbm_"):
            return super().loss(player, batch, generator)
        with torch.no_grad():
            states = self._seen(player, batch, generator)
        layers = list(states.split([self.rbm(layer).spec.dim for layer in range(len(self.rbms))], dim=1))
        if player == "wake":
            return -self._log_generative(layers).mean(), {}
        with torch.no_grad():
            seed = self.top.gibbs(layers[-1], self.gibbs_steps, generator=generator)
            dream = self.downwards(seed, len(layers) - 1, generator)
        return -self.log_recognition(dream).mean(), {}

    # ---- the bound ----

    def _log_generative(self, states: Sequence[Tensor]) -> Float[Tensor, " b"]:
        """Log p(x | h1) + ... + log p(h_{L-2} | h_{L-1}) of states [x, h1, ..., h_{L-1}]."""
        pairs = enumerate(pairwise(states))
        return torch.stack([log_bernoulli(below, self._down(n, above)) for n, (below, above) in pairs]).sum(0)

    def log_joint_unnormalised(self, states: Sequence[Tensor]) -> Float[Tensor, " b"]:
        """Log p(x, h1, ..., h_{L-1}) + log Z of states [x, h1, ..., h_{L-1}], the top layer summed out."""
        return self._log_generative(states) - self.top.free_energy(states[-1])

    def log_recognition(self, states: Sequence[Tensor]) -> Float[Tensor, " b"]:
        """Log Q(h1, ..., h_{L-1} | x) of the same states."""
        pairs = enumerate(pairwise(states))
        return torch.stack([log_bernoulli(above, self._up(n, below)) for n, (below, above) in pairs]).sum(0)

    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Float[Tensor, " b"]:
        """One draw of the bound of log p(x) + log Z."""
        with torch.no_grad():
            states = self.wake_states(x, len(self.rbms) - 1, generator=generator)
        return self.log_joint_unnormalised(states) - self.log_recognition(states)

    def annealing_path(self) -> GeometricPath:
        """The top RBM's path, whose end has the same Z; data are drawn up to its visible units."""

        def upwards(x: Tensor, generator: Generator | None) -> Tensor:
            return self.wake_states(x, len(self.rbms) - 1, generator=generator)[-1]

        return GeometricPath(self.top.couplings(), self.top.base_logits, upwards=upwards)

    # ---- capabilities ----

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Gibbs at the top from its base rates, then one pass down (approximate draws)."""
        h = self.top.flatten(self.top.sample(n, generator=generator))
        return self.downwards(h, len(self.rbms) - 1, generator)[0].to(torch.uint8).view(n, *self.spec.shape)

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """Mean activities passed up to the top layer."""
        return self.top.hidden_probability(self.wake_states(x, len(self.rbms) - 1, mean=True)[-1])

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Mean activities up to the top layer and down again: probabilities (b, *shape)."""
        p = self.top.visible_probability(self.encode(x))
        for layer in reversed(range(len(self.rbms) - 1)):
            p = self._down(layer, p).sigmoid()
        return p.view(x.shape)
