"""Deep autoencoder that starts as a deep belief network, unrolled: a stack of RBMs up to a small code, and back down.

A deep autoencoder learns badly from random weights and well from weights that are near a good solution. RBMs find
these, layer by layer: each is trained on the means of the layer below, the highest with a code of real units. Unrolled,
the encoder has their weights, the decoder the transposed ones; then all layers are trained by back-propagation to

    min  E[ -sum_i v_i log p_i + (1 - v_i) log(1 - p_i) ],      p = decoder(encoder(v)),

the cross-entropy of the values v in [0, 1] and their reconstruction. The code is linear: no squashing at its layer.

    encoder: mu_1 = sigmoid(b_1 + v W_1), ..., code = b_L + mu_{L-1} W_L;    decoder: sigmoid(a_L + code W_L'), ...

Shapes: raw x (b, *shape), scaled to v (b, visible); code (b, code). Units: nats; squared errors in scaled pixels^2,
summed over an example.
Paper: Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks", Science 313,
https://doi.org/10.1126/science.1127647. Differs: gradient descent with momentum in both phases, where the paper
fine-tunes by conjugate gradients on batches of 1000; one rate for all RBMs, where the code's learns at a hundredth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.boltzmann.stack import Stack
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.unit_layers import Gaussian


class CodeRbm(Rbm):
    """An RBM whose hidden units are real, of deviation 1 around b + v W."""

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Those of an RBM, with other units above."""
        return replace(super().couplings(fast), hidden_units=Gaussian.of(torch.ones_like(self.hidden_bias)))

    def hidden_probability(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b h"]:
        """Means of the code, which are no probabilities."""
        return self.couplings().hidden_logits(v)


class DbnAutoencoder(Stack):
    """Autoencoder of sigmoid layers with a linear code, pre-trained by RBMs.

    Args:
        spec: binary data or grey levels of any shape.
        hidden_sizes: units of the hidden layers below the code, from the data upwards.
        code: dimensions of the code.
        pretraining: share of the budget for each RBM, where fine-tuning has share 1; 0 leaves them out, and the
            autoencoder starts at random weights.
        weight_decay: half the squared weights of an RBM are added to its loss with this factor.
    """

    unrolled: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (1000, 500, 250),
        code: int = 30,
        pretraining: float = 0.5,
        weight_decay: float = 2e-4,
    ) -> None:
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete"):
            raise UserError(
                f"dbn_autoencoder takes bits or grey levels, but these are {spec}; choose a data set "
                "such as data=digits."
            )
        if not hidden_sizes:
            raise UserError("dbn_autoencoder needs a hidden layer below its code, but model.hidden_sizes is empty.")
        require(least=1, hidden_sizes=hidden_sizes, code=code)
        require(least=0, pretraining=pretraining, weight_decay=weight_decay)
        self.pretraining = pretraining
        pairs = list(pairwise((spec.dim, *hidden_sizes, code)))
        self.stack(
            [
                (CodeRbm if n == len(hidden_sizes) else Rbm)(
                    DataSpec((below,), "binary"), hidden=above, weight_decay=weight_decay
                )
                for n, (below, above) in enumerate(pairs if pretraining else [])
            ],
            "mean",
        )
        self.encoder = nn.ModuleList(nn.Linear(below, above) for below, above in pairs)
        self.decoder = nn.ModuleList(nn.Linear(above, below) for below, above in reversed(pairs))
        self.register_buffer("unrolled", torch.tensor(not pretraining))  # whether the autoencoder's own weights count

    # ---- the two directions ----

    def code_of(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b c"]:
        """The code of values in [0, 1]; before unrolling, by the RBMs."""
        last = len(self.encoder) - 1
        for n, linear in enumerate(self.encoder):
            v = linear(v) if self.unrolled else self._up(n, v)
            v = v if n == last else v.sigmoid()
        return v

    def logits_of(self, code: Float[Tensor, "b c"]) -> Float[Tensor, "b v"]:
        """Log-odds of the data given a code; before unrolling, by the RBMs."""
        last, h = len(self.decoder) - 1, code
        for n, linear in enumerate(self.decoder):
            h = linear(h) if self.unrolled else self.rbm(last - n).couplings().visible_logits(h)
            h = h if n == last else h.sigmoid()
        return h

    def encode(self, x: Tensor) -> Float[Tensor, "b c"]:
        """The code of raw x (b, *shape)."""
        return self.code_of(self.lowest(x))

    def decode(self, code: Float[Tensor, "b c"]) -> Tensor:
        """Means of the data given a code, floats (b, *shape) on the raw scale."""
        p = self.logits_of(code).sigmoid().view(len(code), *self.spec.shape)
        return Scaling(self.spec, low=0.0, high=1.0).unrounded(p)

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Up to the code and down again, floats (b, *shape) on the raw scale."""
        return self.decode(self.encode(x))

    # ---- training ----

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM, and the autoencoder."""
        return super().players() | {"autoencoder": [*self.encoder.parameters(), *self.decoder.parameters()]}

    def stages(self) -> tuple[Stage, ...]:
        """The RBMs from the data upwards, then back-propagation through all layers."""
        return (*self.greedy(self.pretraining), Stage("fine_tuning", ("autoencoder",)))

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start an RBM, or unroll them all."""
        super().enter_stage(stage, generator)
        if stage.name == "fine_tuning" and self.rbms:
            for n, (up, down) in enumerate(zip(self.encoder, reversed(list(self.decoder)), strict=True)):
                weight, visible_bias, hidden_bias = self.rbm(n).couplings()
                for linear, values, bias in ((up, weight.t(), hidden_bias), (down, weight, visible_bias)):
                    cast(nn.Linear, linear).weight.copy_(values)
                    cast(nn.Linear, linear).bias.copy_(bias)
            self.unrolled.fill_(True)

    def cross_entropy(self, v: Float[Tensor, "b v"]) -> Float[Tensor, " b"]:
        """-log p of bits whose means are v, at the reconstruction of v, summed over an example."""
        decoder_logits = self.logits_of(self.code_of(v))
        return F.binary_cross_entropy_with_logits(decoder_logits, v, reduction="none").sum(1)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The RBMs' own losses; of the autoencoder, the cross-entropy of the unrolled network."""
        if player.startswith("rbm_"):
            return super().loss(player, batch, generator)
        return self.cross_entropy(self.lowest(batch.x)).mean(), {}

    # ---- what is measured ----

    def objectives(self) -> Mapping[str, HeldOut]:
        """Errors of reconstruction; the squared one is what the paper reports."""
        return {
            "squared_error": HeldOut("scaled pixels^2", "lower", "exact"),
            "cross_entropy": HeldOut("nats", "lower", "exact"),
        }

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        """Both errors of each example."""
        v = self.lowest(batch.x)
        p = self.logits_of(self.code_of(v)).sigmoid()
        return {"squared_error": (p - v).square().sum(1), "cross_entropy": self.cross_entropy(v)}
