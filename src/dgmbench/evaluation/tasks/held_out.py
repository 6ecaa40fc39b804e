"""The numbers that a model names itself: means over the examples of a split, the first of them its objective."""

import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import Context, Found, Note
from dgmbench.models.contract import Model
from dgmbench.models.tasks import HasObjective, HeldOut


def own_objectives(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """Every number that the model names, over the examples of the split."""
    if isinstance(model, HasObjective):
        note("the model's own objectives")
        for name, metric in held_out(model, context.chunks).items():
            yield name, metric, {"objective": "of the model's own"}


def held_out(model: HasObjective, chunks: Chunks) -> dict[str, Metric]:
    """Means and standard errors of all that the model names; examples without a label may have no value."""
    meanings = objectives(model)

    def values(batch: Batch, generator: Generator) -> Tensor:
        found = model.held_out(batch, generator=generator)
        if set(found) != set(meanings):
            raise UserError(
                f"{type(model).__name__}.held_out returns {', '.join(found) or 'nothing'}, but objectives() names "
                f"{', '.join(meanings)}; they must be the same."
            )
        for name, value in found.items():
            if value.shape != (len(batch.x),):
                raise UserError(
                    f"{type(model).__name__}.held_out returns {name} of shape {tuple(value.shape)} for {len(batch.x)} "
                    f"examples; it must be one value an example."
                )
        labelled = torch.ones(len(batch.x)) if batch.y is None else _labelled(batch.y)
        return torch.stack([*(found[name].double() for name in meanings), labelled.to(batch.x.device).double()], 1)

    *columns, labelled = chunks.each_labelled("held out", values).unbind(1)
    metrics = {}
    for (name, meaning), column in zip(meanings.items(), columns, strict=True):
        skipped = column.isnan() & ((labelled == 0) | meaning.some)
        remark = f"{int(skipped.sum())} of {len(column)} examples have no {'such value' if meaning.some else 'label'}"
        metrics[name] = mean(column[~skipped], meaning).noting(remark if skipped.any() else None)
    return metrics


def objectives(model: HasObjective) -> dict[str, HeldOut]:
    """What the model names, checked: there is a first one, and it has a better side."""
    meanings = dict(model.objectives())
    who = type(model).__name__
    if not meanings:
        raise UserError(f"{who}.objectives() is empty; it must name at least one held-out number.")
    first, meaning = next(iter(meanings.items()))
    if meaning.direction == "none":
        raise UserError(f"{who}'s objective {first} has no better side: its direction must be 'higher' or 'lower'.")
    return meanings


def mean(values: Tensor, meaning: HeldOut) -> Metric:
    """The mean of values (n,) of examples; of none, a number that is none."""
    if not len(values):
        return Metric(math.nan, meaning.unit, meaning.kind, meaning.direction, n=0)
    return Metric.mean_of(values, unit=meaning.unit, kind=meaning.kind, direction=meaning.direction)


def _labelled(y: Tensor) -> Tensor:
    """Whether examples with labels (b,), or (b, t) of single steps, have any."""
    return (y >= 0).flatten(1).any(1) if y.dim() > 1 else y >= 0
