"""Sequences that are over before the array is: sentences that end, and sequences with a length.

A sentence is its tokens up to and including the first ``end``; the places after it hold ``end`` as well, for certain.
A sequence of a given length holds zeros behind it, which nothing may depend on.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def counted(x: Int[Tensor, "b t"], end: int | None) -> Bool[Tensor, "b t"]:
    """The places that carry probability: all up to and including the first ``end``."""
    if end is None:
        return torch.ones_like(x, dtype=torch.bool)
    ended = x == end
    return (ended.cumsum(1) - ended.long()) == 0


def sentence_log_prob(each: Float[Tensor, "b t"], x: Int[Tensor, "b t"], end: int | None) -> Float[Tensor, " b"]:
    """log p(x) from the log-probability of each token given those before; -inf if a token follows the end."""
    if end is None:
        return each.sum(1)
    kept = counted(x, end)
    total = torch.where(kept, each, torch.zeros((), dtype=each.dtype, device=each.device)).sum(1)
    return total.masked_fill((~kept & (x != end)).any(1), -torch.inf)


def within(length: Int[Tensor, " b"], steps: int) -> Bool[Tensor, "b t"]:
    """The steps of each sequence that count, those before its length; ``steps`` is the array's."""
    return torch.arange(steps, device=length.device) < length[:, None]


def written(
    first: Int[Tensor, " n"], length: int, end: int | None, following: Callable[[Int[Tensor, " n"], int], Tensor]
) -> Int[Tensor, "n t"]:
    """Sentences word after word, until all have ended.

    Args:
        first: What each sentence begins after, (n,).
        length: Places of a sentence.
        end: The token that ends one, or None where all have the full length.
        following: The next word of each, (n,), of the last one and the number of the place.
    """
    x = torch.full((len(first), length), 0 if end is None else end, device=first.device)
    word, ended = first, torch.zeros_like(first, dtype=torch.bool)
    for t in range(length):
        word = following(word, t)
        if end is not None:
            word = torch.where(ended, end, word)
            ended = word == end
        x[:, t] = word
        if bool(ended.all()):
            break
    return x
