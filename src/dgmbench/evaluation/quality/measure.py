"""The parts of the evaluation that look at what a model makes: reconstructions, samples, labelled samples and codes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.features.build import build_net, default_features
from dgmbench.evaluation.features.net import FeatureNet
from dgmbench.evaluation.features.reference import data_features
from dgmbench.evaluation.likelihood.bounds import reconstruction_log_prob
from dgmbench.evaluation.likelihood.units import nats_per_token
from dgmbench.evaluation.metrics import Direction, Metric
from dgmbench.evaluation.parts import SAMPLE_CHUNK, WITHOUT_NOISE, Context, Found, Note
from dgmbench.evaluation.quality import frechet, kid, mmd, prdc, sliced_wasserstein
from dgmbench.evaluation.quality.feature_set import shuffled
from dgmbench.evaluation.quality.inception_score import inception_score
from dgmbench.evaluation.quality.memorisation import MEDIAN_EXAMPLES, PART, memorisation
from dgmbench.evaluation.quality.oracle import against_oracle
from dgmbench.evaluation.quality.patches import ONE_PICTURE_SAMPLES, of_one_picture, single_picture
from dgmbench.evaluation.quality.probe import few_label_errors, linear_probe_errors, nearest_neighbour_errors
from dgmbench.evaluation.quality.similarity import psnr, ssim
from dgmbench.evaluation.sample_distance import no_distance, pixel_energy_distance
from dgmbench.models.conditions import under
from dgmbench.models.contract import (
    CanEncode,
    CanGenerate,
    CanReconstruct,
    CanSample,
    HasDecoder,
    HasReconstructionLogProb,
    IsClassConditional,
    Model,
)
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.sequences import counted, within

# The energy distance compares this many samples with as many examples: its cost grows with the square.
DISTANCE_SAMPLES = 1000
# At most this many examples of a split are what samples are compared with.
REFERENCE = 50_000
# The distance for unlimited examples is a line through shares of 1/k of both sets: of all these k, or of two where a
# single distance takes seconds.
PARTS, FEWER_PARTS, MANY_FEATURES = (1, 2, 4), (1, 2), 512
# Training features of more numbers than this (1 GiB) are not kept, but made and searched for copies part by part.
MOST_KEPT = 2**28
# Codes of this many training examples train the probes.
PROBE_EXAMPLES = 10_000


def reconstruction(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """How like their originals reconstructions are: of values scaled to [0, 1], or of tokens."""
    spec = context.data.spec
    if isinstance(model, HasReconstructionLogProb):
        note("log-probability of reconstructions")
        nats = reconstruction_log_prob(model, context.chunks)
        mean = Metric.mean_of(nats, unit="nats", kind="estimate", direction="higher")
        details = {"given": "code"} | WITHOUT_NOISE
        yield "reconstruction_log_prob", mean, details
        if spec.kind == "tokens":
            per_token = nats_per_token(nats, context.chunks.tokens(), "estimate")
            yield "reconstruction_nll_per_token", per_token, details
    if not isinstance(model, CanReconstruct):
        return
    note("reconstruction")
    if spec.kind == "tokens":
        yield "reconstruction_token_error", _token_error(model, context), {}
        return
    scale = Scaling(spec, low=0.0, high=1.0)
    bounded = scale.bounded

    def compare(batch: Batch, generator: Generator) -> Tensor:
        again = under(model, batch).reconstruct(batch.x, generator=generator)
        a, b = scale(again), scale(batch.x)
        if batch.length is not None:  # the mean over the steps that count
            squares = (a - b).square().flatten(2 if a.dim() > 2 else 1).reshape(len(a), a.shape[1], -1).mean(2)
            own = within(batch.length, a.shape[1])
            return squares.masked_fill(~own, 0.0).sum(1, keepdim=True).double() / batch.length[:, None]
        columns = [(a - b).flatten(1).square().mean(1).double()]
        if bounded:
            columns.append(psnr(a, b))
        if bounded and spec.is_image:
            columns.append(ssim(a, b))
        return torch.stack(columns, 1)

    values = context.chunks.each_labelled("reconstruct", compare)
    unit = f"{scale.unit}^2"
    yield "reconstruction_mse", Metric.mean_of(values[:, 0], unit=unit, kind="estimate", direction="lower"), {}
    for column, (name, unit) in enumerate([("psnr", "dB"), ("ssim", "1")][: values.shape[1] - 1], start=1):
        mean = Metric.mean_of(values[:, column], unit=unit, kind="estimate", direction="higher")
        yield f"reconstruction_{name}", mean, {}


def _token_error(model: CanReconstruct, context: Context) -> Metric:
    """The share of an example's tokens, its end included, that the reconstruction gets wrong."""

    def error(batch: Batch, generator: Generator) -> Tensor:
        x = batch.x
        wrong = under(model, batch).reconstruct(x, generator=generator) != x
        length, end = batch.length, context.data.spec.end
        own = counted(x.flatten(1), end) if length is None else within(length, x.shape[1])
        return (wrong.flatten(1) & own).sum(1) / own.sum(1)

    errors = context.chunks.each_labelled("reconstruct", error)
    return Metric.mean_of(errors, unit="share of tokens", kind="estimate", direction="lower")


