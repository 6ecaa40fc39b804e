"""A convolutional network that reads a sequence of tokens and says one number of it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.errors import UserError


class SentenceConvolutions(nn.Module):
    """(b, t) -> (b,): convolutions of several widths over embeddings, each map's maximum, a highway layer, linear.

    Kim 2014, https://arxiv.org/abs/1408.5882, with the highway of Srivastava et al. 2015,
    https://arxiv.org/abs/1505.00387, as SeqGAN's discriminator has it. With ``pairs`` a table has a number for every
    two tokens that follow one another, and their sum is added: which pairs are too frequent is learned at once.

    Args:
        tokens: size of the vocabulary.
        length: places of a sequence.
        width: of the embeddings.
        kernels: how many tokens each kind of convolution sees.
        channels: maps of each kind.
        dropout: share of the features that are dropped in training, where ``noisy``.
        pairs: whether there is a table of pairs; it starts at zero.
    """

    def __init__(
        self, tokens: int, length: int, *, width: int, kernels: Sequence[int], channels: int, dropout: float,
        pairs: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not kernels or not all(1 <= kernel <= length for kernel in kernels):
            raise UserError(
                f"model.kernels={list(kernels)} must be widths from 1 to the {length} places of a sequence."
            )
        self.embedding = nn.Embedding(tokens, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, channels, kernel) for kernel in kernels)
        features = channels * len(kernels)
        self.change, self.gate = nn.Linear(features, features), nn.Linear(features, features)
        self.top, self.dropout = nn.Linear(features, 1), dropout
        self.table = nn.Parameter(torch.zeros(tokens, tokens)) if pairs else None

    def forward(self, x: Int[Tensor, "b t"], *, noisy: bool = True) -> Float[Tensor, " b"]:
        """The number for each sequence."""
        e = self.embedding(x.long()).mT
        h = torch.cat([F.relu(conv(e)).amax(2) for conv in self.convs], 1)
        gate = torch.sigmoid(self.gate(h))
        h = gate * F.relu(self.change(h)) + (1 - gate) * h
        said = self.top(F.dropout(h, self.dropout, self.training and noisy)).squeeze(1)
        return said if self.table is None else said + self.table[x[:, :-1].long(), x[:, 1:].long()].sum(1)
