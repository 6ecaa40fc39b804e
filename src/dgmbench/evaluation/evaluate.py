"""Measuring a model: every likelihood kind it has, reconstruction, samples; and adding that to a finished run."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmbench.data import DataSet, evaluation_batches
from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.ais import annealed_importance_sampling, bracket
from dgmbench.evaluation.metrics import Metric, NumberKind, bits_per_dim, protocol_id
from dgmbench.evaluation.sample_distance import pixel_energy_distance
from dgmbench.models.contract import (
    AnnealingPath,
    CanReconstruct,
    CanSample,
    HasElbo,
    HasLogProb,
    HasLogWeights,
    HasUnnormalisedElbo,
    HasUnnormalisedLogProb,
    Model,
)
from dgmbench.nn.scaling import Scaling
from dgmbench.training.build import build_model, find_device, load_data, load_weights
from dgmbench.training.files import read_checkpoint
from dgmbench.training.folder import RunFolder
from dgmbench.training.progress import spinner

# Noise is keyed by fixed chunks of this many examples (see evaluation.likelihood.bounds).
CHUNK = 100
# The energy distance compares this many samples with as many examples: its cost grows with the square.
DISTANCE_SAMPLES = 1000
# Validation during training uses a short annealing schedule; the numbers that are reported use the protocol's.
VALIDATION: dict[str, Any] = {"seed": 0, "k": 1, "ais": {"chains": 50, "temperatures": 100}, "max_examples": None}

Measured = tuple[Metric, dict[str, Any]]


class Evaluator:
    """Measures one model on one split under one protocol. Every number leaves with what it depends on.

    ``protocol`` has the keys of ``configs/protocol``; ``rule`` says which checkpoint the weights come from.
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
        self.data, self.protocol, self.split, self.device = data, protocol, split, device
        self.common = {
            "split": split,
            "data_hash": data.content_hash,
            "binarise": data.binarise,
            "max_examples": protocol["max_examples"],
            "checkpoint": rule,
            "averaged_weights": averaged,
            "seed": protocol["seed"],
        }

    def chunks(self) -> Iterator[Batch]:
        """The split in chunks of a hundred examples; only some, drawn at random but always the same, if so wanted."""
        seed, n = self.protocol["seed"], self.data.size(self.split)
        batches = evaluation_batches(self.data, self.split, batch_size=CHUNK, device=self.device, seed=seed)
        limit = self.protocol["max_examples"]
        if limit is None or limit >= n:
            yield from batches
            return
        # the first examples would not do: some official test sets are sorted by class
        order = torch.randperm(n, generator=keyed_generator("subset", self.split, seed))
        chosen = torch.zeros(n, dtype=torch.bool, device=self.device)
        chosen[order[:limit]] = True
        x = torch.cat([batch.x[chosen[batch.index]] for batch in batches])
        for part in x.split(CHUNK):
            yield Batch(part)

    @torch.no_grad()
    def measure(self, model: Model, *, note: Callable[[str], None] = lambda text: None) -> dict[str, Measured]:
        """All metrics that the model's capabilities allow, as {name: (metric, protocol)}."""
        found: dict[str, Measured] = {}
        for part in (self._likelihood, self._reconstruction, self.sample_quality):
            for name, metric, details in part(model, note):
                protocol = {**self.common, **details}
                found[name] = (replace(metric, protocol_id=protocol_id(protocol)), protocol)
        return found

    def _likelihood(self, model: Model, note: Callable[[str], None]) -> Iterator[tuple[str, Metric, dict[str, Any]]]:
        seed, k = self.protocol["seed"], self.protocol["k"]
        if isinstance(model, HasLogProb):
            note("exact log-likelihood")
            yield from self._nats("log_likelihood", bounds.log_likelihood(model, self.chunks()), "exact", {})
        if isinstance(model, HasElbo):
            note("evidence lower bound")
            yield from self._nats("elbo", bounds.elbo(model, self.chunks(), seed=seed), "lower bound", {"draws": 1})
        if isinstance(model, HasLogWeights):
            note(f"importance-weighted bound, k = {k}")
            values = bounds.importance_weighted_bound(model, self.chunks(), k=k, seed=seed)
            yield from self._nats(f"iw_bound_k{k}", values, "lower bound", {"k": k})
        if isinstance(model, HasUnnormalisedLogProb):
            note("annealed importance sampling of log Z")
            values = bounds.unnormalised_log_likelihood(model, self.chunks())
            yield from self._with_log_z("log_likelihood", values, model.annealing_path(), bound=False)
        elif isinstance(model, HasUnnormalisedElbo):
            note("annealed importance sampling of log Z")
            values = bounds.unnormalised_elbo(model, self.chunks(), seed=seed)
            yield from self._with_log_z("elbo", values, model.annealing_path(), bound=True)

    def _nats(
        self, name: str, values: Tensor, kind: NumberKind, details: dict[str, Any]
    ) -> Iterator[tuple[str, Metric, dict[str, Any]]]:
        nats = Metric.mean_of(values, unit="nats", kind=kind, direction="higher")
        yield name, nats, details
        if self.data.spec.kind in ("binary", "discrete"):
            yield f"{name}_bits_per_dim", bits_per_dim(nats, self.data.spec.dim), details

    def _with_log_z(
        self, name: str, values: Tensor, path: AnnealingPath, *, bound: bool
    ) -> Iterator[tuple[str, Metric, dict[str, Any]]]:
        """The values minus log Z: by enumeration where it can be, and from both sides of the AIS bracket."""
        schedule = self.protocol["ais"]
        exact = path.exact_log_partition()
        if exact is not None:
            kind: NumberKind = "lower bound" if bound else "exact"
            yield from self._nats(name, values - float(exact), kind, {"log_z": "enumeration"})
        generator = keyed_generator("ais", self.protocol["seed"], device=self.device)
        sides = bracket(path, **schedule, generator=generator)
        details = {"ais": dict(schedule), "reverse_start": "exact" if sides.exact_start else f"burn-in {sides.burn_in}"}
        for side, estimate in (("ais", sides.forward), ("reverse_ais", sides.reverse)):
            nats = Metric.mean_of(values - estimate.log_z, unit="nats", kind="estimate", direction="higher")
            spread = math.hypot(nats.se or 0.0, estimate.se)
            yield f"{name}_{side}", replace(nats, se=spread), details
            log_z = Metric(estimate.log_z, "nats", "estimate", "none", estimate.se, estimate.chains)
            yield f"log_z_{side}", log_z, details
            ess = Metric(estimate.ess, "chains", "estimate", "higher", None, estimate.chains)
            yield f"log_z_{side}_ess", ess, details
        gap = Metric(
            sides.gap, "nats", "estimate", "lower", math.hypot(sides.forward.se, sides.reverse.se), schedule["chains"]
        )
        yield "log_z_gap", gap, details

    def _reconstruction(
        self, model: Model, note: Callable[[str], None]
    ) -> Iterator[tuple[str, Metric, dict[str, Any]]]:
        if not isinstance(model, CanReconstruct):
            return
        note("reconstruction")
        scale = Scaling(self.data.spec, low=0.0, high=1.0)
        errors = []
        for index, batch in enumerate(self.chunks()):
            generator = keyed_generator("reconstruct", self.protocol["seed"], index, device=self.device)
            again = model.reconstruct(batch.x, generator=generator)
            errors.append((scale(again) - scale(batch.x)).flatten(1).square().mean(1).cpu())
        yield (
            "reconstruction_mse",
            Metric.mean_of(torch.cat(errors), unit="scaled pixels^2", kind="estimate", direction="lower"),
            {},
        )

    def sample_quality(
        self, model: Model, note: Callable[[str], None] = lambda text: None
    ) -> Iterator[tuple[str, Metric, dict[str, Any]]]:
        """Distances of samples to the split, as (name, metric, details)."""
        if not isinstance(model, CanSample):
            return
        note("samples")
        data = torch.cat([batch.x for batch in self.chunks()])[:DISTANCE_SAMPLES]
        if len(data) < 2:
            return
        generator = keyed_generator("samples", self.protocol["seed"], device=self.device)
        samples = model.sample(len(data), generator=generator)
        yield "energy_distance", pixel_energy_distance(samples, data, self.data.spec), {"features": "scaled pixels"}


