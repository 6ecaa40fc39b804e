"""Exact densities: they sum to 1, samples follow them, and autoregressive ones depend on earlier dimensions only."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dgmbench.models.contract import CanSample, HasLogProb, IsAutoregressive, Model
from dgmbench.verify.check import QUADRATURE, Check, chi_squared, frequencies, undecided
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import Support, support_of, unsupported

SAMPLES = 20_000
MOST_PERTURBED = 64
# Points a dimension, by the number of dimensions, where the usual ones do not resolve a density.
FINER = {1: (8000, 64_000), 2: (400, 800, 1600)}


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    if isinstance(model, HasLogProb):
        yield from normalised(subject, model)
    if isinstance(model, IsAutoregressive):
        yield from _ordered(subject, model)


def pilot_of(subject: Subject, model: object) -> Tensor:
    """Some samples that show where the mass lies; data where the model has none, or where all x are enumerated."""
    if subject.spec.kind != "real" or not isinstance(model, CanSample):
        return subject.data.x
    return model.sample(500, generator=subject.generator("pilot"))


def draws_of(subject: Subject, model: CanSample) -> Tensor:
    """Samples of the model, the same for all checks, (SAMPLES, *shape)."""
    return subject.once(model, "samples", lambda: model.sample(SAMPLES, generator=subject.generator("samples")))


def normalised(subject: Subject, model: HasLogProb) -> Iterator[Check]:
    """The sum over x, and the frequencies of samples; ``model`` may be one that holds something fixed."""
    can_sample = isinstance(model, CanSample)
    found = unsupported(subject.spec) or _summed(subject, model, pilot_of(subject, model))
    if isinstance(found, str):
        yield undecided("probabilities sum to 1", found)
        if can_sample:
            yield undecided("samples follow the probabilities", found)
        return
    support, log_prob, total = found
    tolerance = 1e-9 if support.exact else QUADRATURE
    yield Check("probabilities sum to 1", abs(total - 1), tolerance, abs(total - 1) <= tolerance, support.note)
    if isinstance(model, CanSample):
        samples = draws_of(subject, model)
        yield follow("samples follow the probabilities", support, samples, support.probabilities(log_prob))


def log_prob_of_all(subject: Subject, model: HasLogProb, support: Support) -> Tensor:
    """log p at every point of the support, in float64; where it is all values of x, computed once for all checks."""

    def compute() -> Tensor:
        return torch.cat([model.log_prob(x) for x in support.x.split(8192)]).double()

    return subject.once(model, "log_prob", compute) if support.exact else compute()


def _summed(subject: Subject, model: HasLogProb, pilot: Tensor) -> tuple[Support, Tensor, float] | str:
    """The support, log p at its points and the sum of p; or why there is no such sum.

    A density that is narrow against the grid has any sum there, whatever it integrates to: the grid becomes finer until
    the sum is 1, or is what it was before. Grids whose points all miss the density agree too, on nothing: where most
    of the pilot has a higher density than any point, none of them counts.
    """
    before, tried, spec = 0.0, 0, subject.spec
    for points in (None, *FINER.get(spec.dim, ())):
        support = support_of(spec, pilot, points=points)
        if isinstance(support, str):
            return support
        log_prob = log_prob_of_all(subject, model, support)
        total = float((log_prob + support.log_volume).exp().sum())
        if support.exact or abs(total - 1) <= QUADRATURE:
            return support, log_prob, total
        seen = float(log_prob.max()) >= float(model.log_prob(pilot).median())
        if seen and abs(total - before) <= QUADRATURE * before:
            return support, log_prob, total
        before, tried = total, len(support.x)
    return f"the density is too narrow for a grid: {tried} points give another integral than fewer"


def follow(
    name: str, support: Support, samples: Tensor, probabilities: Tensor, variance: Tensor | None = None
) -> Check:
    """Whether the frequencies of samples agree with the probabilities of the support's cells."""
    counts, outside = support.counts(samples)
    note = f"chi-squared of {len(samples)} samples"
    if outside > len(samples) * (0 if support.exact else 1e-3):
        return Check(name, f"{outside} outside", "0", False, note)
    return frequencies(name, [chi_squared(counts, probabilities, variance=variance)], note)


def _ordered(subject: Subject, model: IsAutoregressive) -> Iterator[Check]:
    """Change one dimension at a time: conditionals at or before it in the order must not move."""
    spec, order = subject.spec, model.ordering()
    permutation = torch.equal(order.sort().values.cpu(), torch.arange(spec.dim)) and order.dtype == torch.int64
    yield Check(
        "the order is a permutation", str(permutation).lower(), "true", permutation, f"of {spec.dim} dimensions"
    )
    base = subject.data.x[:6].flatten(1)
    step = 0.7 if spec.kind == "real" else 1
    before = model.conditional_logits(base.reshape(-1, *spec.shape))
    tried = torch.randperm(spec.dim, generator=subject.generator("dims"))[:MOST_PERTURBED].tolist()
    worst, pairs = 0.0, 0
    for j in tried:
        moved = torch.zeros(spec.dim)
        for change in range(1, min(spec.levels or 2, 4)):
            x = base.clone()
            x[:, j] = (
                base[:, j] + step * change if spec.kind == "real" else (base[:, j] + change) % (spec.levels or 256)
            )
            difference = (model.conditional_logits(x.reshape(-1, *spec.shape)) - before).abs().amax((0, 2))
            moved = torch.maximum(moved, difference)
        later = order > order[j]
        worst = max(worst, float(moved[~later].max()))
        pairs += int((moved[later] > 1e-9).sum())
    note = f"{len(tried)} dimensions changed one by one; {pairs} later conditionals moved, as they may"
    yield Check("conditionals see earlier dimensions only", worst, 1e-9, worst <= 1e-9, note)
