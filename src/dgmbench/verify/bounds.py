"""Bounds and importance weights: unbiased for p(x), ordered, and never above the truth."""

import itertools
import math
from collections.abc import Iterator

import torch
from scipy import stats
from torch import Tensor

from dgmbench.models.contract import CanSample, HasElbo, HasLogProb, HasLogWeights, Model
from dgmbench.verify.check import QUADRATURE, SIGMAS, Check, undecided, within
from dgmbench.verify.density import draws_of, pilot_of
from dgmbench.verify.means import MOST, estimate, follow_means, sums_to_one
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import Support, support_of, unsupported

EXAMPLES = 24
CALLS, REPEATS = 16, 8
VACUOUS = 0.01
"""The sum of exp(bound) below which a bound says nothing of whether it is one: it could be 100 times as large."""


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    if not isinstance(model, HasElbo | HasLogWeights):
        return
    x = subject.data.x[:EXAMPLES]
    names: list[str] = []
    means: list[float] = []
    errors: list[float] = []
    if isinstance(model, HasElbo):
        many = x.repeat(REPEATS, *[1] * len(subject.spec.shape))
        repeated = torch.stack([model.elbo(many, generator=subject.generator("elbo", i)) for i in range(CALLS)])
        names.append("elbo")
        _append(means, errors, repeated)
    if isinstance(model, HasLogWeights):
        g = subject.generator("weights")
        for k in (1, 4, 16, 64):
            repeats = max(8, CALLS * REPEATS // k)
            w = model.log_weights(x.repeat(repeats, *[1] * len(subject.spec.shape)), k, generator=g)
            names.append(f"IW-{k}")
            _append(means, errors, (w.logsumexp(0) - torch.tensor(float(k)).log()).reshape(repeats, len(x)))
    yield from _ordered(names, means, errors)
    if isinstance(model, HasLogProb):
        truth = float(model.log_prob(x).mean())
        gaps = [mean - truth for mean in means]
        worst = max(range(len(gaps)), key=lambda i: gaps[i] - SIGMAS * errors[i])
        yield within("bounds lie below log p(x)", gaps[worst], errors[worst], f"{names[worst]}, nats", below=False)
    yield from sums(subject, model)


def _append(means: list[float], errors: list[float], draws: Tensor) -> None:
    """Mean over examples and draws (repeats, b), and its standard error from the repeats.

    Few repeats give a standard error that is itself uncertain: it is widened to what Student's t allows for it.
    """
    per_draw = draws.double().mean(1)
    n = len(per_draw)
    wider = float(stats.t.isf(stats.norm.sf(SIGMAS), n - 1)) / SIGMAS
    means.append(float(per_draw.mean()))
    errors.append(wider * float(per_draw.std() / n**0.5))


def _ordered(names: list[str], means: list[float], errors: list[float]) -> Iterator[Check]:
    values = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, means, strict=True))
    if names[:2] == ["elbo", "IW-1"]:
        error = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
        yield within("the ELBO is the mean log-weight", means[0] - means[1], error, f"{values} nats")
    bounds = [i for i, name in enumerate(names) if name != "elbo"]
    if bounds:
        drops = [(means[a] - means[b], (errors[a] ** 2 + errors[b] ** 2) ** 0.5) for a, b in itertools.pairwise(bounds)]
        worst = max(drops, key=lambda drop: drop[0] - SIGMAS * drop[1])
        yield within("the bound grows with k", worst[0], worst[1], f"largest drop; {values} nats", below=False)


def sums(subject: Subject, model: HasElbo | HasLogWeights) -> Iterator[Check]:
    """Sums over every x: mean weights are unbiased for p(x), so they sum to 1; exp(ELBO) sums to at most 1."""
    support = unsupported(subject.spec) or support_of(subject.spec, pilot_of(subject, model))
    if isinstance(support, str):
        yield undecided("weights or bounds sum to 1 over x", support)
        return
    samples = draws_of(subject, model) if isinstance(model, CanSample) else None
    if isinstance(model, HasLogWeights):
        yield from unbiased(subject, model, support, samples)
    if isinstance(model, HasElbo):
        yield from _below(subject, model, support, samples)


