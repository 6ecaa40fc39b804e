"""Masked autoregressive flow: a stack of MADEs, each of which whitens the data by what the dimensions before predict.

In every layer a masked network predicts a Gaussian of each dimension from those before it, and hands on the noise that
would draw the data; alternate layers take the dimensions in reversed order. The density costs one pass of each network,

    z_i = (x_i - mu_i(x_before(i))) exp(-a_i(x_before(i))),      log |det dz/dx| = -sum_i a_i,
    loss = -E_data[log p(z) + sum over layers of log |det dz/dx|],

and a sample takes D steps a layer, which together do the work of about one pass (``nn/masked.py``). The base p(z) is
N(0, I), or for ``base=mog`` (MAF-MoG) one more MADE whose conditionals are mixtures of Gaussians. With
``class_conditional=true`` (``cmaf``) the label enters every MADE and is never masked: log p(x | y), and without a label
log sum_y p(y) p(x | y).

Batch normalisation stands before each MADE, a bijection itself. Training normalises by the batch; evaluation by moments
of the *whole training set*, recomputed before every validation (``settle``), as the paper does. Between two validations
samples use running averages that start there.

Shapes and units: x is raw (b, *shape), z (b, D); log-densities are in nats per example. On binary and discrete data the
number is the uniform dequantisation bound (``flow.py``).

Paper: Papamakarios, Pavlakou, Murray, "Masked Autoregressive Flow for Density Estimation", NeurIPS 2017,
https://arxiv.org/abs/1705.07057.

Different from the paper: a batch normalisation comes before each MADE and not after it, so that the first one
standardises the data; it has no scale and shift of its own, which the next MADE's would only repeat. The log scales
are cut off at -7 and 7. A label also reaches the outputs directly, since the first dimension sees no hidden
unit and its density could otherwise not depend on the label. Two hidden layers of 100 units are what the paper takes
for POWER and GAS, or one, as validation has it; it takes 512 to 2048 for larger sets. Adam at 1e-3 with no penalty and
a budget, where the paper has 1e-4, a penalty of 1e-6 and stops after 30 epochs without progress (the experiments
``papamakarios2017_maf_...`` have its rate and penalty). On levels the logit takes all of (0, K), where the paper's
logit(lambda + (1 - 2 lambda) x / K) leaves mass outside the data space; no flipped images.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.flow.flow import Dequantised, Flow, Given
from dgmbench.nn.bases import Base
from dgmbench.nn.bijections import Bijection, Flatten, Mapped, Normalisation
from dgmbench.nn.labels import labelled_part, one_hot
from dgmbench.nn.masked import MaskedMlp, Nonlinearity, Order
from dgmbench.nn.masked_flows import MaskedAffine, MaskedMixture, settle


class Maf(Flow):
    """Masked autoregressive flow (Papamakarios, Pavlakou, Murray 2017).

    Args:
        spec: the data space; images are flattened in C order.
        layers: MADEs in the stack.
        hidden_sizes: hidden layers of each MADE.
        nonlinearity: of the hidden units, ``relu`` or ``tanh`` (the paper's for GAS).
        order: ``alternating`` (C order and its reverse in turn) or ``random`` (an order of its own for each layer).
        batch_norm: batch normalisation before each MADE.
        base: ``normal`` for N(0, I), or ``mog`` for a MADE with mixtures of Gaussians.
        components: Gaussians of each dimension of the base ``mog``.
        class_conditional: lets the density depend on the label. Codes (``encode``) are those without a label.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        layers: int = 5,
        hidden_sizes: Sequence[int] = (100, 100),
        nonlinearity: Nonlinearity = "relu",
        order: Literal["alternating", "random"] = "alternating",
        batch_norm: bool = True,
        base: Literal["normal", "mog"] = "normal",
        components: int = 10,
        class_conditional: bool = False,
    ) -> None:
        super().__init__(spec)
        require(least=1, layers=layers, hidden_sizes=hidden_sizes, components=components)
        if order not in ("alternating", "random"):
            raise UserError(f"model.order={order!r}, but it is alternating or random.")
        if nonlinearity not in ("relu", "tanh"):
            raise UserError(f"model.nonlinearity={nonlinearity!r}, but it is relu or tanh.")
        if base not in ("normal", "mog"):
            raise UserError(f"model.base={base!r}, but it is normal or mog.")
        if class_conditional:
            self.condition_on_classes()
        dim, classes = spec.dim, (spec.num_classes or 0) if class_conditional else 0
        turns: tuple[Order, Order] = ("natural", "reversed") if order == "alternating" else ("random", "random")
        steps: list[Bijection] = [Flatten(spec.shape)] if len(spec.shape) > 1 else []
        for layer in range(layers):
            turn = turns[layer % 2]
            net = MaskedMlp(dim, hidden_sizes, 2, order=turn, context=classes, nonlinearity=nonlinearity)
            steps += [Normalisation(dim)] if batch_norm else []
            steps.append(self._layer(net))
        mixture: Base | None = None
        if base == "mog":
            how: dict[str, Any] = {"order": turns[layers % 2], "num_classes": classes, "nonlinearity": nonlinearity}
            mixture = MaskedMixture(dim, hidden_sizes, components, **how)
        self.compose(steps, mixture)

    @staticmethod
    def _layer(net: MaskedMlp) -> Bijection:
        return MaskedAffine(net)

    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Take the moments of the whole training set into every normalisation."""
        steps: list[Bijection] = list(self.bijection.parts())
        if any(isinstance(step, Normalisation) for step in steps):
            settle(steps, [self._part(batch, generator) for batch in batches])

    def _part(self, batch: Batch, generator: Generator) -> tuple[Tensor, ...]:
        batch = labelled_part(batch) if self.conditional else batch
        values, label = self.continuous(batch.x, generator=generator), self._label(batch.y)
        return (values,) if label is None else (values, self._context(label, values))

    def _given(self, v: Tensor) -> Given:
        if not self.conditional:
            return super()._given(v)

        def given(y: Tensor | None) -> Tensor:
            assert y is not None
            z, log_det = self._through(v, self._context(y, v))
            return self.base.log_prob(z, y) + log_det

        return given

    def _through(self, v: Tensor, context: Tensor | None) -> Mapped:
        """Data to noise given contexts (b, num_classes)."""
        total = v.new_zeros(len(v))
        for step in self.bijection.parts():
            v, log_det = step(v, context) if isinstance(step, MaskedAffine) else step(v)
            total = total + log_det
        return v, total

    def _from_noise(self, z: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            return super()._from_noise(z, y)
        context = self._context(y, z)
        for step in reversed(list(self.bijection.parts())):
            z, _ = step.inverse(z, context) if isinstance(step, MaskedAffine) else step.inverse(z)
        return z

    def _context(self, y: Tensor, like: Tensor) -> Tensor:
        assert self.spec.num_classes is not None
        return one_hot(y, self.spec.num_classes, like.dtype)


class DequantisedMaf(Dequantised, Maf):
    """The flow on data with levels: a bound in place of the density."""


Maf.on_levels = DequantisedMaf
