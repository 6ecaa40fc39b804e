r"""How right predictions are.

Labels: the share of wrong ones. Sequences of labels: the word error, insertions, deletions and substitutions of the
cheapest alignment (Levenshtein 1966) per label of the truth, over the whole split, so that long sequences count for
more. Real values: squared error, and its share of the target's variance that is explained,
R^2 = 1 - sum (t - p)^2 / sum (t - mean t)^2. With a predictive density, -log p(target | x) on top.
"""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import WITHOUT_NOISE, Context, Found, Note
from dgmbench.evaluation.tasks.held_out import mean
from dgmbench.models.contract import Model
from dgmbench.models.tasks import CanPredict, HasPredictiveDensity, HeldOut


def prediction(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The errors of a model's predictions on the split."""
    if not isinstance(model, CanPredict):
        return
    note("predictions")
    rows = [target_and_prediction(model, batch) for batch in context.chunks.batches()]
    if rows[0][0].is_floating_point():
        yield from _of_values(torch.cat([t for t, _ in rows]), torch.cat([p for _, p in rows]))
    elif rows[0][0].dim() == 1:
        target, predicted = (torch.cat(each) for each in zip(*rows, strict=True))
        known = target >= 0
        wrong = mean((predicted != target)[known].double(), HeldOut("share", "lower"))
        yield "prediction_error", wrong.noting(_unknown(known)), WITHOUT_NOISE
    else:
        pairs = [pair for t, p in rows for pair in zip(t, p, strict=True)]
        yield "word_error", word_error([(_words(t), _words(p)) for t, p in pairs]), WITHOUT_NOISE
    if isinstance(model, HasPredictiveDensity):
        nats = context.chunks.each_labelled("predict", lambda batch, generator: -_log_density(model, batch, generator))
        nats = nats[~nats.isnan()] if not rows[0][0].is_floating_point() else nats
        yield "predictive_nll", mean(nats, HeldOut("nats", "lower", "exact")), WITHOUT_NOISE


def target_and_prediction(model: CanPredict, batch: Batch) -> tuple[Tensor, Tensor]:
    """What was to be predicted of a batch and what was, on the CPU; the model sees no label."""
    target, predicted = model.target(batch).cpu(), model.predict(batch._replace(y=None)).cpu()
    alike = target.is_floating_point() == predicted.is_floating_point() and target.dim() == predicted.dim()
    if not alike or len(target) != len(predicted) or len(target) != len(batch.x):
        raise UserError(
            f"{type(model).__name__}.predict returns {predicted.dtype} {tuple(predicted.shape)} for a target of "
            f"{target.dtype} {tuple(target.shape)} and {len(batch.x)} examples; both must be of one kind."
        )
    return target, predicted


def _log_density(model: HasPredictiveDensity, batch: Batch, generator: Generator) -> Tensor:
    return model.log_predictive(batch)


def _unknown(known: Tensor) -> str | None:
    """How many examples have no label, in words."""
    return None if known.all() else f"{int((~known).sum())} of {len(known)} examples have no label"


def _of_values(target: Tensor, predicted: Tensor) -> Iterator[Found]:
    target, predicted = (each.double().reshape(len(each), -1) for each in (target, predicted))
    squares = (target - predicted).square().mean(1)
    yield "prediction_mse", mean(squares, HeldOut("target units^2", "lower")), WITHOUT_NOISE
    spread = (target - target.mean(0)).square().mean(1)
    if float(spread.sum()) > 0:
        ratio = float(squares.sum() / spread.sum())
        # of a ratio of means over independent examples
        se = float((squares - ratio * spread).std()) / math.sqrt(len(spread)) / float(spread.mean())
        yield "prediction_r2", Metric(1 - ratio, "1", "estimate", "higher", se, len(target)), WITHOUT_NOISE


def word_error(pairs: list[tuple[list[int], list[int]]]) -> Metric:
    """Edit distances per true word of (truth, prediction), a ratio of sums; sequences without words are left out."""
    pairs = [(truth, said) for truth, said in pairs if truth]
    if not pairs:
        return Metric(math.nan, "edits/word", "estimate", "lower", n=0, note="no sequence has labels")
    edits = torch.tensor([edit_distance(truth, said) for truth, said in pairs], dtype=torch.float64)
    words = torch.tensor([len(truth) for truth, _ in pairs], dtype=torch.float64)
    rate, count = float(edits.sum() / words.sum()), float(words.sum())
    se = float((edits - rate * words).std()) * math.sqrt(len(pairs)) / count if len(pairs) > 1 else None
    return Metric(rate, "edits/word", "estimate", "lower", se, round(count))


def edit_distance(a: list[int], b: list[int]) -> int:
    """The fewest insertions, deletions and substitutions that make b of a.

    >>> edit_distance([1, 2, 3], [1, 3]), edit_distance([1, 2], [2, 1]), edit_distance([], [5])
    (1, 2, 1)
    """
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, start=1):
        above, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (one != other)))
    return row[-1]


def _words(labels: Tensor) -> list[int]:
    """The labels of a sequence (t,) without the places behind its end."""
    return [int(label) for label in labels if label >= 0]
