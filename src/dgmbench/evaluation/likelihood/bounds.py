r"""Per-example log-likelihoods and bounds of any model that has them, in nats, (n,) float64.

The bound of k importance samples (Burda, Grosse, Salakhutdinov 2016, eq. 8) is L_k = E log 1/k sum_i w_i. For several k
at once, the weights w_1 ... w_K of the largest are drawn, and the bound of a smaller k is the mean over the K // k
groups of k successive weights: unbiased for L_k, and all from one pass. The variance of an example's value over its
draws is that between groups, divided by their number. A single group has none to compare with; there it is the
jackknife's, (k - 1) / k sum_i (l_i - mean l)^2 with l_i the bound without the i-th weight, which in expectation is
never too small (Efron and Stein 1981).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.models.contract import (
    HasElbo,
    HasLogProb,
    HasLogProbEstimate,
    HasLogWeights,
    HasReconstructionLogProb,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsClassConditional,
)

# Importance samples are drawn in blocks of as many as keep one tensor of the decoder below this many numbers.
BLOCK_NUMBERS = 2**21
LEAST_WIDTH = 500  # of a layer: data of few dimensions have hidden layers all the same


@dataclass(frozen=True)
class Draws:
    """Values (n,) that are random, and the variance of each over its draws (n,), None where one draw tells nothing."""

    values: Tensor
    variance: Tensor | None


def log_likelihood(model: HasLogProb, chunks: Chunks) -> Tensor:
    """Exact log p(x) of every example."""
    return chunks.each("log_prob", lambda x, _: model.log_prob(x))


def elbo(model: HasElbo, chunks: Chunks) -> Tensor:
    """One draw of the evidence lower bound for every example."""
    return chunks.each("elbo", lambda x, generator: model.elbo(x, generator=generator))


def log_likelihood_estimate(model: HasLogProbEstimate, chunks: Chunks) -> Tensor:
    """One draw of the estimate of log p(x), or of its bound, for every example."""
    return chunks.each("estimate", lambda x, generator: model.log_prob_estimate(x, generator=generator))


def given_labels(model: IsClassConditional, chunks: Chunks) -> Tensor:
    """log p(x | y), or one draw of its lower bound, of every example under its own label."""

    def value(batch: Batch, generator: Generator) -> Tensor:
        if isinstance(model, HasLogProb):
            return model.log_prob(batch.x, y=batch.y)  # type: ignore[call-arg]  # what a conditional model promises
        assert isinstance(model, HasElbo)
        return model.elbo(batch.x, y=batch.y, generator=generator)  # type: ignore[call-arg]

    return chunks.each_labelled("given_labels", value)


def reconstruction_log_prob(model: HasReconstructionLogProb, chunks: Chunks) -> Tensor:
    """log p(x | code of x) of every example."""
    return chunks.each("reconstruction_log_prob", lambda x, _: model.reconstruction_log_prob(x))


def unnormalised_log_likelihood(model: HasUnnormalisedLogProb, chunks: Chunks) -> Tensor:
    """log p(x) + log Z of every example."""
    return chunks.each("log_prob", lambda x, _: model.log_prob_unnormalised(x))


def unnormalised_elbo(model: HasUnnormalisedElbo, chunks: Chunks) -> Tensor:
    """One draw of the lower bound of log p(x) + log Z for every example."""
    return chunks.each("elbo", lambda x, generator: model.elbo_unnormalised(x, generator=generator))


def importance_weighted_bounds(model: HasLogWeights, chunks: Chunks, ks: Sequence[int]) -> dict[int, Draws]:
    """The bound of every k in ``ks`` for every example, by one pass of max(ks) draws.

    Draws come in blocks that fit the size of the data; what is kept of a draw is its weight, 8 bytes an example.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"k={list(ks)} must name numbers of importance samples, each at least 1.")
    most = max(ks)

    def value(x: Tensor, generator: Generator) -> Tensor:
        block = max(1, BLOCK_NUMBERS // (len(x) * max(LEAST_WIDTH, x[0].numel())))
        weights = torch.cat(
            [
                model.log_weights(x, min(block, most - start), generator=generator).double()
                for start in range(0, most, block)
            ]
        )
        return torch.stack([number for k in ks for number in grouped_bound(weights, k)], dim=1)

    found = chunks.each("importance", value)
    both = {k: (found[:, 2 * i], found[:, 2 * i + 1]) for i, k in enumerate(ks)}
    return {k: Draws(values, None if most == 1 else variance) for k, (values, variance) in both.items()}


def grouped_bound(log_weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The bound of k samples from log-weights (K, b), K >= k, and its variance over draws, each (b,)."""
    groups = len(log_weights) // k
    each = log_weights[: groups * k].unflatten(0, (groups, k)).logsumexp(1) - math.log(k)
    variance = each.var(0) / groups if groups > 1 else jackknife_variance(log_weights[:k])
    return each.mean(0), variance


def jackknife_variance(log_weights: Tensor) -> Tensor:
    """Jackknife estimate of the variance of log-mean-exp over log-weights (k, b), as (b,); zero for k = 1."""
    share = torch.softmax(log_weights, 0)
    without = torch.log1p(-share.clamp(max=1 - 1e-15))  # but for a constant
    return (len(log_weights) - 1) * without.var(0, correction=0)
