"""Measuring a model by what it can do: every likelihood kind it has, reconstruction, samples."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet
from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import CHUNK, Chunks
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.ais import annealed_importance_sampling, bracket
from dgmbench.evaluation.metrics import Metric, NumberKind, bits_per_dim, nats_per_token, perplexity, protocol_id
from dgmbench.evaluation.sample_distance import pixel_energy_distance
from dgmbench.models.contract import (
    AnnealingPath,
    CanReconstruct,
    CanSample,
    HasElbo,
    HasLogProb,
    HasLogWeights,
    HasReconstructionLogProb,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    IsClassConditional,
    Model,
)
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.sequences import counted
from dgmbench.training.ranks import Ranks

# The energy distance compares this many samples with as many examples: its cost grows with the square.
DISTANCE_SAMPLES = 1000
# Validation during training uses a short annealing schedule; the numbers that are reported use the protocol's.
VALIDATION: dict[str, Any] = {"chains": 50, "temperatures": 100}

# Name, number, and what the number depends on besides what all numbers of an evaluation share.
Found = tuple[str, Metric, dict[str, Any]]
Note = Callable[[str], None]


class Evaluator:
    """Measures models on one split under one protocol. Every number leaves with what it depends on.

    ``protocol`` has the keys of ``configs/protocol``; ``rule`` says which checkpoint the weights come from,
    ``averaged`` whether they are a moving average.
    """

    def __init__(
        self,
        data: DataSet,
        protocol: Mapping[str, Any],
        *,
        split: SplitName,
        rule: str,
        averaged: bool,
        device: torch.device,
    ) -> None:
        self.data, self.protocol, self.device = data, protocol, device
        seed, limit = protocol["seed"], protocol["max_examples"]
        self.chunks = Chunks(data, split, seed=seed, limit=limit, device=device)
        few = DISTANCE_SAMPLES if limit is None else min(limit, DISTANCE_SAMPLES)
        self.few = Chunks(data, split, seed=seed, limit=few, device=device)
        self.common = {
            "split": split,
            "data_hash": data.content_hash,
            "binarise": data.binarise,
            "max_examples": limit,
            "noise_chunk": CHUNK,
            "checkpoint": rule,
            "averaged_weights": averaged,
            "seed": seed,
        }

    @torch.no_grad()
    def measure(self, model: Model, *, note: Note = lambda text: None) -> dict[str, tuple[Metric, dict[str, Any]]]:
        """All metrics that the model's capabilities allow, as {name: (metric, protocol)}."""
        found = {}
        for part in (self._likelihood, self._reconstruction, self._samples):
            for name, metric, details in part(model, note):
                protocol = {**self.common, **details}
                found[name] = (replace(metric, protocol_id=protocol_id(protocol)), protocol)
        return found

    def _likelihood(self, model: Model, note: Note) -> Iterator[Found]:
        if isinstance(model, HasLogProb):
            note("exact log-likelihood")
            yield from self._nats("log_likelihood", bounds.log_likelihood(model, self.chunks), "exact", {})
        if isinstance(model, HasElbo):
            note("evidence lower bound")
            yield from self._nats("elbo", bounds.elbo(model, self.chunks), "lower bound", {"draws": 1})
        if isinstance(model, HasLogWeights):
            k = self.protocol["k"]
            note(f"importance-weighted bound, k = {k}")
            values = bounds.importance_weighted_bound(model, self.chunks, k=k)
            yield from self._nats(f"iw_bound_k{k}", values, "lower bound", {"k": k})
        if isinstance(model, IsClassConditional) and self.data.spec.num_classes:
            note("likelihood given the label")
            kind: NumberKind = "exact" if isinstance(model, HasLogProb) else "lower bound"
            name = "log_likelihood_given_y" if kind == "exact" else "elbo_given_y"
            yield from self._nats(name, bounds.given_labels(model, self.chunks), kind, {"given": "label"})
        if isinstance(model, HasUnnormalisedLogProb):
            values = bounds.unnormalised_log_likelihood(model, self.chunks)
            yield from self._with_log_z("log_likelihood", values, "exact", model.annealing_path(), note)
        elif isinstance(model, HasUnnormalisedElbo):
            values = bounds.unnormalised_elbo(model, self.chunks)
            yield from self._with_log_z("elbo", values, "lower bound", model.annealing_path(), note)

    def _nats(self, name: str, values: Tensor, kind: NumberKind, details: dict[str, Any]) -> Iterator[Found]:
        nats = Metric.mean_of(values, unit="nats", kind=kind, direction="higher")
        yield name, nats, details
        if self.data.spec.kind in ("binary", "discrete"):
            yield f"{name}_bits_per_dim", bits_per_dim(nats, self.data.spec.dim), details
        if self.data.spec.kind == "tokens":
            yield f"{name}_perplexity", perplexity(nats_per_token(values, self.chunks.tokens(), kind)), details

    def _with_log_z(
        self, name: str, values: Tensor, kind: NumberKind, path: AnnealingPath, note: Note
    ) -> Iterator[Found]:
        """The values minus log Z: by enumeration where it can be, and from both sides of the AIS bracket."""
        schedule = self.protocol["ais"]
        exact = path.exact_log_partition()
        if exact is not None:
            yield from self._nats(name, values - float(exact), kind, {"log_z": "enumeration"})

        def progress(done: int, total: int) -> None:
            note(f"annealed importance sampling of log Z, step {done} of {total}")

        generator = keyed_generator("ais", self.protocol["seed"], device=self.device)
        sides = bracket(path, **schedule, generator=generator, progress=progress)
        start = "exact" if sides.exact_start else f"burn-in {sides.burn_in}"
        details = {"ais": dict(schedule), "reverse_start": start}
        n = schedule["chains"]
        warning = f"wide bracket: gap {sides.gap:.2g} nats, {sides.ess:.1f} effective chains" if sides.wide else None
        for side, estimate in (("ais", sides.forward), ("reverse_ais", sides.reverse)):
            for each, metric, _ in self._nats(f"{name}_{side}", values - estimate.log_z, "estimate", details):
                scale = 1.0 if metric.unit == "nats" else self.data.spec.dim * math.log(2.0)
                yield each, replace(metric, se=math.hypot(metric.se or 0.0, estimate.se / scale), note=warning), details
            yield f"log_z_{side}", Metric(estimate.log_z, "nats", "estimate", "none", estimate.se, n), details
            yield f"log_z_{side}_ess", Metric(estimate.ess, "chains", "estimate", "higher", None, n), details
        spread = math.hypot(sides.forward.se, sides.reverse.se)
        yield "log_z_gap", Metric(sides.gap, "nats", "estimate", "none", spread, n, note=warning), details

    def _reconstruction(self, model: Model, note: Note) -> Iterator[Found]:
        if isinstance(model, HasReconstructionLogProb):
            note("log-probability of reconstructions")
            values = bounds.reconstruction_log_prob(model, self.chunks)
            nats = Metric.mean_of(values, unit="nats", kind="estimate", direction="higher")
            yield "reconstruction_log_prob", nats, {"given": "code"}
            if self.data.spec.kind == "tokens":
                per_token = nats_per_token(values, self.chunks.tokens(), "estimate")
                yield "reconstruction_nll_per_token", per_token, {"given": "code"}
        if not isinstance(model, CanReconstruct):
            return
        note("reconstruction")
        if self.data.spec.kind == "tokens":
            yield "reconstruction_token_error", self._token_error(model), {}
            return
        scale = Scaling(self.data.spec, low=0.0, high=1.0)

        def error(x: Tensor, generator: Generator) -> Tensor:
            again = model.reconstruct(x, generator=generator)
            return (scale(again) - scale(x)).flatten(1).square().mean(1)

        errors = self.chunks.each("reconstruct", error)
        mean = Metric.mean_of(errors, unit=f"{scale.unit}^2", kind="estimate", direction="lower")
        yield "reconstruction_mse", mean, {}

    def _token_error(self, model: CanReconstruct) -> Metric:
        """The share of an example's tokens, its end included, that the reconstruction gets wrong."""

        def error(x: Tensor, generator: Generator) -> Tensor:
            wrong = model.reconstruct(x, generator=generator) != x
            own = counted(x.flatten(1), self.data.spec.end)
            return (wrong.flatten(1) & own).sum(1) / own.sum(1)

        errors = self.chunks.each("reconstruct", error)
        return Metric.mean_of(errors, unit="share of tokens", kind="estimate", direction="lower")

    def _samples(self, model: Model, note: Note) -> Iterator[Found]:
        if isinstance(model, CanSample):
            note("samples")
            distance = sample_distance(model, self.few)
            yield "energy_distance", distance, {"features": distance.unit, "samples": distance.n}


