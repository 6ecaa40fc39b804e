"""Convolutional RBM with probabilistic max-pooling (Lee, Grosse, Ranganath, Ng 2009).

Hidden units come in K groups, maps that a filter W^k is shared in; the map is cut into blocks of C x C units, of which
at most one is on. A pooled bit says whether one is:

    E(v, h) = -sum_k sum_ij h^k_ij ((W^k * v)_ij + b_k) - sum_c a_c sum_ij v^c_ij,
    p(h^k_ij = 1 | v) = exp(I^k_ij) / (1 + sum over its block of exp(I^k)),      I^k = b_k + W^k * v  (valid)

With filters laid out as one matrix (``dense``) this is an energy of two sides, so chains, estimators, annealing and
enumeration are those of every other RBM.

Shapes: v (b, c h w); hidden units (b, K blocks C C), those of a block side by side; pooled bits (b, K h' w').
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.energy_model import TwoSided
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.contract import Logs
from dgmbench.nn.mean_units import Pooled
from dgmbench.nn.unit_layers import BERNOULLI, Independent, smoothed_rates


def pooled_shape(shape: Sequence[int], filters: int, width: int, pool: int, *, number: int = 1) -> tuple[int, int, int]:
    """Shape (filters, h', w') of the pooled bits over a layer (c, h, w), or why there is none."""
    sides = [side - width + 1 for side in shape[1:]]
    if any(side < 1 or side % pool for side in sides):
        raise UserError(
            f"Filters of width {width} make {' x '.join(map(str, sides))} hidden units of layer {number}, whose input "
            f"is {' x '.join(map(str, shape[1:]))}, and these do not fit into blocks of {pool} x {pool}; change "
            "model.widths or model.pool."
        )
    return filters, sides[0] // pool, sides[1] // pool


def pooled_shapes(
    shape: Sequence[int], filters: Sequence[int], widths: Sequence[int], pool: int
) -> list[tuple[int, ...]]:
    """The shapes of the data and of the pooled bits of every layer."""
    require(least=1, filters=filters, widths=widths, pool=pool)
    shapes: list[tuple[int, ...]] = [tuple(shape)]
    for number, (count, width) in enumerate(zip(filters, widths, strict=True), start=1):
        shapes.append(pooled_shape(shapes[-1], count, width, pool, number=number))
    return shapes


def places(shape: Sequence[int], filters: int, width: int, pool: int) -> Int[Tensor, "v h"]:
    """Which number of the filters (K, c, width, width) joins a visible and a hidden unit; one past the last if none."""
    c, height, breadth = shape
    count, rows, columns = pooled_shape(shape, filters, width, pool)
    index = torch.full((c, height, breadth, count, rows, columns, pool, pool), count * c * width * width)
    number = torch.arange(count * c * width * width).view(count, c, width, width)
    for row in range(rows * pool):
        for column in range(columns * pool):
            block = (row // pool, column // pool, row % pool, column % pool)
            index[:, row : row + width, column : column + width, :, *block] = number.permute(1, 2, 3, 0)
    return index.view(c * height * breadth, -1)


def channel_rates(v: Float[Tensor, "b v"], channels: int) -> Float[Tensor, " c"]:
    """Means of each channel's bits, with one example of each value added."""
    return smoothed_rates(v.view(len(v), channels, -1).mean((0, 2)), len(v))


class ConvRbm(TwoSided):
    """Convolutional RBM of bits with pooled hidden units.

    Args:
        spec: binary images.
        filters: groups of hidden units.
        width: side of a filter.
        pool: side of a block.
        estimator: how the gradient is estimated; a copy is kept as a submodule. Default: ``CD(k=1)``.
        sparsity: the mean that hidden units should have.
        sparsity_rate: how strongly their biases are moved towards it, beside the gradient; 0 leaves it out.
        weight_std: standard deviation of the initial filters.
        sample_steps: Gibbs steps of ``sample``.
    """

    base_logits: Tensor
    index: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        filters: int,
        width: int,
        pool: int,
        estimator: Estimator | None = None,
        sparsity: float = 0.003,
        sparsity_rate: float = 0.0,
        weight_std: float = 0.05,
        sample_steps: int = 1000,
    ) -> None:
        super().__init__(spec, sample_steps=sample_steps)
        require(least=1, filters=filters, width=width, pool=pool)
        require(least=0, most=1, sparsity=sparsity)
        require(least=0, sparsity_rate=sparsity_rate, weight_std=weight_std)
        self.units = Pooled(pool * pool)
        self.sparsity, self.sparsity_rate = sparsity, sparsity_rate
        self.weight = nn.Parameter(weight_std * torch.randn(filters, spec.shape[0], width, width))
        self.visible_bias = nn.Parameter(torch.zeros(spec.shape[0]))
        self.hidden_bias = nn.Parameter(torch.zeros(filters))
        self.register_buffer("base_logits", torch.zeros(spec.dim))
        self.register_buffer("index", places(spec.shape, filters, width, pool), persistent=False)
        self.train_by(estimator)

    # ---- the distribution ----

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Filters as one matrix, biases unit by unit, with ``fast`` added first if given."""
        own: list[Tensor] = [self.weight, self.visible_bias, self.hidden_bias]
        if fast is not None:
            own = [slow + quick for slow, quick in zip(own, fast, strict=True)]
        weight, a, b = own
        dense = torch.cat([weight.flatten(), weight.new_zeros(1)])[self.index]
        visible, hidden = self.state_sizes()
        a, b = a.repeat_interleave(visible // len(a)), b.repeat_interleave(hidden // len(b))
        return Couplings(dense, a, b, BERNOULLI, self.units)

    def base(self) -> Independent:
        """Independent bits with the means of each channel of the data."""
        return Independent(BERNOULLI, self.base_logits)

    def state_sizes(self) -> tuple[int, int]:
        """Visible and hidden units."""
        visible, hidden = self.index.shape
        return visible, hidden

    def pooled_logits(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b p"]:
        """Log-odds of the pooled bits given v."""
        return self.units.pooled(self.couplings().hidden_logits(v))

    @torch.no_grad()
    def visible_given_pooled(
        self, on: Float[Tensor, "n p"], steps: int, *, generator: Generator | None = None
    ) -> Float[Tensor, "n v"]:
        """States of the visible units after ``steps`` Gibbs steps in which the pooled bits stay as they are."""
        now = self.couplings()
        eta = now.hidden_bias.expand(len(on), -1)
        v = on.new_zeros(len(on), len(now.visible_bias))
        for _ in range(steps):
            v = now.sample_visible(self.units.sample_within(eta, on, generator), generator)
            eta = now.hidden_logits(v)
        return v

    # ---- training ----

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the log-odds of each channel's mean, then the estimator's chains."""
        v = self.flatten(batch.x)
        rates = channel_rates(v, len(self.visible_bias))
        self.visible_bias.copy_(rates.logit())
        self.base_logits.copy_(self.visible_bias.repeat_interleave(self.spec.dim // len(rates)))
        self.estimator.initialise(self, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """A scalar whose gradient is the estimator's, and in the hidden biases also that of sparsity (section 3.3)."""
        loss, logs = super().loss(player, batch, generator)
        if not self.sparsity_rate:
            return loss, logs
        with torch.no_grad():
            now = self.couplings()
            mean = self.units.mean(now.hidden_logits(self.flatten(batch.x))).mean(0).view(len(self.hidden_bias), -1)
            excess = mean.mean(1) - self.sparsity
        return loss + self.sparsity_rate * excess @ self.hidden_bias, {**logs, "hidden_mean": mean.mean()}
