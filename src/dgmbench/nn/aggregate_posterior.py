r"""The aggregate posterior of a data set, q(z) = 1/N sum_n q(z | x_n), of which a batch sees M of N examples.

Each z_i of a batch has its own x_i in it, the others are drawn at random. q(z_i) is estimated as sum_j share_ij
q(z_i | x_j), the parts of z likewise, with

    mws, minibatch-weighted     share = 1 / (N M): log q(z) is too low by about log(N / M), a constant;
    mss, minibatch-stratified   share = 1 / N of the own posterior and (N - 1) / (N (M - 1)) of each other one: q(z) is
                                unbiased, given that x_i is in the batch.

With M = N, mss is exact and mws is the exact log q(z) minus log N.

Paper: Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in VAEs", NeurIPS 2018,
https://arxiv.org/abs/1802.04942 (section 3.1, appendix C). Its mss gives the M - 1 others 1 / (M - 1) but the last one
less; equal shares are the mean of that over the order of the batch, with the same expectation and less variance.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dgmbench.errors import UserError

Sampling = Literal["mws", "mss"]
Pairs = Callable[..., Tensor]
"""log q(part p of z_i | x_j), (n, m, parts), of the rows i that it is given."""

BLOCK = 2**22  # entries of (points, examples, parts) that are computed at once


class LogMixtures(NamedTuple):
    """Log q of whole points z (n,), of groups of their parts (n, groups), and of the parts (n, parts)."""

    whole: Float[Tensor, " n"]
    groups: Float[Tensor, "n g"]
    parts: Float[Tensor, "n p"]


def check_sampling(sampling: str) -> None:
    """Refuse a name that is no way of sampling."""
    if sampling not in ("mws", "mss"):
        raise UserError(f"model.sampling must be mws or mss, not {sampling!r}.")


def log_shares(sampling: Sampling, batch: int, examples: int, like: Tensor) -> Float[Tensor, "m m"]:
    """The logarithms of share_ij for a batch of a data set of so many examples, in the dtype of ``like``."""
    examples = max(examples, batch)
    if sampling == "mws":
        return like.new_full((batch, batch), -math.log(examples * batch))
    others = (examples - 1) / (examples * (batch - 1)) if batch > 1 and examples > 1 else 1.0
    shares = like.new_full((batch, batch), others)
    return shares.fill_diagonal_(1 / examples).log()


def log_mixtures(
    pairs: Pairs,
    points: Sequence[Float[Tensor, "n ..."]],
    shares: Float[Tensor, "n m"],
    *,
    groups: Sequence[int] = (),
    block: int = BLOCK,
) -> LogMixtures:
    """log sum_j exp(share_ij) q(. | x_j) at points z_i, given by their rows in one or several tensors.

    ``groups`` are numbers of successive parts; none by default. With more than one block of rows, each is computed
    again in the backward pass, so that memory stays that of a block.
    """
    one = pairs(*(point[:1] for point in points)) if len(shares) > 1 else None
    rows = len(shares) if one is None else max(1, block // max(1, one.numel()))

    def mixed(own: Tensor, *at: Tensor) -> Tensor:
        each = pairs(*at)
        inner = [group.sum(2, keepdim=True) for group in each.split(list(groups), 2)] if groups else []
        together = torch.cat([each.sum(2, keepdim=True), *inner, each], 2)
        return (together + own[..., None]).logsumexp(1)

    if rows >= len(shares):
        found = mixed(shares, *points)
    else:
        slices = zip(shares.split(rows), *(point.split(rows) for point in points), strict=True)
        blocks = [checkpoint(mixed, *each, use_reentrant=False, preserve_rng_state=False) for each in slices]
        found = torch.cat(blocks)
    whole, inner, parts = found.split([1, len(groups), found.shape[1] - 1 - len(groups)], 1)
    return LogMixtures(whole[:, 0], inner, parts)
