"""What the autoregressive models of images share: likelihood, labels, ancestral sampling and completion.

A ``PixelModel`` gives the parameters of all conditionals p(x_i | x before i) in one pass, so that

    log p(x) = sum_i log p(x_i | x_before(i)),      loss = -E_data[log p(x)],

is exact, in nats per example. Values have levels: a binary pixel's conditional is a Bernoulli with one logit, another
one's a softmax over its levels. A ``RasterModel`` takes pixels row by row and the channels of a pixel in turn (R, then
G given R, then B given both); it is sampled through a cache of all that is known of earlier pixels, and a
``RasterStack`` is a first masked convolution, blocks and an output head.

With ``conditional`` the model is p(x | y), and log p(x) is that of the mixture, log sum_y p(y) p(x | y).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.labels import count_classes, draw_classes, marginal, one_hot, start_class_prior
from dgmbench.nn.levels import draw_levels, every_log_prob, level_log_prob, marginal_parameters, parameters_per_value
from dgmbench.nn.masked_conv import CachedConv, MaskedConv2d, channel_groups
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


@runtime_checkable
class Cache(Protocol):
    """The state of n images of which the pixels before the current one are known."""

    def start_row(self) -> None:
        """Begin the next row."""

    def read(self, x: int, channel: int) -> Float[Tensor, "n p"]:
        """The parameters of the channel's conditional at the pixel in column x of the row."""

    def write(self, x: int, channel: int, value: Float[Tensor, "n 1"]) -> None:
        """The channel's value there, as the networks see it."""


class RasterModel(PixelModel):
    """A ``PixelModel`` whose order is by pixel, row by row, and within a pixel by channel."""

    @abstractmethod
    def cache(self, n: int, y: Tensor | None) -> Cache:
        """The cache of n images, at their first pixel."""

    def ordering(self) -> Int[Tensor, " d"]:
        """Positions: the array is channel by channel, the order pixel by pixel."""
        channels, height, width = self.spec.shape
        device = self.output_biases()[0].device
        pixel = torch.arange(height * width, device=device) * channels
        return (pixel + torch.arange(channels, device=device)[:, None]).flatten()

    def generate(self, n: int, y: Tensor | None, draw: Draw) -> None:
        """One (pixel, channel) at a time, from the cache."""
        channels, height, width = self.spec.shape
        cache = self.cache(n, y)
        for row in range(height):
            cache.start_row()
            for x in range(width):
                for channel in range(channels):
                    position = (row * width + x) * channels + channel
                    value = draw(slice(position, position + 1), cache.read(x, channel)[:, None])
                    cache.write(x, channel, self._inputs(value))

    def _by_dimension(self, maps: Float[Tensor, "b cp h w"]) -> Float[Tensor, "b d p"]:
        return maps.unflatten(1, (-1, self.parameters_per_value)).movedim(2, -1).flatten(1, 3)


@runtime_checkable
class CachedBlock(Protocol):
    """A block of a ``RasterStack``, evaluated one (pixel, channel) at a time."""

    def start_row(self) -> None:
        """Begin the next row."""

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """The channel's output features at the pixel in column x, from its input features."""


class Head(nn.Module):
    """ReLU, 1 x 1, ReLU, 1 x 1: features to the parameters of every channel."""

    def __init__(self, features: int, hidden: int, channels: int, parameters: int) -> None:
        super().__init__()
        inner = channel_groups(hidden, channels)
        outer = torch.arange(channels).repeat_interleave(parameters)
        self.hidden = MaskedConv2d(channel_groups(features, channels), inner, "B")
        self.out = MaskedConv2d(inner, outer, "B")

    def forward(self, h: Float[Tensor, "b f h w"]) -> Float[Tensor, "b cp h w"]:
        """All pixels at once."""
        return self.out(self.hidden(h.relu()).relu())


class CachedHead:
    """A ``Head``, one (pixel, channel) at a time."""

    def __init__(self, head: Head, n: int, width: int) -> None:
        self.hidden, self.out = CachedConv(head.hidden, n, width), CachedConv(head.out, n, width)

    def start_row(self) -> None:
        """Begin the next row."""
        self.hidden.start_row()
        self.out.start_row()

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n p"]:
        """The parameters of the channel's conditional."""
        return self.out.step(x, channel, self.hidden.step(x, channel, h.relu()).relu())


class RasterBlock(nn.Module, ABC):
    """Maps features (b, f, h, w) to the same shape, each channel's from the past and the channels up to it."""

    @abstractmethod
    def forward(self, h: Float[Tensor, "b f h w"], condition: Tensor | None) -> Float[Tensor, "b f h w"]:
        """All pixels at once; the condition is a one-hot label (b, classes), or what else all blocks are given."""

    @abstractmethod
    def cached(self, n: int, width: int, condition: Tensor | None) -> CachedBlock:
        """The block for n images of which the pixels before the current one are known."""


class RasterStack(nn.Module):
    """A first convolution with mask A, blocks, and a head, from scaled images to parameters.

    Args:
        channels: channels of the images.
        features: features of the map that the blocks work on.
        kernel: odd width of the first convolution's kernel.
        blocks: the blocks.
        head: hidden features of the head.
        parameters: parameters of each value.
    """

    def __init__(
        self, channels: int, *, features: int, kernel: int, blocks: Sequence[RasterBlock], head: int, parameters: int
    ) -> None:
        super().__init__()
        groups = channel_groups(features, channels)
        self.first = MaskedConv2d(torch.arange(channels), groups, "A", above=kernel // 2, beside=kernel // 2)
        self.blocks = nn.ModuleList(blocks)
        self.head = Head(features, head, channels, parameters)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b cp h w"]:
        """All pixels at once."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h, condition)
        return cast(Tensor, self.head(h))

    def cached(self, n: int, width: int, condition: Tensor | None = None) -> "CachedStack":
        """The network for n images of which the pixels before the current one are known."""
        return CachedStack(self, n, width, condition)


class CachedStack:
    """A ``RasterStack``, one (pixel, channel) at a time."""

    def __init__(self, stack: RasterStack, n: int, width: int, condition: Tensor | None) -> None:
        self.first = CachedConv(stack.first, n, width)
        self.blocks = [cast(RasterBlock, block).cached(n, width, condition) for block in stack.blocks]
        self.head = CachedHead(stack.head, n, width)

    def start_row(self) -> None:
        """Begin the next row."""
        for part in (self.first, *self.blocks, self.head):
            part.start_row()

    def read(self, x: int, channel: int) -> Float[Tensor, "n p"]:
        """The parameters of the channel's conditional at the pixel in column x of the row."""
        h = self.first.read(x, channel)
        for block in self.blocks:
            h = block.step(x, channel, h)
        return self.head.step(x, channel, h)

    def write(self, x: int, channel: int, value: Float[Tensor, "n 1"]) -> None:
        """The channel's value there, as the network sees it."""
        self.first.write(x, channel, value)


def require_stack(spec: DataSpec, *, kernel: int, **sizes: int) -> None:
    """Refuse sizes that no stack has: an even kernel, or fewer features than channels."""
    require("model", least=1, kernel=kernel, **sizes)
    if kernel % 2 == 0:
        raise UserError(f"model.kernel={kernel} must be odd: a kernel has its pixel in the middle.")
    for name in ("features", "head"):
        if sizes[name] < spec.shape[0]:
            raise UserError(f"model.{name}={sizes[name]} must be at least {spec.shape[0]}, one for each channel.")
