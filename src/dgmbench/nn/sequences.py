"""Sequences of categories: sentences that end before the array does.

A sentence is its tokens up to and including the first ``end``; the places after it hold ``end`` as well, for certain.
"""

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
