r"""Nats, bits per dimension and perplexity, and log-densities of scaled data as log-probabilities of the data's levels.

``log_prob`` of a model is about raw x, so its bits per dimension are one division. Papers and other programs often
give the log-density of values s = f(v) instead, where v = x + u in [0, K) are levels with uniform noise u. Then

    log P(x) >= E_u log p_V(x + u),      log p_V(v) = log p_S(f(v)) + sum_d log |ds_d / dv_d|,

and the second term is what the forms of scaling differ by. For K = 256 on [0, 1] it is 8 bits a dimension, on [-1, 1]
it is 7, and in logit space, s = logit(margin + (1 - 2 margin) v / K), it depends on s:

    space      s                                    log |ds/dv| of a dimension
    levels     v                                    0
    unit       v / K                                -log K
    symmetric  2 v / K - 1                          log 2 - log K
    logit      logit(margin + (1 - 2 margin) v / K) log(1 - 2 margin) - log K - log sigmoid(s) - log sigmoid(-s)
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.errors import UserError
from dgmbench.evaluation.metrics import Metric, NumberKind, not_finite

Space = Literal["levels", "unit", "symmetric", "logit"]


def bits_per_dim(nats: Metric, dim: int) -> Metric:
    """Log-likelihood in nats per example as bits per dimension: -nats / (D log 2)."""
    return nats.scaled(-1.0 / (dim * math.log(2.0)), "bits/dim")


def nats_per_token(values: Tensor, tokens: Tensor, kind: NumberKind, draw_variance: Tensor | None = None) -> Metric:
    """Negative log-likelihood per token of a whole split, from log-likelihoods (n,) and numbers of tokens (n,).

    A ratio of sums, not a mean of ratios: every token weighs the same. The standard error is that of a ratio of means
    over independent examples; ``n`` is the number of tokens. ``draw_variance`` (n,) is of values over their draws.
    """
    values, tokens = values.double(), tokens.double()
    count, examples = float(tokens.sum()), len(values)
    nats = -float(values.sum()) / count
    se = float((-values - nats * tokens).std()) * math.sqrt(examples) / count if examples > 1 else None
    se_draws = None if draw_variance is None else math.sqrt(float(draw_variance.double().sum())) / count
    note = not_finite(values)
    found = Metric(-nats, "nats/token", kind, "higher", se, round(count), note=note, se_draws=se_draws)
    return found.scaled(-1.0, "nats/token")


def nats_per_word(
    values: Tensor, words: Tensor, log_orders: Tensor, kind: NumberKind, draw_variance: Tensor | None = None
) -> Metric:
    """Negative log-likelihood per word of documents, from log-likelihoods of their counts (n,): the mean over documents
    of -log p(sequence) / words, where all sequences of the same counts are alike (Salakhutdinov & Hinton 2009).

    Every document weighs the same, a long one no more than a short one; those of no words are left out.
    """
    some = words > 0
    per_word = (values.double() - log_orders)[some] / words[some]
    variance = None if draw_variance is None else draw_variance[some] / words[some].square()
    found = Metric.mean_of(per_word, unit="nats/word", kind=kind, direction="higher", draw_variance=variance)
    return found.scaled(-1.0, "nats/word")


def perplexity(per_token: Metric) -> Metric:
    """The one place where nats per token become a perplexity: exp(nats / token); a note where that is no number."""
    try:
        value = math.exp(per_token.value)
    except OverflowError:
        value = math.inf
    se, se_draws = (None if each is None else value * each for each in (per_token.se, per_token.se_draws))
    found = replace(per_token, value=value, se=se, se_draws=se_draws, unit="perplexity")
    beyond = math.isfinite(per_token.value) and not math.isfinite(value)
    return found.noting(f"exp({per_token.value:.4g} nats/token) is beyond all numbers" if beyond else None)


def nats_of_levels(
    log_density: Tensor | float,
    *,
    space: Space,
    levels: int,
    dim: int,
    scaled: Tensor | None = None,
    margin: float = 0.0,
) -> Tensor:
    """Log-density of scaled values, nats per example, as log-density of levels with uniform noise (on [0, K)).

    Args:
        log_density: of one or more examples (...), in nats.
        space: what the values were when the density was taken.
        levels: K, 256 for ordinary images.
        dim: dimensions D of an example.
        scaled: the values s (..., D) themselves, which logit space needs.
        margin: lambda of logit space.

    >>> round(float(nats_of_levels(1980.50, space="unit", levels=256, dim=784)) / (-784 * math.log(2)), 2)
    4.36
    """
    if levels < 2 or dim < 1:
        raise UserError(f"levels={levels} and dim={dim}: there must be two levels or more, and a dimension.")
    value = torch.as_tensor(log_density, dtype=torch.float64)
    if space == "levels":
        return value
    if space == "unit":
        return value - dim * math.log(levels)
    if space == "symmetric":
        return value + dim * (math.log(2.0) - math.log(levels))
    if space != "logit":
        raise UserError(f"space={space} must be levels, unit, symmetric or logit.")
    if scaled is None or not 0 <= margin < 0.5:
        raise UserError(f"space=logit needs the scaled values, and a margin from 0 to below 0.5 (it is {margin}).")
    s = scaled.double().reshape(*value.shape, dim)
    slope = -(F.logsigmoid(s) + F.logsigmoid(-s)).sum(-1)
    return value + dim * (math.log1p(-2 * margin) - math.log(levels)) + slope
