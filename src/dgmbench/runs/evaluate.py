"""Measuring runs: adding metrics to a finished one, from its checkpoints."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmbench.config import run_name
from dgmbench.data import DataSet
from dgmbench.data.random import keyed_generator
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.evaluator import Evaluator, Measured
from dgmbench.evaluation.features.build import require_nets
from dgmbench.evaluation.tasks.held_out import objectives
from dgmbench.evaluation.tasks.translation import has_domains
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanSample, Model
from dgmbench.models.tasks import CanEnhance, CanTranslate, HasObjective
from dgmbench.runs.build import build_model, find_device, load_data
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.progress import spinner
from dgmbench.runs.record import remember
from dgmbench.runs.weights import load_own, weights_of
from dgmbench.versions import versions


def evaluate_run(
    run: Path, protocol: Mapping[str, Any], *, hardware: Mapping[str, Any], data_root: Path | None = None
) -> dict[str, Any]:
    """Add or refresh the metrics of a finished run without training it again; returns its ``result.json``.

    What was measured under another protocol is kept, with that protocol's id in its name.
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
        measured = measure_run(folder, completed, data, protocol, device, data_root, result)
        remember(result, protocol, measured)
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
    data_root: Path | None = None,
    result: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Metrics and protocols of a run's checkpoints, in the form of ``result.json``, and what versions measured them.

    A name alone stands for the weights that were best on validation and the test split; ``@final`` and ``@train`` or
    ``@valid`` mark the others. Features of data are kept in ``data_root``, by default the run's own.
    A finished run's ``result`` says which weights its checkpoints must hold.
    """
    run, first = run_name(completed, data.content_hash), protocol["checkpoint"][0]
    checkpoint = weights_of(folder, first, run, result)
    model = build_model(completed, data.spec).to(device)
    require_measurable(model, data, protocol, features_folder(completed, data_root))
    metrics: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    weights: dict[str, Tensor] | None = None  # of the rule before, and what was found with them on each split
    known: dict[str, Measured] = {}
    with spinner(enabled=completed["trainer"]["progress"]) as note:
        for rule in protocol["checkpoint"]:
            checkpoint = checkpoint if rule == first else weights_of(folder, rule, run, result)
            load_own(model, folder, rule, checkpoint)
            if weights is None or not _equal(weights, model.state_dict()):
                known = {}
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            for split in protocol["splits"]:
                marks = ([] if rule == "best" else [rule]) + ([] if split == "test" else [split])
                evaluator = Evaluator(
                    data,
                    protocol,
                    split=split,
                    rule=rule,
                    averaged=completed["trainer"]["ema"] > 0,
                    device=device,
                    folder=features_folder(completed, data_root),
                )

                def say(text: str, where: str = f"{rule} weights, {split} split") -> None:
                    note(f"evaluating {where}: {text}")

                # where the last weights are the best ones, all numbers would only come out once more
                again = evaluator.relabelled(known[split]) if split in known else evaluator.measure(model, note=say)
                known[split] = again
                for name, (metric, details) in again.items():
                    metrics["@".join([name, *marks])] = metric.as_dict()
                    protocols[metric.protocol_id] = details
    data.verify()
    return {"metrics": metrics, "protocols": protocols, "versions": versions(type(model))}


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def features_folder(completed: Mapping[str, Any], data_root: Path | None = None) -> Path:
    """Where features of data and trained feature nets are kept: in the data folder, by default the run's own."""
    return (data_root or Path(completed["paths"]["data"]).expanduser()) / "features"


def require_measurable(model: Model, data: DataSet, protocol: Mapping[str, Any], folder: Path) -> None:
    """Refuse a protocol whose feature nets cannot be had, and objectives and domains that make no sense, before hours
    of training rather than after them.
    """
    if isinstance(model, HasObjective):
        objectives(model)
    if isinstance(model, CanTranslate):
        has_domains(model, data)
    if isinstance(model, CanSample | CanEnhance) and data.spec.kind != "tokens" and not data.spec.lengths:
        require_nets(protocol["quality"]["features"] or [], data, folder)


def count_unlabelled(data: DataSet) -> dict[str, list[int]]:
    """For each split that has some: the examples (or steps) without a label, and all of them."""
    found = {}
    for split in ("train", "valid", "test"):
        y, length = data.splits[split].y, data.splits[split].length
        if y is not None and (unknown := data.unlabelled(split)):
            found[split] = [unknown, int(y.size if y.ndim < 2 or length is None else length.sum())]
    return found


@torch.no_grad()
def sampling_seconds_per_image(model: Model, data: DataSet, *, device: torch.device, n: int = 100) -> float | None:
    """Time to draw one of ``n`` samples at once, the first draw left out; None for a model without samples."""
    if not isinstance(model, CanSample):
        return None
    generator = keyed_generator("timing", 0, device=device)
    own = under(model, Chunks(data, "test", seed=0, device=device).beside(0, n))
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 6 and sum(seconds) < 0.5):  # a fast one needs more than one look
        begin = time.perf_counter()
        own.sample(n, generator=generator).cpu()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:]) / n