@torch.no_grad()
def validation_objective(model: Model, data: DataSet, *, device: torch.device) -> tuple[str, Metric]:
    """The one number by which the best checkpoint is chosen and a sweep optimises, on the validation split.

    The strongest statement that the model can make about held-out data: exact log-likelihood, else the evidence lower
    bound, else either of them with log Z by AIS, else the energy distance of samples to data. The noise is the same at
    every call, so that values of one training compare.
    """
    chunks = Evaluator(data, VALIDATION, split="valid", rule="current", averaged=False, device=device)
    if isinstance(model, HasLogProb):
        return "log_likelihood", _mean_nats(bounds.log_likelihood(model, chunks.chunks()), "exact")
    if isinstance(model, HasElbo):
        return "elbo", _mean_nats(bounds.elbo(model, chunks.chunks(), seed=0), "lower bound")
    if isinstance(model, HasUnnormalisedLogProb | HasUnnormalisedElbo):
        if isinstance(model, HasUnnormalisedLogProb):
            name, values = "log_likelihood_ais", bounds.unnormalised_log_likelihood(model, chunks.chunks())
        else:
            name, values = "elbo_ais", bounds.unnormalised_elbo(model, chunks.chunks(), seed=0)
        generator = keyed_generator("ais", 0, device=device)
        estimate = annealed_importance_sampling(model.annealing_path(), **VALIDATION["ais"], generator=generator)
        return name, _mean_nats(values - estimate.log_z, "estimate")
    for name, metric, _ in chunks.sample_quality(model):
        return name, metric
    raise UserError(
        f"{type(model).__name__} has no likelihood, no bound and no samples, so there is nothing to validate it by; "
        "give it one of the methods of dgmbench.models.contract."
    )


