"""Conditions and lengths: each example has its own, conditions matter, and padding does not."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dgmbench.data.batches import picked
from dgmbench.data.spec import Batch
from dgmbench.models.contract import CanSample, HasLogProb, Model
from dgmbench.models.tasks import CanEnhance
from dgmbench.nn.sequences import within
from dgmbench.verify.check import Check, chi_squared, frequencies, undecided
from dgmbench.verify.contract import outputs
from dgmbench.verify.density import SAMPLES
from dgmbench.verify.shown import condition, under_all
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import support_of

ROWS = 8
OTHER = 1  # what the padding is changed to


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    batch = picked(subject.learned, torch.arange(ROWS))
    beside = _beside(batch)
    if not beside:
        return
    yield _own(subject, model, batch.x, beside)
    if batch.given is not None:
        yield _matters(subject, model, batch.x, beside)
        if not subject.spec.lengths and isinstance(model, HasLogProb) and isinstance(model, CanSample):
            yield _samples(subject, model)
    if batch.length is not None:
        yield from _padding(subject, model, batch)


def _beside(batch: Batch) -> dict[str, Tensor]:
    found = {"given": batch.given, "length": batch.length}
    return {key: value for key, value in found.items() if value is not None}


def _values(subject: Subject, model: Model, x: Tensor, beside: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every output for x (n, *shape) at equal noise, with the axis of examples in front, and what is made of the
    condition alone; samples if there is nothing else.
    """
    own = under_all(model, beside)
    calls = outputs(own)
    if "given" in beside and isinstance(model, CanEnhance):  # before rounding
        given = beside["given"].expand(len(x), *beside["given"].shape[1:])
        calls |= {"enhance": (lambda x, g: model.enhance(given, generator=g), 0)}
    elif not calls and isinstance(own, CanSample):
        calls = {"sample": (lambda x, g: own.sample(len(x), generator=g), 0)}
    noise = {name: subject.generator("own condition") for name in calls}
    return {name: call(x, noise[name]).double().movedim(axis, 0) for name, (call, axis) in calls.items()}


def _own(subject: Subject, model: Model, x: Tensor, beside: dict[str, Tensor]) -> Check:
    """A row's outputs among others under their conditions are those among others that are all under its own."""
    mixed, worst, wrong = _values(subject, model, x, beside), 0.0, []
    for row in (0, 1, ROWS - 1):
        alone = _values(subject, model, x, {key: value[row : row + 1] for key, value in beside.items()})
        for name, value in mixed.items():
            difference = float((value[row] - alone[name][row]).abs().max()) / (1 + float(value[row].abs().max()))
            worst = max(worst, difference)
            wrong += [] if difference <= 1e-9 else [name]
    note = f"not so for {', '.join(dict.fromkeys(wrong))}" if wrong else "under its own among others and alone"
    return Check("each example has its own condition", worst, 1e-9, worst <= 1e-9, note)


def _matters(subject: Subject, model: Model, x: Tensor, beside: dict[str, Tensor]) -> Check:
    """What a model says of x changes with what is given."""
    one, other = (_values(subject, model, x, {**beside, **condition(subject, number)}) for number in (0, 2))
    moved = max((float((one[name] - other[name]).abs().max()) for name in one), default=0.0)
    return Check("what is given matters", moved, "more than 0", moved > 0, "largest change of an output")


def _samples(subject: Subject, model: Model) -> Check:
    """Samples drawn together under two conditions follow p(x | given) of their own."""
    name = "samples follow their own condition"
    assert isinstance(model, HasLogProb)
    assert isinstance(model, CanSample)
    support = support_of(replace(subject.spec, given=None), subject.data.x)
    if isinstance(support, str) or not support.exact:
        return undecided(name, support if isinstance(support, str) else "x cannot be enumerated")
    both = torch.cat([condition(subject, number)["given"] for number in (0, 2)])
    seen = under_all(model, {"given": both.repeat(SAMPLES // 2, *[1] * (both.dim() - 1))})
    assert isinstance(seen, CanSample)
    samples, p_values = seen.sample(SAMPLES, generator=subject.generator("own samples")), []
    for number in range(2):
        alone = under_all(model, {"given": both[number : number + 1]})
        assert isinstance(alone, HasLogProb)
        counts, outside = support.counts(samples[number::2])
        p_values.append(0.0 if outside else chi_squared(counts, support.probabilities(alone.log_prob(support.x))))
    return frequencies(name, p_values, f"chi-squared of {SAMPLES} samples under two conditions in turn")


def _padding(subject: Subject, model: Model, batch: Batch) -> Iterator[Check]:
    """Outputs and losses are the same whatever stands behind a sequence's end, and samples are zero there."""
    assert batch.length is not None
    steps = subject.spec.shape[0]
    behind = ~within(batch.length, steps).view(ROWS, steps, *[1] * (batch.x.dim() - 2)).expand(batch.x.shape)
    garbage = batch.x.masked_fill(behind, OTHER)
    kept, changed = (_values(subject, model, x, _beside(batch)) for x in (batch.x, garbage))
    wrong = []
    for name, value in kept.items():
        a, b = value, changed[name]
        if a.shape[1:] == batch.x.shape[1:]:  # of the values themselves, those that count
            a, b = a.masked_fill(behind, 0.0), b.masked_fill(behind, 0.0)
        wrong += [] if torch.equal(a, b) else [name]
    for player in model.players():
        losses = [
            float(model.loss(player, batch._replace(x=x), subject.generator("padding"))[0]) for x in (batch.x, garbage)
        ]
        wrong += [] if losses[0] == losses[1] else [f"loss of {player}"]
    note = f"not so for {', '.join(wrong)}" if wrong else f"{', '.join([*kept, 'losses'])}, with other values there"
    yield Check("padding counts for nothing", f"{len(wrong)} exceptions", "0", not wrong, note)
    if isinstance(model, CanSample):
        seen = under_all(model, _beside(batch))
        assert isinstance(seen, CanSample)
        filled = int((seen.sample(ROWS, generator=subject.generator("padding")) != 0)[behind].sum())
        yield Check("samples end at their length", f"{filled} values", "0", not filled, "behind the end")
