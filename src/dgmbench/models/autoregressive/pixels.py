"""What the autoregressive models of images share: likelihood, labels, ancestral sampling and completion.

A ``PixelModel`` gives the parameters of all conditionals p(x_i | x before i) in one pass, so that

    log p(x) = sum_i log p(x_i | x_before(i)),      loss = -E_data[log p(x)],

is exact, in nats per example. Values have levels: a binary pixel's conditional is a Bernoulli with one logit, another
one's a softmax over its levels. ``raster.py`` has the order pixel by pixel.

With ``conditional`` the model is p(x | y), and log p(x) is that of the mixture, log sum_y p(y) p(x | y).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.labels import count_classes, draw_classes, marginal, one_hot, start_class_prior
from dgmbench.nn.levels import draw_levels, every_log_prob, level_log_prob, marginal_parameters, parameters_per_value
from dgmbench.nn.scaling import Scaling

Draw = Callable[[slice, Float[Tensor, "n p k"]], Int[Tensor, "n p"]]
"""Raw values of the dimensions at some successive positions of the order, from their parameters."""


class PixelModel(Model, ABC):
    """An autoregressive model of binary or discrete images."""

    class_log_prior: Tensor

    def __init__(self, spec: DataSpec, *, conditional: bool = False) -> None:
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete") or not spec.is_image:
            raise UserError(f"{type(self).__name__} takes binary or discrete images (c, h, w), not {spec}.")
        self.scaling = Scaling(spec)
        self.parameters_per_value = parameters_per_value(spec)
        self.conditional = conditional
        if conditional:
            start_class_prior(self, spec)

    @abstractmethod
    def given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b d p"]:
        """The parameters of all conditionals for raw x (b, *shape) and labels y (b,), dimensions in C order."""

    @abstractmethod
    def generate(self, n: int, y: Tensor | None, draw: Draw) -> None:
        """Go through the order once, handing the parameters of n examples to ``draw`` and going on from its values."""

    @abstractmethod
    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension in the order."""

    @abstractmethod
    def output_biases(self) -> Sequence[Float[Tensor, " cp"]]:
        """The biases of the output layers, channel by channel."""

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output biases to each channel's frequencies, and count the classes."""
        values = batch.x.movedim(1, -1).flatten(0, -2)
        start = marginal_parameters(values, self.spec.levels or 2, self.parameters_per_value).flatten()
        for bias in self.output_biases():
            bias.copy_(start)
        if self.conditional:
            count_classes(self.class_log_prior, batch.y)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-likelihood, given the labels if the model is conditional."""
        if self.conditional and batch.y is None:
            raise UserError("A class-conditional model needs labels with every batch, and this one has none.")
        nll = -self._log_prob_given(batch.x, batch.y).mean()
        return nll, {"log_prob": -nll.detach()}

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, *shape), nats per example; of p(x | y) if conditional and given labels."""
        if not self.conditional or y is not None:
            return self._log_prob_given(x, y)
        return marginal(lambda label: self._log_prob_given(x, label), self.class_log_prior, len(x))

    def conditional_logits(self, x: Tensor, y: Tensor | None = None) -> Float[Tensor, "b d p"]:
        """Parameters of the conditionals given raw x (b, *shape), dimensions in C order.

        Those of the marginal, if the model is conditional and no labels are given: p(x_i | x_before) is the mean of
        p(x_i | x_before, y) over p(y | x_before).
        """
        if not self.conditional or y is not None:
            return self.given(x, y)
        given = torch.stack(
            [self.given(x, torch.full_like(x[:, 0, 0, 0], k)) for k in range(len(self.class_log_prior))]
        )
        of_x = level_log_prob(given, x.flatten(1).expand(given.shape[:-1]))
        order = self.ordering()
        in_order = of_x[..., order.argsort()].cumsum(-1)
        before = F.pad(in_order, (1, -1))[..., order] + self.class_log_prior[:, None, None]
        mixed = (before.log_softmax(0)[..., None] + every_log_prob(given)).logsumexp(0)
        return mixed[..., 1:] - mixed[..., :1] if self.parameters_per_value == 1 else mixed

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n exact samples, raw (n, *shape); of the labels y (n,), or of labels from the prior, if conditional."""
        if self.conditional and y is None:
            y = draw_classes(self.class_log_prior, n, generator)
        return self._ancestral(n, y, generator)

    @torch.no_grad()
    def complete(
        self, x: Tensor, known: Bool[Tensor, "b *shape"], y: Tensor | None = None, *,
        generator: Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw the unknown dimensions in order, each given everything before it; the known ones keep their values.

        Exact draws of p(unknown | known) only if every known dimension comes before all unknown ones in ``ordering()``
        (the upper part of an image, for models in raster order). Otherwise it is forced ancestral sampling: a value
        is drawn without regard to the known ones that come after it, though later draws take account of those.

        A conditional model without y draws labels from p(y | the known dimensions before the first unknown one).
        """
        if known.shape != x.shape or x.shape[1:] != self.spec.shape:
            raise UserError(
                f"x and known must both be (b, {', '.join(map(str, self.spec.shape))}), not {tuple(x.shape)} and "
                f"{tuple(known.shape)}."
            )
        if self.conditional and y is None:
            y = self._draw_labels(x, known, generator)
        return self._ancestral(len(x), y, generator, (x, known))

    def noise(self, n: int, generator: Generator | None = None) -> Float[Tensor, "d n"]:
        """The randomness of n samples: a uniform for every position of the order."""
        like = self.output_biases()[0]
        return torch.rand(self.spec.dim, n, generator=generator, device=like.device, dtype=like.dtype)

    def _inputs(self, x: Tensor) -> Float[Tensor, "..."]:
        """Raw values as the networks see them."""
        return cast(Tensor, self.scaling(x)).to(self.output_biases()[0].dtype)

    def _label_code(self, y: Tensor | None) -> Float[Tensor, "b classes"] | None:
        if not self.conditional:
            return None
        assert y is not None
        return one_hot(y, len(self.class_log_prior), self.class_log_prior.dtype)

    def _log_prob_given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, " b"]:
        return level_log_prob(self.given(x, y), x.flatten(1)).sum(1)

    def _draw_labels(self, x: Tensor, known: Tensor, generator: Generator | None) -> Tensor:
        order = self.ordering().argsort()
        prefix = known.flatten(1)[:, order].cumprod(1)
        weights = []
        for label in range(len(self.class_log_prior)):
            given = self.given(x, torch.full_like(x[:, 0, 0, 0], label))
            weights.append((level_log_prob(given, x.flatten(1))[:, order] * prefix).sum(1))
        posterior = (torch.stack(weights, 1) + self.class_log_prior).softmax(1)
        return torch.multinomial(posterior, 1, generator=generator)[:, 0]

    def _ancestral(
        self, n: int, y: Tensor | None, generator: Generator | None, forced: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        noise, order = self.noise(n, generator), self.ordering()
        sequence = order.argsort()
        values = torch.zeros(self.spec.dim, n, dtype=torch.int64, device=noise.device)
        if forced is not None:
            x, known = (part.to(noise.device).flatten(1)[:, sequence].T for part in forced)

        def draw(positions: slice, parameters: Tensor) -> Tensor:
            value = draw_levels(parameters, noise[positions].T)
            if forced is not None:
                value = torch.where(known[positions].T, x[positions].T.long(), value)
            values[positions] = value.T
            return value

        self.generate(n, y, draw)
        return values[order].T.reshape(n, *self.spec.shape).to(self.spec.dtype)