def _mean_nats(values: Tensor, kind: NumberKind) -> Metric:
    return Metric.mean_of(values, unit="nats", kind=kind, direction="higher")


def evaluate_run(
    run: Path, protocol: Mapping[str, Any], *, hardware: Mapping[str, Any], data_root: Path | None = None
) -> dict[str, Any]:
    """Add or refresh the metrics of a finished run without training it again; returns its ``result.json``.

    ``data_root`` replaces the data folder that the run was trained with.
    """
    folder = RunFolder.existing(run)
    folder.acquire()
    try:
        result = folder.read_result()
        if result is None:
            raise UserError(f"The run {run} is not finished; give its 'dgm train' command again to resume it first.")
        completed = folder.read_config()
        data = load_data(completed, data_root)
        if data.content_hash != result["data_hash"]:
            raise UserError(
                f"The data of {run} have changed since it was trained (content {data.content_hash[:8]}, then "
                f"{result['data_hash'][:8]}); its numbers would not be comparable. Train it again on the new data."
            )
        device = find_device(hardware)
        measured = measure_run(folder, completed, data, protocol, device)
        result["metrics"].update(measured["metrics"])
        used = {metric["protocol_id"] for metric in result["metrics"].values()}
        protocols = result["protocols"] | measured["protocols"]
        result["protocols"] = {key: value for key, value in protocols.items() if key in used}
        folder.write_result(result)
        return result
    finally:
        folder.release()


def measure_run(
    folder: RunFolder,
    completed: Mapping[str, Any],
    data: DataSet,
    protocol: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """Metrics and protocols of a run's checkpoints, in the form of ``result.json``.

    A name alone stands for the weights that were best on validation and the test split; ``@final`` and ``@train`` or
    ``@valid`` mark the others.
    """
    model = build_model(completed, data.spec).to(device)
    metrics: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    with spinner(enabled=completed["trainer"]["progress"]) as note:
        for rule in protocol["checkpoint"]:
            load_weights(model, read_checkpoint(folder.checkpoint(rule)))
            for split in protocol["splits"]:
                marks = ([] if rule == "best" else [rule]) + ([] if split == "test" else [split])
                evaluator = Evaluator(
                    data,
                    protocol,
                    split=split,
                    rule=rule,
                    averaged=completed["trainer"]["ema"] > 0,
                    device=device,
                )

                def say(text: str, where: str = f"{rule} weights, {split} split") -> None:
                    note(f"evaluating {where}: {text}")

                for name, (metric, details) in evaluator.measure(model, note=say).items():
                    metrics["@".join([name, *marks])] = metric.as_dict()
                    protocols[metric.protocol_id] = details
    return {"metrics": metrics, "protocols": protocols}


@torch.no_grad()
def sampling_seconds_per_image(model: Model, *, device: torch.device, n: int = 100) -> float | None:
    """Time to draw one of ``n`` samples, after a first draw that warms up; None for a model without samples."""
    if not isinstance(model, CanSample):
        return None
    generator = keyed_generator("timing", 0, device=device)
    for _ in range(2):
        begin = time.perf_counter()
        model.sample(n, generator=generator).cpu()
        seconds = time.perf_counter() - begin
    return seconds / n
