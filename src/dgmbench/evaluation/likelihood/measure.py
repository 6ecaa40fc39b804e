"""The part of the evaluation that asks how probable the data are: every kind of likelihood that a model has."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.evaluation.metrics import Metric, NumberKind, bits_per_dim
from dgmbench.evaluation.parts import Context, Found, Note
from dgmbench.models.contract import (
    AnnealingPath,
    HasElbo,
    HasLogProb,
    HasLogWeights,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsClassConditional,
    Model,
)


def likelihood(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """Exact values, bounds, and both sides of an AIS bracket."""
    if isinstance(model, HasLogProb):
        note("exact log-likelihood")
        yield from _nats(context, "log_likelihood", bounds.log_likelihood(model, context.chunks), "exact", {})
    if isinstance(model, HasElbo):
        note("evidence lower bound")
        yield from _nats(context, "elbo", bounds.elbo(model, context.chunks), "lower bound", {"draws": 1})
    if isinstance(model, HasLogWeights):
        k = context.protocol["k"]
        note(f"importance-weighted bound, k = {k}")
        values = bounds.importance_weighted_bound(model, context.chunks, k=k)
        yield from _nats(context, f"iw_bound_k{k}", values, "lower bound", {"k": k})
    if isinstance(model, IsClassConditional) and context.data.spec.num_classes:
        note("likelihood given the label")
        kind: NumberKind = "exact" if isinstance(model, HasLogProb) else "lower bound"
        name = "log_likelihood_given_y" if kind == "exact" else "elbo_given_y"
        yield from _nats(context, name, bounds.given_labels(model, context.chunks), kind, {"given": "label"})
    if isinstance(model, HasUnnormalisedLogProb):
        values = bounds.unnormalised_log_likelihood(model, context.chunks)
        yield from _with_log_z(context, "log_likelihood", values, "exact", model.annealing_path(), note)
    elif isinstance(model, HasUnnormalisedElbo):
        values = bounds.unnormalised_elbo(model, context.chunks)
        yield from _with_log_z(context, "elbo", values, "lower bound", model.annealing_path(), note)


def _nats(context: Context, name: str, values: Tensor, kind: NumberKind, details: dict[str, Any]) -> Iterator[Found]:
    nats = Metric.mean_of(values, unit="nats", kind=kind, direction="higher")
    yield name, nats, details
    if context.data.spec.kind in ("binary", "discrete"):
        yield f"{name}_bits_per_dim", bits_per_dim(nats, context.data.spec.dim), details


def _with_log_z(
    context: Context, name: str, values: Tensor, kind: NumberKind, path: AnnealingPath, note: Note
) -> Iterator[Found]:
    """The values minus log Z: by enumeration where it can be, and from both sides of the AIS bracket."""
    schedule = context.protocol["ais"]
    exact = path.exact_log_partition()
    if exact is not None:
        yield from _nats(context, name, values - float(exact), kind, {"log_z": "enumeration"})

    def progress(done: int, total: int) -> None:
        note(f"annealed importance sampling of log Z, step {done} of {total}")

    sides = bracket(path, **schedule, generator=context.generator("ais"), progress=progress)
    start = "exact" if sides.exact_start else f"burn-in {sides.burn_in}"
    details = {"ais": dict(schedule), "reverse_start": start}
    n = schedule["chains"]
    warning = f"wide bracket: gap {sides.gap:.2g} nats, {sides.ess:.1f} effective chains" if sides.wide else None
    for side, estimate in (("ais", sides.forward), ("reverse_ais", sides.reverse)):
        for each, metric, _ in _nats(context, f"{name}_{side}", values - estimate.log_z, "estimate", details):
            scale = 1.0 if metric.unit == "nats" else context.data.spec.dim * math.log(2.0)
            yield each, replace(metric, se=math.hypot(metric.se or 0.0, estimate.se / scale), note=warning), details
        yield f"log_z_{side}", Metric(estimate.log_z, "nats", "estimate", "none", estimate.se, n), details
        yield f"log_z_{side}_ess", Metric(estimate.ess, "chains", "estimate", "higher", None, n), details
    spread = math.hypot(sides.forward.se, sides.reverse.se)
    yield "log_z_gap", Metric(sides.gap, "nats", "estimate", "none", spread, n, note=warning), details
