"""Undirected models: log Z three ways, paths for annealing, and chains that leave their distribution unchanged."""

from collections.abc import Iterator
from math import inf

import torch
from torch import Tensor

from dgmbench.models.contract import (
    CanSample,
    HasConditions,
    HasLogProb,
    HasStepConditions,
    HasTransition,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    Model,
)
from dgmbench.verify import conditions, steps
from dgmbench.verify.bounds import below_frequencies, sums_to_at_most_one
from dgmbench.verify.check import QUADRATURE, Check, chi_squared, frequencies, undecided
from dgmbench.verify.density import FINER
from dgmbench.verify.path import CHAINS, exact_starts, path_checks
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import Support, support_of

SAMPLES = 4_000


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    support = support_of(subject.spec, subject.data.x)
    log_prob: Tensor | None = None
    if isinstance(model, HasConditions):
        yield from conditions.checks(subject, model)
        return
    if isinstance(model, HasStepConditions):
        yield from steps.checks(subject, model)
        return
    if isinstance(model, HasUnnormalisedLogProb | HasUnnormalisedElbo):
        path = model.annealing_path()
        log_partition = path.exact_log_partition()
        yield from path_checks(subject, path, log_partition)
        if isinstance(model, HasUnnormalisedLogProb):
            if isinstance(support, str):
                yield undecided("log Z by enumerating x", support)
            elif not support.exact:
                yield _by_quadrature(subject, model, log_partition)
            else:
                unnormalised = model.log_prob_unnormalised(support.x).double() + support.log_volume
                log_prob = unnormalised - unnormalised.logsumexp(0)
                if log_partition is not None and support.exact:
                    error = abs(float(unnormalised.logsumexp(0)) - float(log_partition))
                    yield Check(
                        "log Z by enumerating x", error, 1e-8, error <= 1e-8, f"{support.note}; against the path's"
                    )
        if isinstance(model, HasUnnormalisedElbo):
            yield from _bound(subject, model, log_partition, support)
    if isinstance(model, HasLogProb) and not isinstance(support, str):
        log_prob = model.log_prob(support.x).double() + support.log_volume
    if log_prob is None or isinstance(support, str) or not support.exact:
        if isinstance(model, HasTransition):
            yield undecided("the chain leaves p(x) unchanged", "p(x) cannot be enumerated")
        return
    if isinstance(model, HasTransition):
        yield _stationary(subject, model, support, log_prob)
    if isinstance(model, HasUnnormalisedLogProb) and isinstance(model, CanSample):
        yield _samples(subject, model, support, log_prob)


def _by_quadrature(subject: Subject, model: HasUnnormalisedLogProb, log_partition: Tensor | None) -> Check:
    """The integral of exp(log_prob_unnormalised) over real x against the path's log Z, on finer grids if need be."""
    name, before, points = "log Z by quadrature over x", inf, 0
    if log_partition is None:
        return undecided(name, "the path cannot enumerate log Z")
    pilot = model.sample(500, generator=subject.generator("pilot")) if isinstance(model, CanSample) else subject.data.x
    for finer in (None, *FINER.get(subject.spec.dim, ())):
        support = support_of(subject.spec, pilot, points=finer)
        assert not isinstance(support, str)
        parts = [model.log_prob_unnormalised(x).double() for x in support.x.split(8192)]
        error = abs(float((torch.cat(parts) + support.log_volume).logsumexp(0)) - float(log_partition))
        points = len(support.x)
        if error <= QUADRATURE or abs(error - before) <= QUADRATURE * before:
            return Check(name, error, QUADRATURE, error <= QUADRATURE, f"{support.note}; against the path's")
        before = error
    return undecided(name, f"the density is too narrow for a grid: {points} points give another integral than fewer")


def _stationary(subject: Subject, model: HasTransition, support: Support, log_prob: Tensor) -> Check:
    x, p_values = support.x[exact_starts(log_prob, CHAINS, subject)], []
    g = subject.generator("chain")
    for step in range(1, 6):
        x = model.transition(x, generator=g)
        if step in (1, 5):
            counts, outside = support.counts(x)
            p_values.append(0.0 if outside else chi_squared(counts, log_prob.exp()))
    return frequencies("the chain leaves p(x) unchanged", p_values, f"{CHAINS} exact starts, after 1 and 5 steps")


def _samples(subject: Subject, model: CanSample, support: Support, log_prob: Tensor) -> Check:
    """Samples of a chain are approximate: their total variation from p(x), less what exact samples would show."""
    counts, outside = support.counts(model.sample(SAMPLES, generator=subject.generator("samples")))
    p = log_prob.exp()
    distance = float((counts / SAMPLES - p).abs().sum()) / 2 + outside / SAMPLES
    noise = float((2 * p * (1 - p) / (torch.pi * SAMPLES)).sqrt().sum()) / 2
    note = f"total variation beyond that of {SAMPLES} exact samples; chains are approximate"
    return Check("samples are near p(x)", distance - noise, 0.05, distance - noise <= 0.05, note)


def _bound(
    subject: Subject, model: HasUnnormalisedElbo, log_partition: Tensor | None, support: Support | str
) -> Iterator[Check]:
    name = "exp(ELBO) sums to at most 1 over x"
    if isinstance(support, str) or log_partition is None:
        yield undecided(name, support if isinstance(support, str) else "log Z cannot be enumerated")
        return
    draws = max(8, min(64, 2**18 // len(support.x)))
    g = subject.generator("bound")
    elbo = torch.stack([model.elbo_unnormalised(support.x, generator=g) for _ in range(draws)]).double()
    mean, error = elbo.mean(0) - float(log_partition), elbo.std(0) / draws**0.5
    yield sums_to_at_most_one(mean + support.log_volume, error)
    if isinstance(model, CanSample) and support.exact:
        samples = model.sample(SAMPLES, generator=subject.generator("samples"))
        yield below_frequencies(support, samples, mean, error)
