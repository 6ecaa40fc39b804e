r"""How far importance weights can be trusted: their effective number, and how heavy their tail is.

The mean of weights whose tail falls as w^(-1/k) has no variance for k > 1/2 and none at all for k >= 1. The index k is
that of a generalised Pareto distribution fitted to the largest weights. Vehtari, Simpson, Gelman, Yao, Gabry (2024,
https://arxiv.org/abs/1507.02646) find that means of any practicable number of draws are unreliable above 0.7: too low
most of the time, with an error that is too small because the weights that matter were not drawn.
"""

import math

import torch
from torch import Tensor

RELIABLE = 0.7  # the largest index at which means can be relied on, sec. 3.2 of the paper
SURPRISING = 0.05  # a share of examples that chance does not put two deviations above it
LEAST = 5  # weights in a tail that is fitted
PRIOR_INDEX, PRIOR_WEIGHTS = 0.5, 10  # what an index is drawn towards, as by so many weights, app. G


def effective_draws(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of log-weights (k, b), as (b,)."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def tail_size(k: int) -> int:
    """How many of k weights count as their tail: a fifth, or 3 sqrt(k) where that is less (sec. 3.1)."""
    return min(k // 5, math.ceil(3 * math.sqrt(k)))


def tail_index(log_weights: Tensor) -> Tensor:
    """The index of the tail of log-weights (k, b), as (b,); NaN with fewer than 25 weights or infinite ones."""
    size = tail_size(len(log_weights))
    if size < LEAST:
        return torch.full_like(log_weights[0], torch.nan)
    largest = log_weights.topk(size + 1, 0).values.flip(0)
    weights = (largest - largest[-1]).exp()
    beyond = weights[1:] - weights[0]
    fitted = (size * pareto_index(beyond) + PRIOR_INDEX * PRIOR_WEIGHTS) / (size + PRIOR_WEIGHTS)
    # weights that are all alike have no tail
    return torch.where(beyond[-1] > 0, fitted, torch.where(weights[-1].isfinite(), 0.0, torch.nan))


def pareto_index(beyond: Tensor) -> Tensor:
    """The index k of generalised Pareto distributions from draws beyond their threshold (n, b), ascending, as (b,).

    The posterior mean of Zhang and Stephens (2009, Technometrics 51(3)): the density's theta = -k / scale on a grid as
    their prior spreads it, k(theta) = mean log(1 - theta x), and the profile likelihood as weights.
    """
    n = len(beyond)
    points = 30 + int(math.sqrt(n))
    grid = torch.arange(1, points + 1, dtype=beyond.dtype, device=beyond.device)[:, None] - 0.5
    quartile = beyond[int(n / 4 + 0.5) - 1].clamp_min(torch.finfo(beyond.dtype).tiny)
    theta = 1 / beyond[-1] + (1 - (points / grid).sqrt()) / (3 * quartile)  # (points, b)
    index = torch.stack([torch.log1p(-each * beyond).mean(0) for each in theta])
    likelihood = n * ((-theta / index).log() - index - 1)
    weights = likelihood.softmax(0)
    return torch.log1p(-(weights * theta).sum(0) * beyond).mean(0)


def heavy_tail(index: Tensor | None, k: int) -> str | None:
    """What to say of examples whose k weights have tails of this index (n,), if they cannot be relied on.

    That is if it is above ``RELIABLE`` on average, or by two of its deviations for more than a twentieth of them.
    """
    if index is None:
        return None
    deviation = (1 + RELIABLE) / math.sqrt(tail_size(k))
    surely = float((index > RELIABLE + 2 * deviation).double().mean())
    if not (float(index.mean()) > RELIABLE or surely > SURPRISING):
        return None
    above = int((index > RELIABLE).sum())
    return (
        f"heavy tails: the index of importance weights is {float(index.mean()):.2f} on average and above {RELIABLE} "
        f"for {above} of {len(index)} examples, so the bound is low by an unknown amount that its standard error does "
        "not see"
    )
