"""A recurrent network that reads a sentence to its end and says something about it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dgmbench.nn.sequences import counted


class SentenceReader(nn.Module):
    """(b, t) -> (b, outputs): a linear map of a GRU's state at the end of the sentence; what follows it is not seen.

    Args:
        tokens: Size of the vocabulary.
        end: The token that ends a sentence, or None where all have the full length.
        width: Of the embeddings of tokens.
        hidden: Of the recurrent state.
        outputs: Numbers for each sentence.
    """

    def __init__(self, tokens: int, end: int | None, *, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.end = end
        self.embedding = nn.Embedding(tokens, width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.top = nn.Linear(hidden, outputs)

    def forward(self, x: Int[Tensor, "b t"]) -> Float[Tensor, "b o"]:
        """What is said of raw x (b, t)."""
        last = counted(x, self.end).sum(1) - 1
        longest = int(last.max()) + 1
        states, _ = self.gru(self.embedding(x[:, :longest].long()))
        return self.top(states[torch.arange(len(x), device=x.device), last])
