"""Convolutional deep belief network: convolutional RBMs with probabilistic max-pooling, stacked greedily.

Filters shared over the picture learn parts wherever they appear, and a block of hidden units of which at most one is on
tells the next layer whether its part is there, but not exactly where. Each layer is trained on the pooled bits p_l of
the one below; the net is the highest convolutional RBM, and under it the lower ones given their pooled bits:

    p(x) = sum_{p_1 ... p_{L-1}} p(x | p_1) p(p_1 | p_2) ... p_top(p_{L-1}),      p_top(p) = sum_h exp(-E_L(p, h)) / Z

with p(x | p_1) = sum_{h in p_1} p(x, h) / p(p_1) under the lower machine, h in p_1 those whose pooled bits are p_1. It
has no closed form but is sampled by Gibbs steps that keep the pooled bits. So there is no likelihood; what the layers
are for is features (``encode``), of which probes measure the errors.

Shapes: raw x (b, c, h, w), bits; pooled bits of layer l (b, filters_l, h_l, w_l), flattened; code (b, pooled bits of
the top layer).
Paper: Lee, Grosse, Ranganath, Ng 2009, "Convolutional deep belief networks for scalable unsupervised learning of
hierarchical representations", https://doi.org/10.1145/1553374.1553453. Differs: bits at the bottom, where the paper's
pictures are whitened and real; samples as above, where the paper infers all layers together. The paper gives no value
for its sparsity; here hidden units should be on in ``sparsity`` of all places.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.conv_rbm import ConvRbm, pooled_shapes
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.stack import Stack
from dgmbench.models.contract import Stage


def require_layers(name: str, spec: DataSpec, filters: Sequence[int], widths: Sequence[int]) -> None:
    """Refuse data or lists that make no stack of two or more convolutional layers of bits."""
    if spec.kind != "binary" or not spec.is_image:
        raise UserError(
            f"{name} models binary pictures, but these are {spec}; choose a data set such as data=digits_binary."
        )
    if len(filters) < 2 or len(filters) != len(widths):
        raise UserError(
            f"{name} needs a number of filters and a width for each of two or more layers, but model.filters is "
            f"{list(filters)} and model.widths is {list(widths)}."
        )


class Cdbn(Stack):
    """Convolutional deep belief network of bits.

    Args:
        spec: binary pictures.
        filters: groups of hidden units of each layer, from the data upwards; at least two layers.
        widths: the side of each layer's filters.
        pool: side of the blocks in which at most one unit is on.
        estimator: gradient estimator of every layer (each gets a copy). Default: ``CD(k=1)``.
        view: whether an upper layer learns from samples or from means of the pooled bits below.
        sparsity: the mean that hidden units should have.
        sparsity_rate: how strongly their biases are moved towards it, beside the gradient.
        sample_steps: Gibbs steps at the top for ``sample``.
        down_steps: Gibbs steps in each lower layer, its pooled bits kept.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        filters: Sequence[int] = (24, 100),
        widths: Sequence[int] = (10, 10),
        pool: int = 2,
        estimator: Estimator | None = None,
        view: Literal["sample", "mean"] = "mean",
        sparsity: float = 0.03,
        sparsity_rate: float = 1.0,
        sample_steps: int = 200,
        down_steps: int = 50,
    ) -> None:
        super().__init__(spec)
        require_layers("cdbn", spec, filters, widths)
        require(least=1, sample_steps=sample_steps, down_steps=down_steps)
        self.down_steps = down_steps
        shapes = pooled_shapes(spec.shape, filters, widths, pool)
        rbms = [
            ConvRbm(
                DataSpec(shape, "binary"),
                filters=count,
                width=width,
                pool=pool,
                estimator=estimator,
                sparsity=sparsity,
                sparsity_rate=sparsity_rate,
                sample_steps=sample_steps,
            )
            for shape, count, width in zip(shapes[:-1], filters, widths, strict=True)
        ]
        self.stack(rbms, view)

    def rbm(self, layer: int) -> ConvRbm:
        """The machine between layers ``layer`` and ``layer + 1``, the data being layer 0."""
        return cast(ConvRbm, self.rbms[layer])

    def _up(self, layer: int, v: Tensor) -> Tensor:
        """Log-odds of the pooled bits above, given the states v below layer ``layer + 1``."""
        return self.rbm(layer).pooled_logits(v)

    def stages(self) -> tuple[Stage, ...]:
        """The layers from the data upwards."""
        return self.greedy()

    # ---- capabilities ----

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Gibbs at the top, then in each lower layer given its pooled bits (approximate draws)."""
        states = self.rbm(len(self.rbms) - 1).sample(n, generator=generator).flatten(1).to(self.rbm(0).weight.dtype)
        for layer in reversed(range(len(self.rbms) - 1)):
            states = self.rbm(layer).visible_given_pooled(states, self.down_steps, generator=generator)
        return states.to(torch.uint8).view(n, *self.spec.shape)

    def encode(self, x: Tensor) -> Float[Tensor, "b p"]:
        """Means of the highest pooled bits, passed up as means."""
        return self.wake_states(x, len(self.rbms), mean=True)[-1]
