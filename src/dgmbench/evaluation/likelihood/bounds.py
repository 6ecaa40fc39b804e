"""Per-example log-likelihoods and bounds of any model that has them, with noise keyed by fixed chunks of examples.

A chunk is always the same hundred examples of a split, so that a value depends neither on the batch size nor on how the
split is divided over processes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor

from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch
from dgmbench.models.contract import HasElbo, HasLogProb, HasLogWeights, HasUnnormalisedElbo, HasUnnormalisedLogProb

# Importance samples are drawn in blocks of this many, which bounds the memory for any k.
BLOCK = 50


def _over_chunks(chunks: Iterable[Batch], seed: int, name: str, value: Callable[[Tensor, Generator], Tensor]) -> Tensor:
    """Per-example values of all chunks, float64 on the CPU; ``value(x, generator)`` handles one chunk."""
    results = []
    for index, batch in enumerate(chunks):
        generator = keyed_generator(name, seed, index, device=batch.x.device)
        results.append(value(batch.x, generator).double().cpu())
    return torch.cat(results)


def log_likelihood(model: HasLogProb, chunks: Iterable[Batch]) -> Tensor:
    """Exact log p(x) of every example, nats, (n,) float64."""
    return _over_chunks(chunks, 0, "log_prob", lambda x, _: model.log_prob(x))


def elbo(model: HasElbo, chunks: Iterable[Batch], *, seed: int) -> Tensor:
    """One draw of the evidence lower bound for every example, nats, (n,) float64."""
    return _over_chunks(chunks, seed, "elbo", lambda x, generator: model.elbo(x, generator=generator))


def unnormalised_log_likelihood(model: HasUnnormalisedLogProb, chunks: Iterable[Batch]) -> Tensor:
    """log p(x) + log Z of every example, nats, (n,) float64."""
    return _over_chunks(chunks, 0, "log_prob", lambda x, _: model.log_prob_unnormalised(x))


def unnormalised_elbo(model: HasUnnormalisedElbo, chunks: Iterable[Batch], *, seed: int) -> Tensor:
    """One draw of the lower bound of log p(x) + log Z for every example, nats, (n,) float64."""
    return _over_chunks(chunks, seed, "elbo", lambda x, generator: model.elbo_unnormalised(x, generator=generator))


def importance_weighted_bound(model: HasLogWeights, chunks: Iterable[Batch], *, k: int, seed: int) -> Tensor:
    """log (1/k) sum_i w_i for every example, nats, (n,) float64 (Burda, Grosse, Salakhutdinov 2016, eq. 8).

    Running log-sum-exp over blocks of importance samples, so memory does not grow with k.
    """

    def value(x: Tensor, generator: Generator) -> Tensor:
        total = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        for start in range(0, k, BLOCK):
            weights = model.log_weights(x, min(BLOCK, k - start), generator=generator).double()
            total = torch.logaddexp(total, torch.logsumexp(weights, 0))
        return total - torch.log(torch.tensor(float(k), dtype=torch.float64, device=x.device))

    return _over_chunks(chunks, seed, "importance", value)
