r"""WaveNet: dilated causal convolutions over a waveform, whose receptive field doubles with every layer.

A stack of gated layers sees the values before each time through taps that lie 1, 2, 4, ... steps apart, so that all
conditionals come from one pass in training, while a few layers reach hundreds of values back:

    log p(x) = sum_t log p(x_t | x_0, ..., x_{t-1}),                       loss = -E[log p(x)],
    z_k = tanh(W_f,k * h + V_f,k y) . sigmoid(W_g,k * h + V_g,k y),   h <- h + R_k z_k,   skip = sum_k S_k z_k,

where * is a causal convolution and y a label (global conditioning, ``conditional=true``). The conditional is a softmax
over all levels, from skip through two 1x1 convolutions. Conditional x_t sees the ``receptive_field`` values before it.

Shapes and units: x is raw (b, *shape), read as a sequence of T values in C order: the mu-law codes of a waveform,
tokens, or the pixels of an image. ``log_prob`` is in nats per example, (b,), exact; bits/dim are bits a sample of the
waveform. Sentences of tokens end as :mod:`dgmbench.nn.sequences` says. With labels, ``log_prob(x)`` is the marginal
over them.

Sampling keeps every layer's past inputs in a queue as long as its dilation (Paine et al. 2016,
https://arxiv.org/abs/1611.09482): a new value costs one column of the network instead of its whole receptive field,
and a column is three calls a layer (:meth:`dgmbench.nn.dilated.DilatedStack.start`).

Paper: van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, https://arxiv.org/abs/1609.03499.

Different from the paper: it names no widths, and repeats a block of dilations 1, 2, ..., 512 several times; the default
here is one block up to 128, which sees 256 values, because the default data has 256. The first causal convolution is an
embedding of the previous value (one tap), with an entry of its own for the beginning. Local conditioning (features that
vary in time) is in :class:`dgmbench.nn.dilated.DilatedStack`, which takes them upsampled; no data set here has any. The
output's biases start at the data's marginals.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.dilated import DilatedStack
from dgmbench.nn.labels import count_classes, draw_classes, marginal, start_class_prior
from dgmbench.nn.levels import draw_categories
from dgmbench.nn.sequences import sentence_log_prob


class WaveNet(Model):
    """Autoregressive model of sequences of categories: sound, text, or anything with levels.

    Args:
        spec: The data space; binary, discrete or tokens of any shape.
        dilations: Distance of the taps of each layer.
        kernel: Taps of each layer.
        channels: Width of the residual connections and of the gates.
        skip_channels: Width of the skip connections.
        conditional: The label enters every gate.
    """

    class_log_prior: Tensor

    def __init__(
        self, spec: DataSpec, *, dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128), kernel: int = 2,
        channels: int = 32, skip_channels: int = 64, conditional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete", "tokens") or spec.levels is None:
            raise UserError(f"WaveNet takes binary or discrete data or tokens, not {spec.kind}.")
        require(least=1, dilations=dilations, channels=channels, skip_channels=skip_channels)
        require(least=2, kernel=kernel)
        if not dilations:
            raise UserError("model.dilations is empty; give the distance of the taps of at least one layer.")
        self.levels, self.conditional = spec.levels, conditional
        if conditional:
            start_class_prior(self, spec)
        self.embedding = nn.Embedding(spec.levels + 1, channels)  # the last entry is the beginning
        self.net = DilatedStack(
            channels, spec.levels, dilations=dilations, kernel=kernel, skip_channels=skip_channels,
            classes=(spec.num_classes or 0) if conditional else 0,
        )  # fmt: skip

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output's biases to the marginal distribution of all values, and the prior of the labels."""
        bias = self.net.top.bias
        assert bias is not None
        counts = torch.bincount(batch.x.flatten().long(), minlength=self.levels).to(bias) + 0.5
        bias.copy_((counts / counts.sum()).log())
        if self.conditional:
            count_classes(self.class_log_prior, batch.y)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-likelihood, given the labels if the model is conditional."""
        if self.conditional and batch.y is None:
            raise UserError("conditional=true needs labels with every batch, and this one has none.")
        nll = -self._given(batch.x, batch.y).mean()
        return nll, {"log_prob": -nll.detach()}

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, *shape), nats per example; given labels y (b,), or their marginal."""
        if self.conditional and y is None:
            return marginal(lambda label: self._given(x, label), self.class_log_prior, len(x))
        return self._given(x, y)

    def conditional_logits(self, x: Tensor) -> Float[Tensor, "b t k"]:
        """The conditionals' logits given raw x (b, *shape); with labels those of the mixture over what is still likely.

        The weight of label y at time t is p(y | x_0, ..., x_{t-1}).
        """
        if not self.conditional:
            return self._logits(x, None).transpose(1, 2)
        each, weights, index = [], [], x.flatten(1).long()[:, None]
        for label, log_prior in enumerate(self.class_log_prior):
            y = torch.full((len(x),), label, device=x.device)
            log_p = self._logits(x, y).log_softmax(1)
            chosen = log_p.gather(1, index)[:, 0]
            each.append(log_p)
            weights.append(log_prior + chosen.cumsum(1) - chosen)
        weight = torch.stack(weights).log_softmax(0)
        return (torch.stack(each) + weight[:, :, None]).logsumexp(0).transpose(1, 2)

    def ordering(self) -> Int[Tensor, " t"]:
        """The order in C order of the array."""
        return torch.arange(self.spec.dim, device=self.embedding.weight.device)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n exact samples, raw (n, *shape), given labels y (n,), which are drawn as well if there are none."""
        return self._draw(n, y, None, None, generator)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Bool[Tensor, "b ..."], *, generator: Generator | None = None) -> Tensor:
        """Raw values like x (b, *shape) where ``known``, drawn elsewhere, each given all values before it.

        Exact where a sequence is known up to some time and unknown from there on; values that are known later do not
        influence those before them, but that a sentence does not end before a word that is known. With labels, each
        example draws its own from p(y | known beginning).
        """
        y = None
        if self.conditional:
            begun = known.flatten(1).long().cumprod(1).bool()
            each = []
            for label in range(len(self.class_log_prior)):
                log_p = self._each(x, torch.full((len(x),), label, device=x.device))
                each.append(torch.where(begun, log_p, torch.zeros_like(log_p)).sum(1) + self.class_log_prior[label])
            u = torch.rand(len(x), generator=generator, device=x.device, dtype=each[0].dtype)
            y = draw_categories(torch.stack(each, 1), u)
        return self._draw(len(x), y, x.flatten(1), known.flatten(1), generator)

    def _logits(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b k t"]:
        """Logits of every value given those before: the network sees the sequence one step late."""
        before = F.pad(x.flatten(1).long()[:, :-1], (1, 0), value=self.levels)
        return self.net(self.embedding(before).transpose(1, 2), y)

    def _each(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b t"]:
        return -F.cross_entropy(self._logits(x, y), x.flatten(1).long(), reduction="none")

    def _given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, " b"]:
        return sentence_log_prob(self._each(x, y if self.conditional else None), x.flatten(1).long(), self.spec.end)

    def _draw(
        self, n: int, y: Tensor | None, x: Tensor | None, known: Tensor | None, generator: Generator | None
    ) -> Tensor:
        """One value after another, by inverse CDF from uniforms that are drawn at the start."""
        with torch.inference_mode():  # small calls by the thousand, which cost a third less without gradients' records
            drawn = self._values(n, y, x, known, generator)
        return drawn.T.reshape(n, *self.spec.shape).to(self.spec.dtype, copy=True)

    def _values(
        self, n: int, y: Tensor | None, x: Tensor | None, known: Tensor | None, generator: Generator | None
    ) -> Int[Tensor, "t n"]:
        like = self.embedding.weight
        if self.conditional and y is None:
            y = draw_classes(self.class_log_prior, n, generator)
        uniform = torch.rand(self.spec.dim, n, generator=generator, device=like.device, dtype=like.dtype)
        drawn = torch.zeros(self.spec.dim, n, dtype=torch.int64, device=like.device)
        value = torch.full((n,), self.levels, device=like.device)
        ended = torch.zeros(n, dtype=torch.bool, device=like.device)
        queues = self.net.start(n, y if self.conditional else None)
        end = self.spec.end
        goes_on = None
        if end is not None and x is not None and known is not None:
            goes_on = (known & (x != end)).flip(1).cummax(1).values.flip(1)  # known words are still to come
        given, kept = (None, None) if x is None or known is None else (x.T.long(), known.T)
        for t in range(self.spec.dim):
            logits = self.net.step(queues, like.index_select(0, value))
            if goes_on is not None:
                logits[:, end] = logits[:, end].masked_fill(goes_on[:, t], -torch.inf)
            value = draw_categories(logits, uniform[t])
            if end is not None:
                value = torch.where(ended, end, value)
            if given is not None and kept is not None:
                value = torch.where(kept[t], given[t], value)
            ended = value == end if end is not None else ended
            drawn[t] = value
        return drawn
