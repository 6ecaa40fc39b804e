"""A recurrent network over tokens: the distribution of every next one, also given a code; greedy and beam search.

Sentences of length t are arrays of tokens that end as :mod:`dgmbench.nn.sequences` says. A sentence that has not ended
after t tokens stands for all that begin with them, so that the probabilities of all arrays sum to 1.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.levels import draw_categories
from dgmbench.nn.sequences import counted, sentence_log_prob, written


class RecurrentDecoder(nn.Module):
    """p(x | code) = prod_t p(x_t | x_0, ..., x_{t-1}, code), by a GRU that starts from the code and sees it every time.

    Args:
        tokens: Size of the vocabulary.
        length: Places of a sentence.
        end: The token that ends a sentence, or None where all have the full length.
        width: Of the embeddings of tokens.
        hidden: Of the recurrent state.
        latent: Of the code; 0 for p(x) without one.
        unknown: Whether the words that are seen may be ``self.unknown`` in place of what was said.
        blind: Whether all of them are: then p(x | code) is a product over the places.
    """

    def __init__(
        self, tokens: int, length: int, end: int | None, *, width: int, hidden: int, latent: int,
        unknown: bool = False, blind: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens, self.length, self.end, self.blind = tokens, length, end, blind
        self.unknown = tokens + 1 if unknown or blind else None
        self.embedding = nn.Embedding(tokens + 1 + (self.unknown is not None), width)  # then the beginning, the unknown
        self.state = nn.Linear(latent, hidden) if latent else None
        self.gru = nn.GRU(width + latent, hidden, batch_first=True)
        self.top = nn.Linear(hidden, tokens)

    def log_prob(
        self,
        x: Int[Tensor, "b t"],
        code: Float[Tensor, "b z"] | None = None,
        *,
        seen: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, " b"]:
        """log p(x | code), nats; places after the end cost nothing, neither nats nor time.

        With ``seen`` the next word is predicted from these words, some of them unknown, in place of x's.
        """
        x = x.long()
        kept = counted(x, self.end)
        longest = int(kept.sum(1).max())
        before = F.pad((x if seen is None else seen)[:, : longest - 1], (1, 0), value=self.tokens)
        states, _ = self.gru(self._inputs(before, code), self._start(len(x), code))
        # of the places that count only: the vocabulary may be large
        kept = kept[:, :longest]
        log_p = torch.zeros(kept.shape, dtype=states.dtype, device=x.device)
        log_p[kept] = -F.cross_entropy(self.top(states[kept]), x[:, :longest][kept], reduction="none")
        return sentence_log_prob(F.pad(log_p, (0, x.shape[1] - longest)), x, self.end)

    def logits(self, x: Int[Tensor, "b t"], code: Float[Tensor, "b z"] | None = None) -> Float[Tensor, "b t v"]:
        """The logits of every token given those before it and the code."""
        before = F.pad(x.long()[:, :-1], (1, 0), value=self.tokens)
        states, _ = self.gru(self._inputs(before, code), self._start(len(x), code))
        return self.top(states)

    @torch.no_grad()
    def sample(
        self, n: int, code: Float[Tensor, "n z"] | None = None, *, generator: Generator | None = None
    ) -> Int[Tensor, "n t"]:
        """n exact draws, one for each code; by inverse CDF from uniforms that are drawn at the start."""
        like = self.top.weight
        uniform = torch.rand(self.length, n, generator=generator, device=like.device, dtype=like.dtype)
        state = self._start(n, code)

        def following(word: Int[Tensor, " n"], t: int) -> Int[Tensor, " n"]:
            nonlocal state
            output, state = self.gru(self._inputs(word[:, None], code), state)
            return draw_categories(self.top(output[:, 0]), uniform[t])

        return written(torch.full((n,), self.tokens, device=like.device), self.length, self.end, following)

    def greedy(self, n: int, code: Float[Tensor, "n z"] | None = None) -> Int[Tensor, "n t"]:
        """The likeliest word after another, for each code."""
        return self.search(n, code)[0]

    @torch.no_grad()
    def search(
        self, n: int, code: Float[Tensor, "n z"] | None = None, *, beam: int = 1
    ) -> tuple[Int[Tensor, "n t"], Float[Tensor, " n"]]:
        """Likely sentences (n, t) and their log-probabilities (n,), by beam search for the most probable one.

        Every step keeps the ``beam`` best beginnings of each sentence, ended ones among them, by log-probability with
        no correction for length. ``beam=1`` is greedy; with as many as there are sentences the best is found for sure.
        """
        like = self.top.weight
        x = torch.zeros(n, 1, 0, dtype=torch.int64, device=like.device)
        score = torch.zeros(n, 1, dtype=like.dtype, device=like.device)
        token = torch.full((n, 1), self.tokens, device=like.device)
        ended = torch.zeros(n, 1, dtype=torch.bool, device=like.device)
        start = self._start(n, code)
        state = like.new_zeros(n, 1, self.gru.hidden_size) if start is None else start[0][:, None]
        stay = torch.full((self.tokens,), -torch.inf, dtype=like.dtype, device=like.device)
        if self.end is not None:
            stay[self.end] = 0.0
        for _ in range(self.length):
            width = token.shape[1]
            codes = None if code is None else code.repeat_interleave(width, 0)
            output, after = self.gru(self._inputs(token.reshape(-1, 1), codes), state.reshape(1, n * width, -1))
            log_p = self.top(output[:, 0]).log_softmax(-1).view(n, width, -1)
            log_p = torch.where(ended[..., None], stay, log_p)
            every = (score[..., None] + log_p).flatten(1)
            score, chosen = every.topk(min(beam, every.shape[1]), dim=1)
            parent, token = chosen // self.tokens, chosen % self.tokens
            x = torch.cat([x.gather(1, parent[..., None].expand(-1, -1, x.shape[2])), token[..., None]], dim=2)
            state = after.view(n, width, -1).gather(1, parent[..., None].expand(-1, -1, after.shape[2]))
            ended = token == self.end if self.end is not None else ended.gather(1, parent)
        best = score.argmax(1)
        rows = torch.arange(n, device=like.device)
        return x[rows, best], score[rows, best]

    def _inputs(self, tokens: Int[Tensor, "b t"], code: Float[Tensor, "b z"] | None) -> Float[Tensor, "b t i"]:
        if self.blind:
            tokens = tokens.masked_fill(tokens < self.tokens, self.tokens + 1)
        embedded = self.embedding(tokens)
        if code is None:
            return embedded
        return torch.cat([embedded, code[:, None].expand(-1, tokens.shape[1], -1)], dim=2)

    def _start(self, n: int, code: Float[Tensor, "n z"] | None) -> Float[Tensor, "one n h"] | None:
        return None if self.state is None or code is None else torch.tanh(self.state(code))[None]


def sentence_decoder(
    spec: DataSpec, *, width: int, hidden: int, latent: int, unknown: bool = False, blind: bool = False
) -> RecurrentDecoder:
    """A decoder of the sentences of a data space, tokens (t,); ``UserError`` for others."""
    return RecurrentDecoder(
        require_sentences(spec), spec.dim, spec.end, width=width, hidden=hidden, latent=latent, unknown=unknown,
        blind=blind,
    )  # fmt: skip


def require_sentences(spec: DataSpec) -> int:
    """The size of the vocabulary of a data space of sentences; ``UserError`` for others."""
    if spec.kind != "tokens" or spec.levels is None or len(spec.shape) != 1:
        raise UserError(f"This model takes sequences of tokens (t,), not {spec}.")
    return spec.levels
