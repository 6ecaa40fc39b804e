"""Deep belief network whose top is a third-order Boltzmann machine with the label (``third_order.py``).

In a usual network with labels they are some more visible units of the top machine; here the label multiplies the
interactions of features and hidden units, so that each class has weights of its own, under one energy. The top learns
from the features h of a stack of RBMs by a hybrid of two gradients,

    min  E[ F(h, l) - F(h-, l-) ] + discriminative E[ -log p(l | h) ],      p(l | h) = softmax(-F(h, .)),

the first by contrastive divergence, (h-, l-) after k Gibbs steps from the data, the second exact. Examples without a
label (-1) have F(h), l summed out, and no second term.

Shapes: raw x (b, *shape); y (b,) int64; scores (b, classes). Units: nats.
Paper: Nair & Hinton 2009, "3D object recognition with deep belief nets",
https://papers.nips.cc/paper/3872-3d-object-recognition-with-deep-belief-nets. Differs: fully connected bits instead of
local receptive fields on real-valued stereo pictures, no sparsity target; W_l is not factored.
``sample`` is Markov chain Monte Carlo at the top and one pass down, so its draws are approximate.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.boltzmann.stack import Stack
from dgmbench.models.boltzmann.third_order import ThirdOrder
from dgmbench.models.contract import Logs, Stage
from dgmbench.nn.labels import count_classes, draw_classes, label_nll, start_class_prior
from dgmbench.nn.unit_layers import smoothed_rates


class ThirdOrderDbn(Stack):
    """Deep belief network of bits with a third-order machine of features, hidden units and labels at its top.

    Args:
        spec: binary data of any shape, with labels.
        hidden_sizes: units of each layer of features, from the data upwards; at least one.
        top: hidden units of the third-order machine.
        discriminative: weight of -log p(l | h) beside the generative gradient.
        k: Gibbs steps of contrastive divergence at the top.
        top_share: share of the budget for the top, where each RBM has share 1.
        view: whether upper layers learn from samples or from means of the layers below.
        sample_steps: Gibbs steps at the top for ``sample``.
    """

    class_log_prior: Tensor
    top_rates: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden_sizes: Sequence[int] = (1000,),
        top: int = 1000,
        discriminative: float = 1.0,
        k: int = 1,
        top_share: float = 2.0,
        view: Literal["sample", "mean"] = "mean",
        sample_steps: int = 200,
    ) -> None:
        super().__init__(spec)
        if spec.kind != "binary":
            raise UserError(
                f"third_order_dbn models binary data, but these are {spec}; choose a data set such as "
                "data=digits_binary."
            )
        start_class_prior(self, spec)  # refuses data without labels
        if not hidden_sizes:
            raise UserError("third_order_dbn needs a layer of features, but model.hidden_sizes is empty.")
        require(least=1, hidden_sizes=hidden_sizes, top=top, k=k, sample_steps=sample_steps)
        require(least=0, discriminative=discriminative)
        require(above=0, top_share=top_share)
        self.discriminative, self.k, self.top_share, self.sample_steps = discriminative, k, top_share, sample_steps
        pairs = pairwise((spec.dim, *hidden_sizes))
        self.stack([Rbm(DataSpec((below,), "binary"), hidden=above) for below, above in pairs], view)
        self.top = ThirdOrder(hidden_sizes[-1], top, cast(int, spec.num_classes))
        self.register_buffer("top_rates", torch.full((hidden_sizes[-1],), 0.5))

    # ---- training ----

    def batch_policy(self) -> BatchPolicy | None:
        """Examples as they come: those without a label teach what the features look like."""
        return None

    def players(self) -> dict[str, list[nn.Parameter]]:
        """One for each RBM, and the top."""
        return super().players() | {"top": list(self.top.parameters())}

    def stages(self) -> tuple[Stage, ...]:
        """The RBMs from the data upwards, then the top."""
        return (*self.greedy(), Stage("top", ("top",), self.top_share, self._view(len(self.rbms))))

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Start the first RBM, and count the labels."""
        super().initialise(batch, generator)
        count_classes(self.class_log_prior, batch.y)
        self.top.label_bias.copy_(self.class_log_prior)

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Start an RBM, or the top's biases at the means of the features."""
        super().enter_stage(stage, generator)
        if stage.name == "top":
            features = self._view(len(self.rbms))(Batch(self.examples), generator).x
            self.top_rates.copy_(smoothed_rates(features.mean(0), len(features)))
            self.top.visible_bias.copy_(self.top_rates.logit())

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The RBMs' own losses; the hybrid one of the top."""
        if player != "top":
            return super().loss(player, batch, generator)
        with torch.no_grad():
            h = self._seen(player, batch, generator)
            y = torch.full((len(h),), -1, device=h.device) if batch.y is None else batch.y
            start = torch.where(y >= 0, y, self.top.draw_labels(self.top.label_log_prob(h), generator))
            negative = self.top.gibbs(h, start, self.k, generator)
        contrast = self.top.free_energy(h, y).mean() - self.top.free_energy(*negative).mean()
        label = label_nll(self.top.label_log_prob(h), y)
        logs = {"contrast": contrast.detach(), "label_nll": label.detach()}
        return contrast + self.discriminative * label, logs

    # ---- capabilities ----

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Gibbs at the top, labels y (n,) kept if given, then one pass down (approximate draws)."""
        h = torch.bernoulli(self.top_rates.expand(n, -1), generator=generator)
        labels = draw_classes(self.class_log_prior, n, generator) if y is None else y
        h, _ = self.top.gibbs(h, labels, self.sample_steps, generator, keep=y is not None)
        return self.downwards(h, len(self.rbms), generator)[0].to(torch.uint8).view(n, *self.spec.shape)

    def encode(self, x: Tensor) -> Float[Tensor, "b h"]:
        """The features that the top sees, passed up as means."""
        return self.wake_states(x, len(self.rbms), mean=True)[-1]

    def classify(self, x: Tensor) -> Float[Tensor, "b c"]:
        """Log p(l | features of x)."""
        return self.top.label_log_prob(self.encode(x))