def sample_distance(model: CanSample, chunks: Chunks) -> Metric:
    """Energy distance of as many samples as there are examples in ``chunks`` to these examples."""
    data = torch.cat(list(chunks))
    if len(data) < 2:
        raise UserError("The energy distance needs at least two examples; raise protocol.max_examples.")
    generator = keyed_generator("samples", chunks.seed, device=chunks.device)
    return pixel_energy_distance(model.sample(len(data), generator=generator), data, chunks.data.spec)


@torch.no_grad()
def validation_objective(
    model: Model, data: DataSet, *, device: torch.device, ranks: Ranks | None = None
) -> tuple[str, Metric]:
    """The one number by which the best checkpoint is chosen and a sweep optimises, on the validation split.

    The strongest statement that the model can make about held-out data: exact log-likelihood, else the evidence lower
    bound, else either of them with log Z by enumeration or a short AIS, else an autoencoder's log-probability of the
    data given their codes, else the energy distance of samples to data.
    The noise is the same at every call, so that values of one training compare. Several processes share the examples;
    what they compute twice (samples, log Z) may differ in the last digits.
    """
    chunks = Chunks(data, "valid", seed=0, device=device, ranks=ranks)
    if isinstance(model, HasLogProb):
        return "log_likelihood", _mean_nats(bounds.log_likelihood(model, chunks), "exact")
    if isinstance(model, HasElbo):
        return "elbo", _mean_nats(bounds.elbo(model, chunks), "lower bound")
    if isinstance(model, HasUnnormalisedLogProb | HasUnnormalisedElbo):
        kind: NumberKind
        if isinstance(model, HasUnnormalisedLogProb):
            name, kind, values = "log_likelihood", "exact", bounds.unnormalised_log_likelihood(model, chunks)
        else:
            name, kind, values = "elbo", "lower bound", bounds.unnormalised_elbo(model, chunks)
        path = model.annealing_path()
        exact = path.exact_log_partition()
        if exact is not None:
            return name, _mean_nats(values - float(exact), kind)
        generator = keyed_generator("ais", 0, device=device)
        log_z = annealed_importance_sampling(path, **VALIDATION, generator=generator).log_z
        return f"{name}_ais", _mean_nats(values - log_z, "estimate")
    if isinstance(model, HasReconstructionLogProb):
        return "reconstruction_log_prob", _mean_nats(bounds.reconstruction_log_prob(model, chunks), "estimate")
    if isinstance(model, CanSample):
        return "energy_distance", sample_distance(
            model, Chunks(data, "valid", seed=0, limit=DISTANCE_SAMPLES, device=device)
        )
    raise UserError(
        f"{type(model).__name__} has no likelihood, no bound and no samples, so there is nothing to validate it by; "
        "give it one of the methods of dgmbench.models.contract."
    )


def _mean_nats(values: Tensor, kind: NumberKind) -> Metric:
    return Metric.mean_of(values, unit="nats", kind=kind, direction="higher")
