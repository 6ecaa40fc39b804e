"""Stacks of RBMs, each trained on the states of the one below: the greedy part of every deep belief network.

    RBM 1 learns from the data, RBM l from h_{l-1}, drawn (``view="sample"``) or passed up as means (``view="mean"``)

What becomes of the stack afterwards, a generative model, an autoencoder or features for labels, is a subclass's: it
calls ``stack`` in its constructor, puts ``greedy()`` before its own stages and leaves the players ``rbm_1``, ``rbm_2``,
... to this class. Where the sizes allow it, an RBM starts as the transpose of the one below.

Grey levels are scaled to [0, 1] and stand for the probabilities of bits (Hinton & Salakhutdinov 2006).

Shapes: raw x (b, *shape); layer states are floats (b, units).
Paper: Hinton, Osindero, Teh 2006, "A fast learning algorithm for deep belief nets",
https://doi.org/10.1162/neco.2006.18.7.1527.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.energy_model import TwoSided
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.unit_layers import draw

EXAMPLES = 1000  # training examples that are kept to set the upper layers' base rates and chains


class Stack(Model):
    """RBMs on top of each other, trained from the data upwards."""

    examples: Tensor

    def stack(self, rbms: Sequence[TwoSided], view: Literal["sample", "mean"]) -> None:
        """Keep the RBMs, from the data upwards, and what upper ones learn from."""
        if view not in ("sample", "mean"):
            raise UserError(f"model.view must be sample or mean, but it is {view}.")
        if view == "mean" and any(rbm.estimator.binary_only for rbm in rbms[1:]):
            raise UserError(
                "ratio_matching and nce need 0/1 data, so upper layers cannot learn from means; use model.view=sample."
            )
        self.view = view
        self.rbms = nn.ModuleList(rbms)
        self.register_buffer("examples", torch.zeros(EXAMPLES, self.spec.dim, dtype=self.spec.dtype))

    def rbm(self, layer: int) -> TwoSided:
        """The RBM between layers ``layer`` and ``layer + 1``, the data being layer 0."""
        return cast(TwoSided, self.rbms[layer])

    # ---- upwards ----

    def lowest(self, x: Tensor) -> Float[Tensor, "b v"]:
        """Raw values (b, *shape), scaled to [0, 1]."""
        scaled = Scaling(self.spec, low=0.0, high=1.0)(x) if self.spec.kind == "discrete" else x
        return scaled.flatten(1).to(next(self.parameters()).dtype)

    def _up(self, layer: int, v: Tensor) -> Tensor:
        """Log-odds of the units above, given the states v below layer ``layer + 1``."""
        return self.rbm(layer).couplings().hidden_logits(v)

    def wake_states(
        self, x: Tensor, layers: int, *, mean: bool = False, generator: Generator | None = None
    ) -> list[Tensor]:
        """Return x and the first ``layers`` hidden layers, sampled upwards (or passed up as means)."""
        states = [self.lowest(x)]
        for layer in range(layers):
            p = self._up(layer, states[-1]).sigmoid()
            states.append(p if mean else draw(p, generator))
        return states

    def _view(self, layers: int) -> Callable[[Batch, Generator], Batch]:
        """The view of data from hidden layer ``layers``."""

        def view(batch: Batch, generator: Generator) -> Batch:
            states = self.wake_states(batch.x, layers, mean=self.view == "mean", generator=generator)
            return batch._replace(x=states[-1])

        return view

    # ---- downwards ----

    def _down(self, layer: int, h: Tensor) -> Tensor:
        """Log-odds of the units below, given the states h above layer ``layer``."""
        return self.rbm(layer).couplings().visible_logits(h)

    def downwards(self, h: Tensor, layers: int, generator: Generator | None) -> list[Tensor]:
        """States [x, h_1, ..., h_layers] drawn downwards from h = h_layers."""
        states = [h]
        for layer in reversed(range(layers)):
            states.insert(0, draw(self._down(layer, states[0]).sigmoid(), generator))
        return states

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM."""
        return {f"rbm_{layer}": list(rbm.parameters()) for layer, rbm in enumerate(self.rbms, start=1)}

    def greedy(self, share: float = 1.0) -> tuple[Stage, ...]:
        """A stage for each RBM, from the data upwards."""
        names = [f"rbm_{layer}" for layer in range(1, len(self.rbms) + 1)]
        return tuple(Stage(name, (name,), share, self._view(n) if n else None) for n, name in enumerate(names))

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Start the first RBM, and keep examples (drawn with replacement) for the start of the others."""
        chosen = torch.randint(len(batch.x), (EXAMPLES,), device=batch.x.device, generator=generator)
        self.examples.copy_(batch.x.flatten(1)[chosen])
        if self.rbms:
            self.rbm(0).initialise(Batch(self.lowest(batch.x)), generator)

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start the stage's RBM, if it is an upper one, from the one below it."""
        if stage.view is not None and stage.name.startswith("rbm_"):
            layer = int(stage.name.removeprefix("rbm_")) - 1
            self._start(layer, stage.view(Batch(self.examples), generator), generator)

    def _start(self, layer: int, states: Batch, generator: Generator) -> None:
        """Base rates and chains from the examples' states; weights tied to the RBM below where the sizes allow."""
        rbm, below = self.rbm(layer), self.rbm(layer - 1)
        rbm.initialise(states, generator)
        if isinstance(rbm, Rbm) and isinstance(below, Rbm) and rbm.weight.shape == below.weight.t().shape:
            tied = below.couplings().transposed()
            for parameter, value in zip((rbm.weight, rbm.visible_bias, rbm.hidden_bias), tied, strict=True):
                parameter.copy_(value)
            rbm.estimator.initialise(rbm, generator)

    def _seen(self, player: str, batch: Batch, generator: Generator) -> Tensor:
        """The states that the player learns from; raw data go through the view of its last stage first."""
        if batch.x.is_floating_point():
            return batch.x.flatten(1).to(next(self.parameters()).dtype)
        stage = next(stage for stage in reversed(self.stages()) if player in stage.players)
        return self.lowest(batch.x) if stage.view is None else stage.view(batch, generator).x

    def _layer(self, player: str, states: Tensor) -> tuple[TwoSided, Batch]:
        """The player's RBM and its visible states: the last ones, where several layers lie side by side."""
        rbm = self.rbm(int(player.removeprefix("rbm_")) - 1)
        return rbm, Batch(states[:, -rbm.spec.dim :])

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The RBM's own."""
        with torch.no_grad():
            rbm, seen = self._layer(player, self._seen(player, batch, generator))
        return rbm.loss("model", seen, generator)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Move the estimator's chains."""
        if player.startswith("rbm_"):
            rbm, seen = self._layer(player, self._seen(player, batch, generator))
            rbm.after_step("model", seen, generator)
