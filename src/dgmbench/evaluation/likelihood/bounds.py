"""Per-example log-likelihoods and bounds of any model that has them, in nats, (n,) float64."""

import math

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.evaluation.chunks import Chunks
from dgmbench.models.contract import (
    HasElbo,
    HasLogProb,
    HasLogWeights,
    HasReconstructionLogProb,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsClassConditional,
)

# Importance samples are drawn in blocks of this many, which bounds the memory for any k.
BLOCK = 50


def log_likelihood(model: HasLogProb, chunks: Chunks) -> Tensor:
    """Exact log p(x) of every example."""
    return chunks.each("log_prob", lambda x, _: model.log_prob(x))


def elbo(model: HasElbo, chunks: Chunks) -> Tensor:
    """One draw of the evidence lower bound for every example."""
    return chunks.each("elbo", lambda x, generator: model.elbo(x, generator=generator))


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


def importance_weighted_bound(model: HasLogWeights, chunks: Chunks, *, k: int) -> Tensor:
    """log (1/k) sum_i w_i for every example (Burda, Grosse, Salakhutdinov 2016, eq. 8).

    Running log-sum-exp over blocks of importance samples, so memory does not grow with k.
    """

    def value(x: Tensor, generator: Generator) -> Tensor:
        total = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        for start in range(0, k, BLOCK):
            weights = model.log_weights(x, min(BLOCK, k - start), generator=generator).double()
            total = torch.logaddexp(total, torch.logsumexp(weights, 0))
        return total - math.log(k)

    return chunks.each("importance", value)
