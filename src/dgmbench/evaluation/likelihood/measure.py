"""The part of the evaluation that asks how probable the data are: every kind of likelihood that a model has."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dgmbench.data.random import keyed_generator
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.ais import Bracket, bracket
from dgmbench.evaluation.likelihood.bounds import Draws
from dgmbench.evaluation.likelihood.conditions import Conditions, brackets, exact_log_partitions
from dgmbench.evaluation.likelihood.steps import STEP_CHAINS, STEPS_A_CHAIN, Steps, step_brackets
from dgmbench.evaluation.likelihood.tails import heavy_tail
from dgmbench.evaluation.likelihood.units import bits_per_dim, nats_per_token, nats_per_word, perplexity
from dgmbench.evaluation.metrics import Metric, NumberKind
from dgmbench.evaluation.parts import WITHOUT_EXAMPLES, WITHOUT_NOISE, Context, Found, Note
from dgmbench.models.contract import (
    AnnealingPath,
    HasConditions,
    HasElbo,
    HasLogProb,
    HasLogProbEstimate,
    HasLogWeights,
    HasStepConditions,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsClassConditional,
    Model,
)

Emit = Callable[[Context, str, Draws, NumberKind, dict[str, Any]], Iterator[Found]]

CONDITIONED_EXAMPLES = 1000  # training examples among which each condition looks for its own


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
        ks = _ks(context)
        note(f"importance-weighted bound, k = {', '.join(map(str, ks))}")
        for k, draws in bounds.importance_weighted_bounds(model, context.chunks, ks).items():
            yield from _weighted(context, f"iw_bound_k{k}", draws, k, max(ks))
    if isinstance(model, HasLogProbEstimate):
        yield from _estimate(model, context, note)
    if isinstance(model, IsClassConditional) and isinstance(model, HasLogProb | HasElbo):
        note("likelihood given the label")
        kind: NumberKind = "exact" if isinstance(model, HasLogProb) else "lower bound"
        name = "log_likelihood_given_y" if kind == "exact" else "elbo_given_y"
        details = {"given": "label"} | context.unlabelled() | (WITHOUT_NOISE if kind == "exact" else {})
        if (labelled := context.labelled()) is not None:
            yield from _nats(context, name, bounds.given_labels(model, labelled), kind, details)
    if context.data.spec.given is not None:
        yield from _use_of_conditions(model, context, note)
    if isinstance(model, HasConditions):
        yield from _by_condition(model, context, note)
    elif isinstance(model, HasStepConditions):
        yield from _by_step(model, context, note)
    elif isinstance(model, HasUnnormalisedLogProb):
        values = Draws(bounds.unnormalised_log_likelihood(model, context.chunks), None)
        yield from _with_log_z(context, "log_likelihood", values, "exact", model.annealing_path(), note)
    elif isinstance(model, HasUnnormalisedElbo):
        values = bounds.unnormalised_elbo(model, context.chunks)
        yield from _with_log_z(context, "elbo", values, "lower bound", model.annealing_path(), note)


def _use_of_conditions(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """The likelihood of examples under another one's condition, and how much more probable they are under their own.

    A model that does not look at its conditions gains nothing.
    """
    own, others = context.chunks, context.chunks.permuted()
    note("likelihood under permuted conditions")
    details: dict[str, Any] = {"conditions": "permuted"}
    kind: NumberKind = "lower bound"
    if isinstance(model, HasLogProb):
        name, kind, details = "log_likelihood", "exact", details | WITHOUT_NOISE
        pair = [bounds.log_likelihood(model, chunks) for chunks in (own, others)]
    elif isinstance(model, HasElbo):
        name, pair = "elbo", [bounds.elbo(model, chunks).values for chunks in (own, others)]
    elif isinstance(model, HasLogWeights):
        k = max(_ks(context))
        name, details = f"iw_bound_k{k}", details | {"k": k}
        pair = [bounds.importance_weighted_bounds(model, chunks, [k])[k].values for chunks in (own, others)]
    else:
        return
    permuted = Metric.mean_of(pair[1], unit="nats", kind=kind, direction="none")
    yield context.named(f"{name}_permuted"), permuted, details
    gain = Metric.mean_of(
        pair[0] - pair[1], unit="nats", kind="exact" if kind == "exact" else "estimate", direction="none"
    )
    yield context.named(f"{name}_gain"), gain, details


def _ks(context: Context) -> list[int]:
    """The numbers of importance samples that the protocol asks for."""
    k = context.protocol["k"]
    return sorted({k} if isinstance(k, int) else set(k))


def _weighted(context: Context, name: str, draws: Draws, k: int, most: int) -> Iterator[Found]:
    """A bound by k importance weights, and what tells whether they can be trusted: of the tail by the most drawn."""
    warning = heavy_tail(draws.tail_index, most)
    for each, metric, details in _nats(context, name, draws, "lower bound", {"k": k}):
        yield each, metric.noting(warning), details
    if k > 1 and draws.effective is not None:
        effective = Metric.mean_of(draws.effective, unit="draws", kind="estimate", direction="higher", note=warning)
        yield f"{context.named(name)}_ess", effective, {"k": k}
    if draws.tail_index is not None:
        index = Metric.mean_of(draws.tail_index, unit="1", kind="estimate", direction="lower", note=warning)
        yield f"{context.named(name)}_tail_index", index, {"k": k, "draws": most}


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
    context: Context,
    name: str,
    found: Tensor | Draws,
    kind: NumberKind,
    details: dict[str, Any],
    steps: Tensor | None = None,
) -> Iterator[Found]:
    """The mean of per-example nats, and on data with levels the same in bits per dimension, on text the perplexity,
    on sequences of different lengths, or of ``steps`` (n,), nats per step.
    """
    values, variance = (found.values, found.variance) if isinstance(found, Draws) else (found, None)
    nats = Metric.mean_of(values, unit="nats", kind=kind, direction="higher", draw_variance=variance)
    spec, name = context.data.spec, context.named(name)
    yield name, nats, details
    if spec.lengths or steps is not None:  # the array's size says nothing about a sequence
        counts = context.chunks.tokens() if steps is None else steps
        per_step = nats_per_token(values, counts, kind, variance).scaled(-1.0, "nats/step")
        yield f"{name}_per_step", per_step, details
    elif spec.kind in ("binary", "discrete"):
        yield f"{name}_bits_per_dim", bits_per_dim(nats, spec.dim), details
    if spec.kind == "tokens":
        yield f"{name}_perplexity", perplexity(nats_per_token(values, context.chunks.tokens(), kind, variance)), details
    elif spec.kind == "counts":
        per_word = nats_per_word(values, *context.chunks.documents(), kind, variance)
        yield f"{name}_perplexity", perplexity(per_word), details | {"perplexity": "mean over documents"}


def _with_log_z(
    context: Context, name: str, values: Draws, kind: NumberKind, path: AnnealingPath, note: Note
) -> Iterator[Found]:
    """The values minus log Z: by enumeration where it can be, and from both sides of the AIS bracket."""
    schedule = context.protocol["ais"]
    exact = path.exact_log_partition()
    if exact is not None:
        yield from _exact(context, name, values.minus(float(exact)), kind)
    data = _examples(context, max(schedule["chains"] // 2, 1))
    generator = context.generator("ais")
    sides = bracket(path, data, **schedule, generator=generator, progress=_progress(note))
    one = Conditions(torch.zeros(1), torch.zeros(len(values.values), dtype=torch.int64))
    yield from _both_sides(context, name, values, [sides], one, _start(sides, 0 if data is None else len(data)))


def _by_condition(model: HasConditions, context: Context, note: Note) -> Iterator[Found]:
    """The same where log Z depends on what each example is given, such as its length."""
    schedule = context.protocol["ais"]
    conditions = Conditions.of(bounds.conditions(model, context.chunks))
    values = Draws(bounds.unnormalised_log_likelihood(model, context.chunks), None)
    exact = exact_log_partitions(model, conditions, context.device)
    if exact is not None:
        yield from _exact(context, "log_likelihood", values.minus(exact[conditions.of_example]), "exact")
    data = _examples(context, CONDITIONED_EXAMPLES)
    examples = [torch.empty(0)] * len(conditions.values)
    if data is not None:
        examples = conditions.examples(data, model.condition_of(data).double().cpu())
    found = brackets(
        model,
        conditions,
        examples,
        exact,
        schedule=schedule,
        generator=context.generator("ais"),
        progress=_progress(note),
    )
    sides = found[0]
    start = "exact" if sides.exact_start else {"examples": "of the same condition", "of": CONDITIONED_EXAMPLES}
    yield from _both_sides(context, "log_likelihood", values, found, conditions, start, {"log_z": "by condition"})


def _by_step(model: HasStepConditions, context: Context, note: Note) -> Iterator[Found]:
    """The same where every step of a sequence has a log Z, that of its history: of all of them, or of some."""
    schedule, name = context.protocol["ais"], "log_likelihood"
    chunks = context.chunks
    extra: dict[str, Any] = {"log_z": "by step"}
    if isinstance(model, IsClassConditional):
        labelled, name = context.labelled(), "log_likelihood_given_y"
        if labelled is None:
            return
        chunks, extra = labelled, extra | {"given": "label"} | context.unlabelled()
    note("log-likelihood of every step up to log Z")
    steps = Steps.of(model, chunks)
    every = Conditions.of(steps.conditions)
    exact = exact_log_partitions(model, every, context.device)
    if exact is not None:
        values = Draws(steps.summed(steps.values - exact[every.of_example]), None)
        yield from _exact(context, name, values, "exact", extra, steps.counts)
    some = steps.some(STEPS_A_CHAIN * schedule["chains"], keyed_generator("steps", context.seed))
    schedule = {**schedule, "chains": STEP_CHAINS}
    extra = extra | {"steps": "all" if some is steps else {"random": len(some.values), "of": len(steps.values)}}
    conditions, found = step_brackets(
        model, some, schedule=schedule, generator=context.generator("ais"), progress=_progress(note)
    )
    start = "steps of the same condition"

    def per_step(
        context: Context, name: str, found: Draws, kind: NumberKind, details: dict[str, Any]
    ) -> Iterator[Found]:
        metric = Metric.mean_of(found.values, unit="nats/step", kind=kind, direction="higher")
        yield context.named(f"{name}_per_step"), metric, details

    values = Draws(some.values, None)
    sides = _both_sides(context, name, values, found, conditions, start, extra, emit=per_step, chains=STEP_CHAINS)
    length = float(steps.counts.double().mean())
    for each, metric, details in sides:
        if metric.unit == "nats/step":
            yield each.removesuffix("_per_step"), metric.scaled(length, "nats"), details
        yield each, metric, details


def _exact(
    context: Context,
    name: str,
    values: Draws,
    kind: NumberKind,
    extra: dict[str, Any] | None = None,
    steps: Tensor | None = None,
) -> Iterator[Found]:
    """What enumeration of log Z gives."""
    details = {"log_z": "enumeration"} | (WITHOUT_NOISE if values.variance is None else {})
    yield from _nats(context, name, values, kind, (extra or {}) | details, steps)


def _progress(note: Note) -> Callable[[int, int], None]:
    return lambda done, total: note(f"annealed importance sampling of log Z, step {done} of {total}")


def _examples(context: Context, most: int) -> Tensor | None:
    """Training examples, where there are any."""
    found = list(context.few(most, "train"))
    return torch.cat(found) if found else None


def _both_sides(
    context: Context,
    name: str,
    values: Draws,
    found: Sequence[Bracket],
    conditions: Conditions,
    start: str | dict[str, Any],
    extra: dict[str, Any] | None = None,
    *,
    emit: Emit | None = None,
    chains: int | None = None,
) -> Iterator[Found]:
    """The values minus each example's log Z from both sides; of log Z itself the mean over the examples."""
    schedule, shares = context.protocol["ais"], conditions.shares.tolist()
    schedule = schedule if chains is None else {**schedule, "chains": chains}
    sides = found[0]
    forward = {"ais": {key: value for key, value in schedule.items() if key != "burn_in"}} | (extra or {})
    reverse = forward | {"reverse_start": start}
    if not sides.exact_start:
        reverse["ais"] = dict(schedule) | {"burn_in": sides.burn_in}
    troubles = [one.trouble for one in found if one.wide]
    wide = f"wide bracket: {troubles[0]}" if troubles else None
    if troubles and len(found) > 1:
        wide = f"wide bracket for {len(troubles)} of {len(found)} conditions: {troubles[0]}"
    upper = "; ".join(filter(None, (wide, _reservation(found)))) or None
    free = {} if extra else WITHOUT_EXAMPLES

    def mean(each: Sequence[float]) -> float:
        return math.fsum(share * one for share, one in zip(shares, each, strict=True))

    def spread(each: Sequence[float]) -> float:
        return math.hypot(*(share * one for share, one in zip(shares, each, strict=True)))

    for side, details, warning in (("ais", forward, wide), ("reverse_ais", reverse, upper)):
        estimates = [one.forward if side == "ais" else one.reverse for one in found]
        n, se = min(one.chains for one in estimates), spread([one.se for one in estimates])
        log_z = torch.tensor([one.log_z for one in estimates], dtype=torch.float64)
        normalised = values.minus(log_z[conditions.of_example])
        for each, metric, _ in (emit or _nats)(context, f"{name}_{side}", normalised, "estimate", details):
            if metric.unit == "perplexity":  # the derivative of exp(-mean((log p - log Z) / words)) in each log Z
                words, _ = context.chunks.documents()
                each_word = torch.where(words > 0, 1 / words, 0.0)
                parts = torch.bincount(conditions.of_example, each_word, minlength=len(shares)) / (words > 0).sum()
                draws = metric.value * math.hypot(
                    *(part * one.se for part, one in zip(parts.tolist(), estimates, strict=True))
                )
            else:
                draws = se / (context.data.spec.dim * math.log(2.0) if metric.unit == "bits/dim" else 1.0)
            both = replace(
                metric, se=math.hypot(metric.se or 0.0, draws), se_draws=math.hypot(metric.se_draws or 0.0, draws)
            )
            yield each, both.noting(warning), details
        average = mean([one.log_z for one in estimates])
        least = min(one.ess for one in estimates)
        yield (
            f"log_z_{side}",
            Metric(average, "nats", "estimate", "none", se, n, note=warning, se_draws=se),
            details | free,
        )
        yield f"log_z_{side}_ess", Metric(least, "chains", "estimate", "higher", None, n, note=warning), details | free
    gap = spread([math.hypot(one.forward.se, one.reverse.se) for one in found])
    apart = mean([one.gap for one in found])
    n = min(one.reverse.chains for one in found)
    yield "log_z_gap", Metric(apart, "nats", "estimate", "none", gap, n, note=upper, se_draws=gap), reverse | free


def _start(sides: Bracket, examples: int) -> str | dict[str, int]:
    """Where the reverse runs started, for the protocol: how many from how many examples, how many from the others."""
    if sides.exact_start:
        return "exact"
    seen = sides.from_data
    return {"from_data": seen, "examples": min(examples, seen), "from_forward_states": sides.forward.chains - seen}


def _reservation(found: Sequence[Bracket]) -> str | None:
    """What the upper side rests on, in words; None if its starts are exact samples."""
    if found[0].exact_start:
        return None
    blind = sum(not one.from_data for one in found)
    starts = "the forward runs" if blind == len(found) else "training data and forward runs"
    rest = f" (for {blind} of {len(found)} conditions forward runs alone)" if 0 < blind < len(found) else ""
    return f"reverse runs bound log Z from above only as far as their starts, {starts}{rest}, cover the model's modes"
