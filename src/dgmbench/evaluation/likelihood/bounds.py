r"""Per-example log-likelihoods and bounds of any model that has them, in nats, (n,) float64.

The bound of k importance samples (Burda, Grosse, Salakhutdinov 2016, eq. 8) is L_k = E log 1/k sum_i w_i. For several k
at once, the weights w_1 ... w_K of the largest are drawn, and the bound of a smaller k is the mean over the K // k
groups of k successive weights: unbiased for L_k, and all from one pass. The variance of an example's value over its
draws is that between groups, divided by their number. A single group has none to compare with; there it is the
jackknife's, (k - 1) / k sum_i (l_i - mean l)^2 with l_i the bound without the i-th weight, which in expectation is
never too small (Efron and Stein 1981).

Bounds of one draw are the mean of two, whose difference tells the variance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.likelihood.tails import LEAST, effective_draws, tail_index, tail_size
from dgmbench.models.conditions import under
from dgmbench.models.contract import (
    HasConditions,
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
    """Values (n,) that are random, and the variance of each over its draws (n,), None where a draw tells nothing.

    Of importance weights also their effective number and the index of their tail, each (n,) (``tails.py``).
    """

    values: Tensor
    variance: Tensor | None
    effective: Tensor | None = None
    tail_index: Tensor | None = None

    def minus(self, constant: float | Tensor) -> "Draws":
        """All values less a constant, or each less its own (n,)."""
        return replace(self, values=self.values - constant)


def log_likelihood(model: HasLogProb, chunks: Chunks) -> Tensor:
    """Exact log p(x) of every example."""
    return chunks.each_labelled("log_prob", lambda batch, _: under(model, batch).log_prob(batch.x))


def elbo(model: HasElbo, chunks: Chunks) -> Draws:
    """The evidence lower bound of every example."""
    return _two(chunks, "elbo", lambda batch, generator: under(model, batch).elbo(batch.x, generator=generator))


def log_likelihood_estimate(model: HasLogProbEstimate, chunks: Chunks) -> Draws:
    """The estimate of log p(x), or of its bound, of every example."""

    def estimate(batch: Batch, generator: Generator) -> Tensor:
        return under(model, batch).log_prob_estimate(batch.x, generator=generator)

    return _two(chunks, "estimate", estimate)


def given_labels(model: IsClassConditional, chunks: Chunks) -> Tensor | Draws:
    """log p(x | y), or its lower bound, of every example under its own label."""
    if isinstance(model, HasLogProb):

        def exact(batch: Batch, _: Generator) -> Tensor:
            own = under(model, batch)
            return own.log_prob(batch.x, y=batch.y)  # type: ignore[call-arg]  # what a conditional model promises

        return chunks.each_labelled("given_labels", exact)
    assert isinstance(model, HasElbo)

    def bound(batch: Batch, generator: Generator) -> Tensor:
        return under(model, batch).elbo(batch.x, y=batch.y, generator=generator)  # type: ignore[call-arg]

    return _two(chunks, "given_labels", bound)


def _two(chunks: Chunks, name: str, value: Callable[[Batch, Generator], Tensor]) -> Draws:
    """The mean of two draws of every example's value, and its variance: a quarter of the squared difference."""

    def both(batch: Batch, generator: Generator) -> Tensor:
        return torch.stack([value(batch, generator).double() for _ in range(2)], 1)

    pair = chunks.each_labelled(name, both)
    return Draws(pair.mean(1), 0.25 * (pair[:, 0] - pair[:, 1]).square())


def reconstruction_log_prob(model: HasReconstructionLogProb, chunks: Chunks) -> Tensor:
    """log p(x | code of x) of every example."""
    return chunks.each_labelled(
        "reconstruction_log_prob", lambda batch, _: under(model, batch).reconstruction_log_prob(batch.x)
    )


def unnormalised_log_likelihood(model: HasUnnormalisedLogProb | HasConditions, chunks: Chunks) -> Tensor:
    """log p(x) + log Z of every example."""
    return chunks.each_labelled("log_prob", lambda batch, _: under(model, batch).log_prob_unnormalised(batch.x))


def conditions(model: HasConditions, chunks: Chunks) -> Tensor:
    """What log Z depends on, of every example, (n, ...)."""
    return chunks.each("condition", lambda x, _: model.condition_of(x))


def unnormalised_elbo(model: HasUnnormalisedElbo, chunks: Chunks) -> Draws:
    """The lower bound of log p(x) + log Z of every example."""

    def bound(batch: Batch, generator: Generator) -> Tensor:
        return under(model, batch).elbo_unnormalised(batch.x, generator=generator)

    return _two(chunks, "elbo", bound)


def importance_weighted_bounds(model: HasLogWeights, chunks: Chunks, ks: Sequence[int]) -> dict[int, Draws]:
    """The bound of every k in ``ks`` for every example, by one pass of max(ks) draws.

    Draws come in blocks that fit the size of the data; what is kept of a draw is its weight, 8 bytes an example. The
    index of the tail is that of all draws.
    """
    if not ks or min(ks) < 1:
        raise UserError(f"k={list(ks)} must name numbers of importance samples, each at least 1.")
    most = max(ks)

    def value(batch: Batch, generator: Generator) -> Tensor:
        x, own = batch.x, under(model, batch)
        block = max(1, BLOCK_NUMBERS // (len(x) * max(LEAST_WIDTH, x[0].numel())))
        weights = torch.cat(
            [
                own.log_weights(x, min(block, most - start), generator=generator).double()
                for start in range(0, most, block)
            ]
        )
        each = [(*grouped_bound(weights, k), grouped_effective_draws(weights, k)) for k in ks]
        return torch.stack([*(number for numbers in each for number in numbers), tail_index(weights)], dim=1)

    found = chunks.each_labelled("importance", value).unbind(1)
    tail = found[-1] if tail_size(most) >= LEAST else None
    each = {k: found[3 * i : 3 * i + 3] for i, k in enumerate(ks)}
    return {
        k: Draws(values, None if most == 1 else variance, effective, tail)
        for k, (values, variance, effective) in each.items()
    }


def grouped_bound(log_weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The bound of k samples from log-weights (K, b), K >= k, and its variance over draws, each (b,)."""
    groups = len(log_weights) // k
    each = log_weights[: groups * k].unflatten(0, (groups, k)).logsumexp(1) - math.log(k)
    variance = each.var(0) / groups if groups > 1 else jackknife_variance(log_weights[:k])
    return each.mean(0), variance


def grouped_effective_draws(log_weights: Tensor, k: int) -> Tensor:
    """The effective number of k weights from log-weights (K, b), K >= k, as the mean over their groups (b,)."""
    groups = len(log_weights) // k
    return torch.stack([effective_draws(group) for group in log_weights[: groups * k].split(k)]).mean(0)


def jackknife_variance(log_weights: Tensor) -> Tensor:
    """Jackknife estimate of the variance of log-mean-exp over log-weights (k, b), as (b,); zero for k = 1."""
    if len(log_weights) < 2:
        return torch.zeros_like(log_weights[0])
    largest = log_weights.argmax(0, keepdim=True)
    share = torch.softmax(log_weights, 0)
    # but for a constant; without the largest weight next to nothing may be left, and the others are summed anew
    without = torch.log1p(-share.scatter(0, largest, 0.0))
    others = log_weights.scatter(0, largest, -torch.inf).logsumexp(0, keepdim=True) - log_weights.logsumexp(0)
    without = without.scatter(0, largest, others)
    return (len(log_weights) - 1) * without.var(0, correction=0)