def samples(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """Distances of samples to data: of pixels, and on the features of every net that the protocol names."""
    if not isinstance(model, CanSample):
        return
    settings = context.protocol.get("quality") or {"samples": DISTANCE_SAMPLES, "features": []}
    one_picture = single_picture(context.data, context.split)
    n = min(settings["samples"], ONE_PICTURE_SAMPLES) if one_picture else _count(settings["samples"], context)
    try:
        drawn = context.draw(model, n, note)
    except UserError as error:  # NaN, which is no value of the data's space
        details = {"samples": n, "sample_chunk": SAMPLE_CHUNK}
        name = "patch_energy_distance" if one_picture else "energy_distance"
        yield name, no_distance(context.data.spec, n, error), details
        return
    if one_picture:
        yield from of_one_picture(drawn, context)
        return
    yield _energy_distance(drawn, context)
    yield from against_oracle(drawn, context)
    if context.data.spec.kind == "tokens" or context.data.spec.lengths:  # no feature net reads text, or sees an end
        return
    for net in _nets(settings["features"], context, note):
        note(f"distances of samples on {net.name}")
        details = {**net.record(), "samples": n, "sample_chunk": SAMPLE_CHUNK, "most_reference": REFERENCE}
        try:
            features = torch.cat([net(x.to(context.device)).float() for x in drawn.split(SAMPLE_CHUNK)])
            found = list(_on_features(net, features, context, details, note))
        except UserError as error:
            nothing = Metric(math.nan, "features^2", "estimate", "lower", None, n, note=str(error))
            found = [(net.label("fd"), nothing, details)]
        yield from found
        if isinstance(model, IsClassConditional):
            yield from _labelled_samples(model, net, n, context, note)


def _count(samples: int, context: Context) -> int:
    """How many samples are drawn: as many as were asked for, but no more than there are examples of data in all."""
    data = sum(len(split) for split in context.data.splits.values())
    return min(samples, data, REFERENCE, context.protocol["max_examples"] or REFERENCE)


def _energy_distance(drawn: Tensor, context: Context) -> Found:
    data = torch.cat(list(context.few(min(DISTANCE_SAMPLES, len(drawn))))).cpu()
    if len(data) < 2:
        raise UserError("The energy distance needs at least two examples; raise protocol.max_examples.")
    distance = pixel_energy_distance(drawn[: len(data)], data, context.data.spec)
    details = {"features": distance.unit, "samples": distance.n, "sample_chunk": SAMPLE_CHUNK}
    return "energy_distance", distance, details


def _nets(chosen: list[Any] | None, context: Context, note: Note) -> Iterator[FeatureNet]:
    for entry in default_features(context.data) if chosen is None else chosen:
        yield build_net(entry, context.data, folder=context.folder, device=context.device, note=note)


def _on_features(net: FeatureNet, x: Tensor, context: Context, details: dict[str, Any], note: Note) -> Iterator[Found]:
    """Every measure of samples with features x (n, d)."""

    def found(measure: str, value: float, direction: Direction, **other: Any) -> Found:
        unit, se, variant = other.pop("unit", "1"), other.pop("se", None), other.pop("variant", "")
        n, remark = other.pop("n", len(x)), other.pop("note", None)
        metric = Metric(value, unit, "estimate", direction, se, n, note=remark)
        return net.label(measure, variant), metric, {**details, **other}

    data = data_features(net, context.few(REFERENCE), context.folder)
    on = {"reference": {"split": context.split, "n": len(data)}}
    yield from _frechet(found, data, x, context, on)

    widths = {"scales": list(mmd.SCALES), "width_examples": mmd.WIDTH_EXAMPLES}
    for name, distance, kernel in (
        ("kid", kid.kid, {"kernel": "cubic"}),
        ("mmd", mmd.mmd, {"kernel": "gaussian", **widths}),
    ):
        depends = {**on, **kernel}
        try:
            estimate = distance(data, x, generator=context.generator(name))
        except (
            UserError
        ) as error:  # data that mostly coincide have no kernel width, but all else; likewise huge samples
            yield found(name, math.nan, "lower", note=str(error), **depends)
            continue
        blocks = {"block": estimate.block, "blocks": estimate.blocks}
        yield found(
            name, estimate.value, "lower", se=estimate.se, n=estimate.block * estimate.blocks, **depends, **blocks
        )
    sliced = sliced_wasserstein.sliced_wasserstein(data, x, generator=context.generator("sliced"))
    directions = {"directions": sliced_wasserstein.DIRECTIONS}
    yield found("swd", sliced.value, "lower", se=sliced.se, unit="features", **on, **directions)

    fewer = min(len(data), len(x))
    equal = {"neighbours": prdc.NEIGHBOURS, "equal_sets": fewer}
    generator = context.generator("prdc")
    measures: dict[str, prdc.Jackknifed | None] = dict.fromkeys(prdc.Neighbourhoods._fields)
    remark = None
    try:
        around = prdc.neighbourhoods(shuffled(data, generator, fewer), x[:fewer], generator=generator)
        measures.update(around._asdict())
    except UserError as error:  # too few examples have no neighbours, but distances
        remark = str(error)
    for name, measure in measures.items():
        direction: Direction = "none" if name == "two_sample" else "higher"
        value, se, n = measure or (math.nan, None, fewer)
        yield found(name, value, direction, se=se, n=n, note=remark, **on, **equal)

    logits = net.logits(x)
    if logits is not None:
        splits = max(1, min(10, len(x) // 100))
        score = inception_score(logits, splits=splits)
        yield found("score", score.value, "higher", se=score.se, splits=splits)
    if context.split != "train":
        train = data_features(net, context.few(REFERENCE, "train"), context.folder)
        on_train = {"reference": {"split": "train", "n": len(train)}}
        yield from _frechet(found, train, x, context, on_train, variant="train")
        note(f"copies of training data on {net.name}")
        # whatever else is measured on a part of the data: an original that is not looked at hides its copies
        held_out = data_features(net, _all(context, context.split), context.folder)
        copies = memorisation(_training_features(net, x.shape[1], context), held_out, x)
        both = {"reference": {"splits": ["train", context.split], "n": [copies.train, copies.held_out]}}
        yield found("memorisation", copies.excess, "lower", se=copies.se, **both)
        if copies.distance_ratio is not None:
            median = {"median_examples": MEDIAN_EXAMPLES}
            yield found("nn_distance_ratio", copies.distance_ratio, "none", **both, **median)


def _all(context: Context, split: SplitName) -> Chunks:
    """Every example of a split, but of the measured one no more than any measure takes."""
    most = None if split == "train" else REFERENCE
    return Chunks(context.data, split, seed=context.seed, limit=most, device=context.device)


def _training_features(net: FeatureNet, width: int, context: Context) -> Tensor | Iterator[Tensor]:
    """Features (n, width) of all training examples, in parts where they are too many to keep."""
    chunks = _all(context, "train")
    if context.data.size("train") * width <= MOST_KEPT:
        return data_features(net, chunks, context.folder)
    return _parts(net, chunks)


def _parts(net: FeatureNet, chunks: Chunks) -> Iterator[Tensor]:
    """Features of the examples in ``chunks``, in parts long enough for block-wise distances."""
    held: list[Tensor] = []
    for x in chunks:
        held.append(net(x).float())
        if sum(len(part) for part in held) >= PART:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


def _frechet(
    found: Any, data: Tensor, x: Tensor, context: Context, on: Mapping[str, Any], *, variant: str = ""
) -> Iterator[Found]:
    """The distance, what it would be by chance, and its extrapolation, to one of the reference sets."""
    estimate = frechet.frechet(data, x, generator=context.generator("fd_bias"))
    fewer = min(len(data), len(x))
    counts = f"{fewer} examples for {x.shape[1]} features"
    remark = f"{counts}: biased upwards" if fewer < frechet.ENOUGH * x.shape[1] else None
    small = f"{counts}: too small" if fewer < frechet.ENOUGH * x.shape[1] else None
    bias, free_of_bias = ("_".join(filter(None, (variant, name))) for name in ("bias", "inf"))
    yield found("fd", estimate.value, "lower", se=estimate.se, unit="features^2", variant=variant, note=remark, **on)
    yield found("fd", estimate.bias, "none", unit="features^2", variant=bias, note=small, **on)
    wanted = PARTS if x.shape[1] <= MANY_FEATURES else FEWER_PARTS
    parts = frechet.usable_parts(len(data), len(x), x.shape[1], wanted)
    if len(parts) > 1:
        free = frechet.extrapolated(data, x, parts=parts, whole=estimate, generator=context.generator("fd_inf"))
        about = {"unit": "features^2", "variant": free_of_bias, "parts": list(parts)}
        yield found("fd", free.value, "lower", se=free.se, **about, **on)


def _labelled_samples(model: CanSample, net: FeatureNet, n: int, context: Context, note: Note) -> Iterator[Found]:
    """Conditional consistency: how often a classifier of the data gives samples the label they were drawn for."""
    try:
        right = _right_labels(model, net, n, context, note)
    except UserError as error:
        accuracy = Metric(math.nan, "share", "estimate", "higher", None, n, note=str(error))
    else:
        if right is None:
            return
        accuracy = Metric.mean_of(right, unit="share", kind="estimate", direction="higher")
    details = {**net.record(), "samples": n, "sample_chunk": SAMPLE_CHUNK, "labels": "each as often"}
    yield net.label("label_accuracy"), accuracy, details


def _right_labels(model: CanSample, net: FeatureNet, n: int, context: Context, note: Note) -> Tensor | None:
    """1 for each of n samples (n,) that the net gives the label it was drawn for; None if it does not classify."""
    classes, right = context.data.spec.num_classes or 0, []
    for number, start in enumerate(range(0, n, SAMPLE_CHUNK)):
        note(f"labelled sample {start} of {n}")
        y = torch.arange(start, min(start + SAMPLE_CHUNK, n), device=context.device) % classes
        own = under(model, context.few(n).beside(start, len(y)))
        x = own.sample(len(y), y, generator=context.generator("labelled samples", number))
        logits = net.logits(net(x))
        if logits is None or logits.shape[1] != classes:
            return None
        right.append((logits.argmax(1) == y).double().cpu())
    return torch.cat(right)


def codes(model: Model, context: Context, note: Note) -> Iterator[Found]:
    """What codes know about the labels: the errors of linear probes, of all labels or of few, and of a neighbour."""
    seen, held_out = context.labelled(PROBE_EXAMPLES, "train"), context.labelled()
    if not isinstance(model, CanEncode) or seen is None or held_out is None or not context.data.spec.num_classes:
        return
    note("probes of codes")
    train, train_y = _codes(model, seen)
    test, test_y = _codes(model, held_out)
    skipped = context.unlabelled("train")
    details = {"probe_examples": len(train), **context.unlabelled(), **{f"probe_{k}": n for k, n in skipped.items()}}
    if len(train_y.unique()) < 2:
        return
    pairs = (train, train_y, test, test_y)
    yield "linear_probe_error", _share_wrong(lambda: linear_probe_errors(*pairs)), details
    yield "nearest_neighbour_error", _share_wrong(lambda: nearest_neighbour_errors(*pairs)), details
    settings = context.settings("semi_supervised")
    for labels in settings.get("labels", []):
        note(f"probes of codes with {labels} labels")
        draws = settings["draws"]
        generator = keyed_generator("few labels", context.seed, labels)
        probe = partial(few_label_errors, *pairs, labels=labels, draws=draws, generator=generator)
        yield f"semi_supervised_error_{labels}", _share_wrong(probe), {**details, "labels": labels, "draws": draws}


def _share_wrong(errors: Callable[[], Tensor]) -> Metric:
    """The mean of errors (m,) of examples, or (draws, m) of several probes, which add to its standard error."""
    try:
        values = errors()
    except UserError as error:
        return Metric(math.nan, "share", "estimate", "lower", note=str(error))
    draws = torch.atleast_2d(values)
    metric = Metric.mean_of(draws.mean(0), unit="share", kind="estimate", direction="lower")
    if len(draws) < 2 or metric.se is None:
        return metric
    se_draws = float(draws.mean(1).std()) / math.sqrt(len(draws))
    return replace(metric, se=math.hypot(metric.se, se_draws), se_draws=se_draws)


def _codes(model: CanEncode, chunks: Chunks) -> tuple[Tensor, Tensor]:
    pairs = [(under(model, batch).encode(batch.x).flatten(1).cpu(), batch.y) for batch in chunks.batches()]
    return torch.cat([code for code, _ in pairs]), torch.cat([y.cpu() for _, y in pairs if y is not None])


def sample_distance(model: CanSample, chunks: Chunks) -> Metric:
    """Energy distance of samples to the examples in ``chunks``: cheap, and needs no features.

    A thousand samples where each is one pass of noise through a network: more samples than examples cost little then,
    and halve the noise where there are few examples. Of all other models, whose samples may be whole chains, as many as
    there are examples.
    """
    data = torch.cat(list(chunks))
    if len(data) < 2:
        raise UserError("The energy distance needs at least two examples; raise protocol.max_examples.")
    generator = keyed_generator("samples", chunks.seed, device=chunks.device)
    n = DISTANCE_SAMPLES if isinstance(model, CanGenerate | HasDecoder) else len(data)
    try:
        drawn = under(model, chunks.beside(0, n)).sample(n, generator=generator)
    except UserError as error:
        return no_distance(chunks.data.spec, n, error)
    return pixel_energy_distance(drawn, data, chunks.data.spec)
