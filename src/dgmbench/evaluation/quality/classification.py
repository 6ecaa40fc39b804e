"""The part of the evaluation that asks models for labels: a classifier of their own, or Bayes' rule on p(x | y)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.evaluation.likelihood.units import nats_per_token
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import WITHOUT_NOISE, Context, Found, Note
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanClassify, HasElbo, HasLogProb, IsClassConditional, Model


def classification(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The share of examples, or of steps where these have labels, whose most probable label is not theirs."""
    if context.data.spec.step_labels and isinstance(model, CanClassify):
        yield _of_steps(model, context, note)
    labelled = context.labelled()
    if labelled is None or not context.data.spec.num_classes:
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
            scores = under(model, batch).classify(batch.x)
        else:
            scores = _by_bayes_rule(model, batch, generator)
        assert batch.y is not None
        wrong = (scores.argmax(1) != batch.y).double()
        return wrong.masked_fill(scores.isnan().any(1), torch.nan)  # no label is most probable then

    errors = labelled.each_labelled("classification", wrong)
    error = Metric.mean_of(errors, unit="share", kind="estimate", direction="lower")
    certain = isinstance(model, CanClassify | HasLogProb)
    details = {"by": by, **context.unlabelled()} | (WITHOUT_NOISE if certain else {})
    yield "classification_error", error, details


def _of_steps(model: CanClassify, context: Context, note: Note) -> Found:
    """The share of all labelled steps, which count alike whatever sequence they belong to; padding has no label."""
    note("classification of steps")

    def counts(batch: Batch, _: Generator) -> Tensor:
        assert batch.y is not None
        known, scores = batch.y >= 0, under(model, batch).classify(batch.x)
        wrong = (scores.argmax(2) != batch.y).double().masked_fill(scores.isnan().any(2), torch.nan)
        return torch.stack([wrong.masked_fill(~known, 0.0).sum(1), known.sum(1)], 1)

    found = context.chunks.labelled().each_labelled("classification", counts)
    error = nats_per_token(-found[:, 0], found[:, 1], "estimate")
    details = {"by": "classify", "of": "steps", **context.unlabelled(), **WITHOUT_NOISE}
    return "classification_error", replace(error, unit="share of steps"), details


def _by_bayes_rule(model: Model, batch: Batch, generator: Generator) -> Tensor:
    """log p(x | y) + log p(y) for every label, (b, classes); a bound of the former where there is only that."""
    assert isinstance(model, IsClassConditional)
    x, columns = batch.x, []
    for label in range(len(model.class_log_prior)):
        y = torch.full((len(x),), label, device=x.device)
        if isinstance(model, HasLogProb):
            columns.append(under(model, batch).log_prob(x, y=y))  # type: ignore[call-arg]  # by a conditional model
        else:
            assert isinstance(model, HasElbo)
            columns.append(under(model, batch).elbo(x, y=y, generator=generator))  # type: ignore[call-arg]
    return torch.stack(columns, 1) + model.class_log_prior
