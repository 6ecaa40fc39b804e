"""Labels and known parts: p(x | y) is a density for every y and fits the marginal; completions keep what is known."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.models.contract import (
    CanComplete,
    HasLogProb,
    HasLogWeights,
    HasUnnormalisedLogProb,
    IsAutoregressive,
    IsClassConditional,
    Model,
)
from dgmbench.nn.conditionals import Conditionals
from dgmbench.nn.levels import level_log_prob
from dgmbench.verify import bounds, density
from dgmbench.verify.check import Check, chi_squared, combine, frequencies, undecided, within
from dgmbench.verify.means import ENOUGH, MOST, Means
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import Support, support_of, unsupported

EXAMPLES = 16
DRAWS = 512
COMPLETIONS = 5_000


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    if isinstance(model, IsClassConditional) and isinstance(model, HasLogProb | HasLogWeights):
        yield from _classes(subject, model)
    if isinstance(model, CanComplete):
        yield from _completions(subject, model)


class _Given:
    """A model with its label held fixed, as a model without labels."""

    def __init__(self, model: Any, label: int) -> None:
        self.model, self.label = model, label

    def labels(self, n: int) -> Tensor:
        """The label, n times."""
        return torch.full((n,), self.label)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x | y)."""
        found: Tensor = self.model.log_prob(x, y=self.labels(len(x)))
        return found

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        """Weights whose mean is p(x | y)."""
        found: Tensor = self.model.log_weights(x, k, y=self.labels(len(x)), generator=generator)
        return found

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draws of p(x | y)."""
        found: Tensor = self.model.sample(n, self.labels(n), generator=generator)
        return found


def _classes(subject: Subject, model: Any) -> Iterator[Check]:
    """Densities p(x | y) by the checks of densities and bounds, and log sum_y p(y) p(x | y) against the marginal.

    The sums over x of all classes together cost as many draws as one of the marginal.
    """
    prior = model.class_log_prior.double()
    error = abs(float(prior.logsumexp(0)))
    yield Check("class prior sums to 1", error, 1e-6, error <= 1e-6, f"{len(prior)} classes")
    found: list[tuple[str, Check]] = []
    for label in range(len(prior)):
        given = _Given(model, label)
        if isinstance(model, HasLogProb):
            lines = density.normalised(subject, given)
        else:
            support = unsupported(subject.spec) or support_of(subject.spec, density.pilot_of(subject, given))
            if isinstance(support, str):
                lines = iter([undecided("mean weights sum to 1 over x", support)])
            else:
                samples = density.draws_of(subject, given)
                lines = bounds.unbiased(subject, given, support, samples, MOST // len(prior))
        found += [(f"class {label}", replace(line, name=f"given a class, {line.name}")) for line in lines]
    yield from combine(found)
    yield _marginal(subject, model, prior)


def _marginal(subject: Subject, model: Any, prior: Tensor) -> Check:
    name, x = "the marginal is the mixture of the classes", subject.data.x[:EXAMPLES]
    given = [_Given(model, label) for label in range(len(prior))]
    if isinstance(model, HasLogProb):
        mixture = torch.stack([one.log_prob(x) for one in given]) + prior[:, None]
        error = float((mixture.logsumexp(0) - model.log_prob(x)).abs().max())
        return Check(name, error, 1e-6, error <= 1e-6, f"log p(x) of {len(x)} examples")
    draws = [one.log_weights(x, DRAWS, generator=subject.generator("mixture", one.label)) for one in given]
    parts = torch.stack([w.double() for w in draws]) + prior[:, None, None]
    whole = model.log_weights(x, DRAWS, generator=subject.generator("marginal")).double()
    mixed, marginal = Means.of(parts.logsumexp(0)), Means.of(whole)
    kept = mixed.believed & marginal.believed
    if int(kept.sum()) < len(x) / 2:
        few = f"{int((~kept).sum())} of {len(x)} examples have fewer than {ENOUGH:g} effective weights"
        return undecided(name, f"the weights' tails are too heavy: {few}")
    scale = torch.maximum(mixed.mean, marginal.mean)[kept]  # so that examples count alike
    difference, variance = (marginal.mean - mixed.mean)[kept] / scale, (mixed.variance + marginal.variance)[kept]
    error = float((variance / scale**2).sum()) ** 0.5 / len(scale)
    note = f"mean weights of {len(scale)} examples, relative"
    return within(name, float(difference.mean()), error, note)


def _completions(subject: Subject, model: CanComplete) -> Iterator[Check]:
    spec, x = subject.spec, subject.data.x[:EXAMPLES]
    known = torch.rand(x.shape, generator=subject.generator("known")) < 0.5
    filled = model.complete(x, known, generator=subject.generator("complete"))
    wrong = filled.shape != x.shape or filled.dtype != x.dtype
    moved = len(x) if wrong else int((filled != x)[known].sum())
    note = f"{tuple(filled.shape)} {filled.dtype}".replace("torch.", "") if wrong else "half of them, at random places"
    yield Check("completions keep what is known", f"{moved} changed", "0", not moved and not wrong, note)
    if wrong:
        return
    whole = model.complete(x, torch.ones_like(known), generator=subject.generator("complete"))
    same = torch.equal(whole, x)
    yield Check("nothing unknown, nothing drawn", str(same).lower(), "true", same, "all of x is known")
    support = support_of(spec, subject.data.x)
    name = "completions of nothing follow the model"
    if not isinstance(model, HasLogProb | HasUnnormalisedLogProb):
        return
    if isinstance(support, str) or not support.exact:
        yield undecided(name, "p(x) cannot be enumerated")
        return
    if isinstance(model, HasLogProb):
        log_prob = density.log_prob_of_all(subject, model, support)
    else:
        log_prob = model.log_prob_unnormalised(support.x).double().log_softmax(0)
    yield _follows(subject, model, support, log_prob, torch.zeros(spec.dim, dtype=torch.bool), name)
    if isinstance(model, IsAutoregressive):
        name = "completions of a beginning follow the model"
        parameters = torch.cat([model.conditional_logits(part) for part in support.x.split(8192)])
        of_level = getattr(model, "conditionals", None)
        log_p = of_level.log_prob if isinstance(of_level, Conditionals) else level_log_prob
        product = log_p(parameters, support.x.flatten(1)).sum(1).double()
        if float((product - log_prob).abs().max()) > 1e-6:
            yield undecided(name, "p(x) is a mixture over orders, which no order's completions follow")
            return
        begun = model.ordering().cpu() < (spec.dim + 1) // 2
        yield _follows(subject, model, support, log_prob, begun, name)


def _follows(
    subject: Subject, model: CanComplete, support: Support, log_prob: Tensor, known: Tensor, name: str
) -> Check:
    """Completions of one example against p(unknown | known), renormalised from the enumeration of p(x)."""
    start = subject.data.x[:1]
    places = known.reshape(subject.spec.shape)
    agrees = ((support.x == start) | ~places).flatten(1).all(1)
    p = log_prob.masked_fill(~agrees, -torch.inf).softmax(0)
    rows = start.expand(COMPLETIONS, *subject.spec.shape)
    filled = model.complete(rows, places.expand(rows.shape), generator=subject.generator("follow", int(known.sum())))
    counts, outside = support.counts(filled)
    note = f"{COMPLETIONS} completions, {int(known.sum())} of {len(known)} dimensions known"
    if outside:
        return Check(name, f"{outside} outside", "0", False, note)
    if isinstance(model, HasLogProb):
        return frequencies(name, [chi_squared(counts, p)], note)
    distance = float((counts / COMPLETIONS - p).abs().sum()) / 2
    noise = float((2 * p * (1 - p) / (torch.pi * COMPLETIONS)).sqrt().sum()) / 2
    note = f"total variation beyond that of {COMPLETIONS} exact ones; chains are approximate"
    return Check(name, distance - noise, 0.05, distance - noise <= 0.05, note)
