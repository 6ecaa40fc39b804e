"""Convolutional deep Boltzmann machine: layers with shared filters and probabilistic max-pooling, joined undirected.

Each layer consists of maps that share a filter, cut into blocks of which at most one unit is on, as in a convolutional
deep belief network (``cdbn.py``), but all layers are one machine, so that a unit hears from below and from above:

    E(v, h_1, ..., h_L) = -sum_l sum_k sum_ij h_l^k_ij ((W_l^k * p_{l-1})_ij + b_l^k) - sum_c a_c sum_ij v^c_ij,
    p(v) = sum_h exp(-E) / Z,

p_0 = v, and p_l the pooled bits of h_l, the sum over a block, so that E is linear in the units of each layer. Given
the others, a block is a softmax over its units and none, of the input from below and, the same for the whole block,
from above. Mean field, chains by parity, bound and annealing are those of a deep Boltzmann machine (``dbm.py``).

Shapes: raw x (b, c, h, w), bits; layers (b, K blocks C C), the units of a block side by side; code (b, K blocks).
Units: nats.
Papers: the survey names deep Boltzmann machines with convolutions in its table 1, without a source; the layers are
those of Lee, Grosse, Ranganath, Ng 2009, "Convolutional deep belief networks for scalable unsupervised learning of
hierarchical representations", https://doi.org/10.1145/1553374.1553453, and the machine and its training those of
Salakhutdinov & Hinton 2009, https://proceedings.mlr.press/v5/salakhutdinov09a.html. Differs from the latter: no
pre-training.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.cdbn import require_layers
from dgmbench.models.boltzmann.conv_rbm import channel_rates, places, pooled_shapes
from dgmbench.models.boltzmann.estimators import PCD, Estimator
from dgmbench.models.boltzmann.layered import Layered
from dgmbench.models.boltzmann.machine import Machine
from dgmbench.models.contract import Logs
from dgmbench.nn.mean_units import BITS, MeanUnits, Pooled

EXAMPLES = 1000  # training examples from which the chains start


class Cdbm(Layered):
    """Convolutional deep Boltzmann machine of bits.

    Args:
        spec: binary pictures.
        filters: groups of hidden units of each layer, from the data upwards; at least two layers.
        widths: the side of each layer's filters.
        pool: side of the blocks in which at most one unit is on.
        estimator: negative phase; a copy is kept as a submodule. Default: ``PCD(k=5)``.
        weight_decay: half the squared filters are added to the loss with this factor.
        mean_field_steps: the most updates of the mean field.
        tolerance: an example's mean field has settled when no mean changes by more in an update.
        weight_std: standard deviation of the initial filters.
        sample_steps: Gibbs steps of ``sample`` and ``complete``.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        filters: Sequence[int] = (24, 100),
        widths: Sequence[int] = (10, 10),
        pool: int = 2,
        estimator: Estimator | None = None,
        weight_decay: float = 2e-4,
        mean_field_steps: int = 50,
        tolerance: float = 1e-4,
        weight_std: float = 0.05,
        sample_steps: int = 1000,
    ) -> None:
        require_layers("cdbm", spec, filters, widths)
        require(least=0, weight_decay=weight_decay)
        shapes = pooled_shapes(spec.shape, filters, widths, pool)
        super().__init__(
            spec,
            hidden_sizes=[pool * pool * DataSpec(shape, "binary").dim for shape in shapes[1:]],
            mean_field_steps=mean_field_steps,
            tolerance=tolerance,
            weight_std=0.0,
            sample_steps=sample_steps,
        )
        self.pool, self.weight_decay = pool * pool, weight_decay
        channels = [shape[0] for shape in shapes]
        self.biases = nn.ParameterList(torch.zeros(count) for count in channels)
        self.weights = nn.ParameterList(
            weight_std * torch.randn(count, below, width, width)
            for below, count, width in zip(channels[:-1], filters, widths, strict=True)
        )
        for n, (shape, count, width) in enumerate(zip(shapes[:-1], filters, widths, strict=True)):
            self.register_buffer(f"index_{n}", places(shape, count, width, pool), persistent=False)
        empty = [self.units(n).mean(torch.zeros(size)) for n, size in enumerate(self.sizes)]
        self.rates.copy_(torch.cat(empty))
        self.train_by(PCD(k=5) if estimator is None else estimator)

    def units(self, number: int) -> MeanUnits:
        """Bits at the bottom, blocks above."""
        return Pooled(self.pool) if number else BITS

    # ---- the distribution ----

    def laid_out(self, biases: Sequence[Tensor], filters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """A bias for each unit, and filters as matrices; those above a layer meet all units of a block alike."""
        rows = []
        for n, weight in enumerate(filters):
            dense = torch.cat([weight.flatten(), weight.new_zeros(1)])[getattr(self, f"index_{n}")]
            rows.append(dense.repeat_interleave(self.pool, 0) if n else dense)
        each = [bias.repeat_interleave(size // len(bias)) for bias, size in zip(biases, self.sizes, strict=True)]
        return each, rows

    def own_parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        """A bias for each unit, and filters as matrices."""
        return self.laid_out(list(self.biases), list(self.weights))

    def machine(self, fast: Sequence[Tensor] | None = None) -> Machine:
        """The energy, with ``fast`` added to biases and filters first if given."""
        own: list[Tensor] = [*self.biases, *self.weights]
        if fast is not None:
            own = [slow + quick for slow, quick in zip(own, fast, strict=True)]
        return self.joined_by(*self.laid_out(own[: len(self.biases)], own[len(self.biases) :]))

    # ---- training ----

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the log-odds of each channel's mean, chains at the means of the layers under the data."""
        rates = channel_rates(self.flatten(batch.x), len(self.biases[0]))
        self.biases[0].copy_(rates.logit())
        self.rates[: self.spec.dim] = rates.repeat_interleave(self.spec.dim // len(rates))
        self.settle(iter([Batch(batch.x[:EXAMPLES])]), generator)
        self.estimator.initialise(self, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """A scalar whose gradient is the estimator's, and that of the filters' decay."""
        loss, logs = super().loss(player, batch, generator)
        return loss + 0.5 * self.weight_decay * torch.stack([w.square().sum() for w in self.weights]).sum(), logs

    # ---- capabilities ----

    def encode(self, x: Tensor) -> Float[Tensor, "b p"]:
        """Mean-field means of the highest pooled bits."""
        return self.mean_field(self.flatten(x)).means[-1].unflatten(-1, (-1, self.pool)).sum(-1)
