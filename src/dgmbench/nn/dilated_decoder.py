"""Dilated causal convolutions over tokens: every next word given a few before it, and a code that all places see."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.dilated import DilatedStack
from dgmbench.nn.levels import draw_categories
from dgmbench.nn.sequences import sentence_log_prob, written


class DilatedDecoder(nn.Module):
    """p(x | code) = prod_t p(x_t | the last R words before t, code), R = 1 + (kernel - 1) * sum of dilations.

    The code enters the gates of every layer at every place.

    Args:
        tokens: Size of the vocabulary.
        length: Places of a sentence.
        end: The token that ends a sentence, or None where all have the full length.
        latent: Of the code.
        dilations: Distance of the taps of each layer.
        kernel: Taps of each layer.
        channels: Width of the embeddings, the residual connections and the gates.
        skip_channels: Width of the skip connections.
    """

    def __init__(
        self, tokens: int, length: int, end: int | None, *, latent: int, dilations: Sequence[int],
        kernel: int, channels: int, skip_channels: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens, self.length, self.end = tokens, length, end
        self.embedding = nn.Embedding(tokens + 1, channels)  # the last entry is the beginning
        self.net = DilatedStack(
            channels, tokens, dilations=dilations, kernel=kernel, skip_channels=skip_channels, local=latent
        )

    def logits(self, x: Int[Tensor, "b t"], code: Float[Tensor, "b z"]) -> Float[Tensor, "b t v"]:
        """The logits of every token given those before it that are within reach, and the code."""
        before = self.embedding(F.pad(x.long()[:, :-1], (1, 0), value=self.tokens))
        every = code[..., None].expand(-1, -1, x.shape[1])
        return self.net(before.transpose(1, 2), local=every).transpose(1, 2)

    def log_prob(self, x: Int[Tensor, "b t"], code: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """log p(x | code), nats; places after the end cost nothing."""
        x = x.long()
        each = -F.cross_entropy(self.logits(x, code).transpose(1, 2), x, reduction="none")
        return sentence_log_prob(each, x, self.end)

    @torch.no_grad()
    def sample(self, n: int, code: Float[Tensor, "n z"], *, generator: Generator | None = None) -> Int[Tensor, "n t"]:
        """n exact draws, one for each code; by inverse CDF from uniforms that are drawn at the start."""
        like = self.embedding.weight
        uniform = torch.rand(self.length, n, generator=generator, device=like.device, dtype=like.dtype)
        return self._written(n, code, lambda logits, t: draw_categories(logits, uniform[t]))

    @torch.no_grad()
    def greedy(self, n: int, code: Float[Tensor, "n z"]) -> Int[Tensor, "n t"]:
        """The likeliest word after another."""
        return self._written(n, code, lambda logits, t: logits.argmax(1))

    def _written(
        self, n: int, code: Float[Tensor, "n z"], choose: Callable[[Float[Tensor, "n v"], int], Tensor]
    ) -> Int[Tensor, "n t"]:
        """Word after word, in the work of one column each, until all sentences have ended."""
        queues = self.net.start(n)

        def following(word: Int[Tensor, " n"], t: int) -> Int[Tensor, " n"]:
            return choose(self.net.step(queues, self.embedding(word), code), t)

        return written(torch.full((n,), self.tokens, device=code.device), self.length, self.end, following)