def unbiased(
    subject: Subject, model: HasLogWeights, support: Support, samples: Tensor | None, most: int = MOST
) -> Iterator[Check]:
    """The mean weight of x (``most`` draws for all) is unbiased for p(x), and samples are as frequent as it says."""
    g = subject.generator("sum")

    def draw(cells: Tensor, k: int) -> Tensor:
        if support.exact:
            return model.log_weights(support.x[cells], k, generator=g)
        x, log_volume = support.draw(cells.repeat(k), g)
        return (model.log_weights(x, 1, generator=g)[0] + log_volume).reshape(k, len(cells))

    means = estimate(draw, support.cells, most)
    low, high = int(means.draws.min()), int(means.draws.max())
    note = f"{support.cells} {'values' if support.exact else 'cells'} of x, {low} to {high} weights each"
    check = sums_to_one("mean weights sum to 1 over x", means, support, samples, note)
    yield check
    if samples is None:
        return
    name = "samples follow the weights"
    if check.passed is None:
        yield undecided(name, "it leans on the sum of the weights over x, which is undecided")
    else:
        yield follow_means(name, means, support, samples, note)


def _below(subject: Subject, model: HasElbo, support: Support, samples: Tensor | None) -> Iterator[Check]:
    """exp(ELBO) at every x, from repeated draws; in cells of real data at several random points of each."""
    points = 1 if support.exact else 4
    calls, repeats = 8, max(1, min(8, MOST // (16 * points * support.cells)))
    x, log_volume = support.draw(torch.arange(support.cells).repeat(points), subject.generator("points"))
    many = x.repeat(repeats, *[1] * len(subject.spec.shape))
    elbo = torch.cat(
        [model.elbo(many, generator=subject.generator("below", i)).view(repeats, -1) for i in range(calls)]
    ).double()
    never = (elbo == -torch.inf).all(0)  # what cannot be, as words after the end of a sentence, is no noise
    mean, error = elbo.mean(0), (elbo.std(0) / len(elbo) ** 0.5).masked_fill(never, 0.0)
    yield sums_to_at_most_one(mean + log_volume, error, points)
    if samples is not None and support.exact:
        yield below_frequencies(support, samples, mean, error)


def sums_to_at_most_one(bound: Tensor, error: Tensor, points: int = 1) -> Check:
    """Whether exp(bound) sums to at most 1 over the cells of x.

    Args:
        bound: an estimate of the bound, with the log-volume of its cell, (points * n,): the cells, ``points`` times.
        error: its standard error, (points * n,).
        points: how many points of each cell there are; the sum is of their mean.
    """
    name, p = "exp(ELBO) sums to at most 1 over x", bound.exp()
    total = float(p.sum()) / points
    far = bound + SIGMAS * error < math.log(1e-6 / len(p))  # holds nothing, however noisy
    error = error.masked_fill(far, 0.0)
    bias = p * (error**2 / 2).expm1()  # an estimate that is normal around the bound has exp(estimate) above exp(bound)
    variance = p**2 * ((2 * error**2).exp() - (error**2).exp())
    if points > 1:
        variance = torch.maximum(variance, p.reshape(points, -1).var(0).repeat(points))
    slack = float(variance.sum()) ** 0.5 / points + float(bias.sum()) / points + (QUADRATURE if points > 1 else 0.0)
    note = f"sum - 1; {len(p) // points} {'values' if points == 1 else 'cells'} of x"
    if total < VACUOUS:
        return undecided(name, f"the bound is vacuous: exp(ELBO) sums to {total:.2g}; {note}")
    if not slack <= 0.25:
        return undecided(name, f"the bound is too noisy: the sum is {total:.3g} +- {slack:.2g}; {note}")
    return within(name, total - 1, slack, note, below=False)


def below_frequencies(support: Support, samples: Tensor, bound: Tensor, error: Tensor) -> Check:
    """Whether a bound of log p(x), known up to ``error``, exceeds the log-frequency of x nowhere, beyond noise."""
    name, (counts, _) = "the ELBO lies below sample frequencies", support.counts(samples)
    seen = counts >= 50
    if not bool(seen.any()):
        return undecided(name, "no value of x is frequent enough")
    frequency = counts[seen] / len(samples)
    excess = bound[seen] - frequency.log()
    noise = (error[seen] ** 2 + (1 - frequency) / counts[seen]).sqrt()
    score = float((excess / noise).max())
    limit = SIGMAS + 1  # the largest of many
    if float(excess.max()) < math.log(VACUOUS):
        return undecided(name, f"the bound is vacuous: it lies {-float(excess.max()):.3g} nats or more below")
    note = f"largest excess over {int(seen.sum())} values of x, in standard errors"
    return Check(name, score, limit, score <= limit, note)
