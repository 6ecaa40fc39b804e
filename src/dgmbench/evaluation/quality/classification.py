"""The part of the evaluation that asks models for labels: a classifier of their own, or Bayes' rule on p(x | y)."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import WITHOUT_NOISE, Context, Found, Note
from dgmbench.models.contract import CanClassify, HasElbo, HasLogProb, IsClassConditional, Model


def classification(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The share of examples whose most probable label is not theirs."""
    classes = context.data.spec.num_classes
    if not classes or context.data.splits[context.split].y is None:
        return
    if isinstance(model, CanClassify):
        by = "classify"
    elif isinstance(model, IsClassConditional) and isinstance(model, HasLogProb | HasElbo):
        by = "log p(x | y) + log p(y)" if isinstance(model, HasLogProb) else "elbo of x given y + log p(y)"
    else:
        return
    note("classification")

    def wrong(batch: Batch, generator: Generator) -> Tensor:
        if isinstance(model, CanClassify):
            scores = model.classify(batch.x)
        else:
            scores = _by_bayes_rule(model, batch.x, generator)
        assert batch.y is not None
        wrong = (scores.argmax(1) != batch.y).double()
        return wrong.masked_fill(scores.isnan().any(1), torch.nan)  # no label is most probable then

    errors = context.chunks.each_labelled("classification", wrong)
    error = Metric.mean_of(errors, unit="share", kind="estimate", direction="lower")
    certain = isinstance(model, CanClassify | HasLogProb)
    yield "classification_error", error, {"by": by} | (WITHOUT_NOISE if certain else {})


def _by_bayes_rule(model: Model, x: Tensor, generator: Generator) -> Tensor:
    """log p(x | y) + log p(y) for every label, (b, classes); a bound of the former where there is only that."""
    assert isinstance(model, IsClassConditional)
    columns = []
    for label in range(len(model.class_log_prior)):
        y = torch.full((len(x),), label, device=x.device)
        if isinstance(model, HasLogProb):
            columns.append(model.log_prob(x, y=y))  # type: ignore[call-arg]  # what a conditional model promises
        else:
            assert isinstance(model, HasElbo)
            columns.append(model.elbo(x, y=y, generator=generator))  # type: ignore[call-arg]
    return torch.stack(columns, 1) + model.class_log_prior
