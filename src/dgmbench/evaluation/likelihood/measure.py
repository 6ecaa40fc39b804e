"""The part of the evaluation that asks how probable the data are: every kind of likelihood that a model has."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.ais import Bracket, bracket
from dgmbench.evaluation.likelihood.bounds import Draws
from dgmbench.evaluation.likelihood.tails import heavy_tail
from dgmbench.evaluation.likelihood.units import bits_per_dim, nats_per_token, perplexity
from dgmbench.evaluation.metrics import Metric, NumberKind
from dgmbench.evaluation.parts import WITHOUT_EXAMPLES, WITHOUT_NOISE, Context, Found, Note
from dgmbench.models.contract import (
    AnnealingPath,
    HasElbo,
    HasLogProb,
    HasLogProbEstimate,
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
        yield from _nats(
            context, "log_likelihood", bounds.log_likelihood(model, context.chunks), "exact", WITHOUT_NOISE
        )
    if isinstance(model, HasElbo):
        note("evidence lower bound")
        yield from _nats(context, "elbo", bounds.elbo(model, context.chunks), "lower bound", {})
    if isinstance(model, HasLogWeights):
        k = context.protocol["k"]
        ks = sorted({k} if isinstance(k, int) else set(k))
        note(f"importance-weighted bound, k = {', '.join(map(str, ks))}")
        for k, draws in bounds.importance_weighted_bounds(model, context.chunks, ks).items():
            yield from _weighted(context, f"iw_bound_k{k}", draws, k, max(ks))
    if isinstance(model, HasLogProbEstimate):
        yield from _estimate(model, context, note)
    if isinstance(model, IsClassConditional) and isinstance(model, HasLogProb | HasElbo):
        note("likelihood given the label")
        kind: NumberKind = "exact" if isinstance(model, HasLogProb) else "lower bound"
        name = "log_likelihood_given_y" if kind == "exact" else "elbo_given_y"
        details = {"given": "label"} | (WITHOUT_NOISE if kind == "exact" else {})
        yield from _nats(context, name, bounds.given_labels(model, context.chunks), kind, details)
    if isinstance(model, HasUnnormalisedLogProb):
        values = Draws(bounds.unnormalised_log_likelihood(model, context.chunks), None)
        yield from _with_log_z(context, "log_likelihood", values, "exact", model.annealing_path(), note)
    elif isinstance(model, HasUnnormalisedElbo):
        values = bounds.unnormalised_elbo(model, context.chunks)
        yield from _with_log_z(context, "elbo", values, "lower bound", model.annealing_path(), note)


def _weighted(context: Context, name: str, draws: Draws, k: int, most: int) -> Iterator[Found]:
    """A bound by k importance weights, and what tells whether they can be trusted: of the tail by the most drawn."""
    warning = heavy_tail(draws.tail_index, most)
    for each, metric, details in _nats(context, name, draws, "lower bound", {"k": k}):
        yield each, metric.noting(warning), details
    if k > 1 and draws.effective is not None:
        effective = Metric.mean_of(draws.effective, unit="draws", kind="estimate", direction="higher", note=warning)
        yield f"{name}_ess", effective, {"k": k}
    if draws.tail_index is not None:
        index = Metric.mean_of(draws.tail_index, unit="1", kind="estimate", direction="lower", note=warning)
        yield f"{name}_tail_index", index, {"k": k, "draws": most}


def _estimate(model: HasLogProbEstimate, context: Context, note: Note) -> Iterator[Found]:
    """An estimate that is no bound, with the most that it may be biased by."""
    note("estimate of the log-likelihood")
    details, bias = {**model.estimate_protocol()}, model.estimate_bias()
    values = bounds.log_likelihood_estimate(model, context.chunks)
    for name, metric, _ in _nats(context, f"{details['of']}_estimate", values, "estimate", details):
        most = bias if metric.unit == "nats" else bias / (context.data.spec.dim * math.log(2.0))
        warning = f"biased by at most {most:.2g} {metric.unit}" if bias else None
        yield name, metric.noting(warning), details


def _nats(
    context: Context, name: str, found: Tensor | Draws, kind: NumberKind, details: dict[str, Any]
) -> Iterator[Found]:
    """The mean of per-example nats, and on data with levels the same in bits per dimension, on text the perplexity."""
    values, variance = (found.values, found.variance) if isinstance(found, Draws) else (found, None)
    nats = Metric.mean_of(values, unit="nats", kind=kind, direction="higher", draw_variance=variance)
    yield name, nats, details
    if context.data.spec.kind in ("binary", "discrete"):
        yield f"{name}_bits_per_dim", bits_per_dim(nats, context.data.spec.dim), details
    if context.data.spec.kind == "tokens":
        yield f"{name}_perplexity", perplexity(nats_per_token(values, context.chunks.tokens(), kind, variance)), details


def _with_log_z(
    context: Context, name: str, values: Draws, kind: NumberKind, path: AnnealingPath, note: Note
) -> Iterator[Found]:
    """The values minus log Z: by enumeration where it can be, and from both sides of the AIS bracket."""
    schedule = context.protocol["ais"]
    exact = path.exact_log_partition()
    if exact is not None:
        details = {"log_z": "enumeration"} | (WITHOUT_NOISE if values.variance is None else {})
        yield from _nats(context, name, values.minus(float(exact)), kind, details)

    def progress(done: int, total: int) -> None:
        note(f"annealed importance sampling of log Z, step {done} of {total}")

    examples = list(context.few(max(schedule["chains"] // 2, 1), "train"))
    data = torch.cat(examples) if examples else None
    sides = bracket(path, data, **schedule, generator=context.generator("ais"), progress=progress)
    forward = {"ais": {key: value for key, value in schedule.items() if key != "burn_in"}}
    reverse = forward | {"reverse_start": _start(sides, 0 if data is None else len(data))}
    if not sides.exact_start:
        reverse["ais"] = dict(schedule) | {"burn_in": sides.burn_in}
    wide = f"wide bracket: {sides.trouble}" if sides.wide else None
    upper = "; ".join(filter(None, (wide, _reservation(sides)))) or None
    for side, estimate, details, warning in (
        ("ais", sides.forward, forward, wide),
        ("reverse_ais", sides.reverse, reverse, upper),
    ):
        n = estimate.chains
        for each, metric, _ in _nats(context, f"{name}_{side}", values.minus(estimate.log_z), "estimate", details):
            scale = 1.0 if metric.unit == "nats" else context.data.spec.dim * math.log(2.0)
            draws = estimate.se / scale
            both = replace(
                metric, se=math.hypot(metric.se or 0.0, draws), se_draws=math.hypot(metric.se_draws or 0.0, draws)
            )
            yield each, both.noting(warning), details
        log_z = Metric(estimate.log_z, "nats", "estimate", "none", estimate.se, n, note=warning, se_draws=estimate.se)
        ess = Metric(estimate.ess, "chains", "estimate", "higher", None, n, note=warning)
        yield f"log_z_{side}", log_z, details | WITHOUT_EXAMPLES
        yield f"log_z_{side}_ess", ess, details | WITHOUT_EXAMPLES
    spread = math.hypot(sides.forward.se, sides.reverse.se)
    gap = Metric(sides.gap, "nats", "estimate", "none", spread, sides.reverse.chains, note=upper, se_draws=spread)
    yield "log_z_gap", gap, reverse | WITHOUT_EXAMPLES


def _start(sides: Bracket, examples: int) -> str | dict[str, int]:
    """Where the reverse runs started, for the protocol: how many from how many examples, how many from the others."""
    if sides.exact_start:
        return "exact"
    seen = sides.from_data
    return {"from_data": seen, "examples": min(examples, seen), "from_forward_states": sides.forward.chains - seen}


def _reservation(sides: Bracket) -> str | None:
    """What the upper side rests on, in words; None if its starts are exact samples."""
    if sides.exact_start:
        return None
    starts = "training data and forward runs" if sides.from_data else "the forward runs"
    return f"reverse runs bound log Z from above only as far as their starts, {starts}, cover the model's modes"
