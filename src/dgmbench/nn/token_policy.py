"""A recurrent network that writes sequences of tokens, and finishes any number of them from every place at once.

Sequences of length t are arrays of tokens that end as :mod:`dgmbench.nn.sequences` says.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.levels import draw_categories
from dgmbench.nn.sequences import sentence_log_prob, written


class TokenPolicy(nn.Module):
    """p(x) = prod_t p(x_t | x_0, ..., x_{t-1}) by an LSTM (Hochreiter and Schmidhuber 1997).

    Args:
        tokens: size of the vocabulary.
        length: places of a sequence.
        end: the token that ends one, or None where all have the full length.
        width: of the embeddings of tokens.
        hidden: of the recurrent state.
    """

    def __init__(self, tokens: int, length: int, end: int | None, *, width: int, hidden: int) -> None:
        super().__init__()
        self.tokens, self.length, self.end, self.hidden = tokens, length, end, hidden
        self.embedding = nn.Embedding(tokens + 1, width)  # the last one is the beginning
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.top = nn.Linear(hidden, tokens)

    def each_log_prob(self, x: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """The log-probability of each token given those before it; of tokens behind an end, too."""
        before = F.pad(x.long()[:, :-1], (1, 0), value=self.tokens)
        states, _ = self.lstm(self.embedding(before))
        return -F.cross_entropy(self.top(states).flatten(0, 1), x.long().flatten(), reduction="none").view(x.shape)

    def log_prob(self, x: Int[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """log p(x), nats."""
        return sentence_log_prob(self.each_log_prob(x), x, self.end)

    @torch.no_grad()
    def sample(self, n: int, *, generator: Generator | None = None) -> Int[Tensor, "n t"]:
        """n exact draws; by inverse CDF from uniforms that are drawn at the start."""
        like, state = self.top.weight, None
        uniform = torch.rand(self.length, n, generator=generator, device=like.device, dtype=like.dtype)

        def following(word: Int[Tensor, " n"], place: int) -> Int[Tensor, " n"]:
            nonlocal state
            output, state = self.lstm(self.embedding(word[:, None]), state)
            return draw_categories(self.top(output[:, 0]), uniform[place])

        return written(torch.full((n,), self.tokens, device=like.device), self.length, self.end, following)

    @torch.no_grad()
    def finished(
        self, x: Int[Tensor, "b t"], count: int, *, generator: Generator | None = None
    ) -> Int[Tensor, "beginnings count b t"]:
        """Every beginning of x drawn to its end ``count`` times: row k keeps the first k + 1 tokens, k < t - 1.

        All beginnings advance together: the network is called twice a place, however many there are.
        """
        like, (b, length) = self.top.weight, x.shape
        rows = x.long().expand(length - 1, count, b, length).clone()
        start = torch.full((b, 1), self.tokens, device=like.device)
        _, reader = self.lstm(self.embedding(start))
        drawers = tuple(part[:, :0] for part in reader)
        for place in range(1, length):
            _, reader = self.lstm(self.embedding(x[:, place - 1 : place].long()), reader)
            if place > 1:
                last = rows[: place - 1, :, :, place - 1].reshape(-1, 1)
                _, drawers = self.lstm(self.embedding(last), drawers)
            drawers = tuple(torch.cat([a, r.repeat(1, count, 1)], 1) for a, r in zip(drawers, reader, strict=True))
            uniform = torch.rand(drawers[0].shape[1], generator=generator, device=like.device, dtype=like.dtype)
            drawn = draw_categories(self.top(drawers[0][0]), uniform).view(place, count, b)
            if self.end is not None:
                drawn = torch.where(rows[:place, :, :, place - 1] == self.end, self.end, drawn)
            rows[:place, :, :, place] = drawn
        return rows
