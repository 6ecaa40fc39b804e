"""How long a cell will take on this machine: a few batches of each stage and a validation, of which nothing is kept."""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dgmbench.bench.cells import Cell
from dgmbench.bench.executors import make_executor
from dgmbench.bench.summary import groups
from dgmbench.bench.worker import Outcome, Task

FIRST, MORE = 2, 25
"""Updates of each stage in the first attempt, and in a second one where the first was too short to be measured."""
SHORT_SECONDS = 0.5
MOST_SECONDS = 60
"""After so long a trial is stopped, and its cell's time stays unknown."""


def try_out(planned: Sequence[Cell], settings: Mapping[str, Any], config_dirs: Sequence[str]) -> dict[str, Outcome]:
    """Try one cell of each kind in the slots of ``executor=local``; cells of other seeds share its outcome."""
    import psutil

    bounds = {"time": f"{MOST_SECONDS}s", "slots": settings["slots"]}
    if settings["memory"] is None:
        bounds["memory"] = f"{psutil.virtual_memory().available // 2}B"
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="dgm-trial-") as folder:
        executor = make_executor({**settings, **bounds}, Path(folder))
        waiting = list(groups(planned).values())
        running: dict[str, list[Cell]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < executor.slots:
                    cells = waiting.pop(0)
                    running[cells[0].id] = cells
                    given = {"folder": folder, "config_dirs": config_dirs, "threads": settings["threads"]}
                    executor.submit([Task(id=cells[0].id, overrides=cells[0].overrides, trial=True, **given)])
                for name, outcome in executor.wait(0.5):
                    if outcome.reason:  # the log that it may name goes with the folder
                        outcome = replace(outcome, reason=outcome.reason.partition(" (its output")[0])
                    found |= dict.fromkeys((cell.id for cell in running.pop(name)), outcome)
        finally:
            executor.close()
    return found


@dataclass(frozen=True)
class Measured:
    """What a trial has measured, in seconds."""

    setup: float
    batch: tuple[float, ...]
    """Of each stage."""
    validation: float

    def total(self, batches: Sequence[int], validations: int) -> float:
        """Seconds of a training with so many batches in each stage.

        >>> Measured(1.0, (0.5, 0.25), 2.0).total([10, 4], 3)
        13.0
        """
        steps = sum(number * each for number, each in zip(batches, self.batch, strict=True))
        return self.setup + steps + validations * self.validation


def per_batch(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> tuple[float, ...]:
    """Seconds a batch of each stage, the first of each left out where there are more.

    >>> rows = [("a", 1, 9.0), ("a", 2, 9.5), ("a", 4, 10.5), ("b", 5, 11.5)]
    >>> per_batch([dict(zip(("stage", "batches", "seconds"), row)) for row in rows], ["a", "b"])
    (0.5, 1.0)
    """
    steps: dict[str, list[tuple[int, float]]] = {name: [] for name in stages}
    for before, row in pairwise([{"stage": None, "batches": 0, "seconds": 0.0}, *rows]):
        steps[row["stage"]].append((row["batches"] - before["batches"], row["seconds"] - before["seconds"]))
    kept = [each[1:] or each for each in steps.values()]
    return tuple(sum(seconds for _, seconds in each) / max(1, sum(batches for batches, _ in each)) for each in kept)


def seconds_of_training(completed: dict[str, Any]) -> float:
    """The seconds that the training will take, its validations included and what comes after it left out."""
    from dgmbench.data import BatchStream
    from dgmbench.runs.build import build_model, find_device, load_data, optimizer_factory
    from dgmbench.training.plan import make_plan

    begin = time.perf_counter()
    if completed["data"].get("download"):
        completed["data"]["download"] = False  # a trial fetches nothing
    data, trainer = load_data(completed), completed["trainer"]
    device = find_device(completed["hardware"], 0)
    loaded = time.perf_counter() - begin

    def attempt(updates: int) -> tuple[Measured, Any]:
        model = build_model(completed, data.spec)
        policy, size = model.batch_policy(), trainer["batch_size"]
        stream = BatchStream(data, batch_size=size, seed=completed["seed"], device=device, policy=policy)
        whole = make_plan(trainer, images_per_epoch=stream.images_per_epoch, stages=model.stages())
        stages = [replace(stage, share=1 / len(whole.stages)) for stage in whole.stages]
        few = f"{updates * len(stages) * trainer['accumulate']}ba"
        rare = {"budget": few, "validate": "1000000ba", "samples": "1000000ba", "checkpoint": f"{10 * MOST_SECONDS}s"}
        plan = make_plan({**trainer, **rare}, images_per_epoch=stream.images_per_epoch, stages=stages)
        optimizers = optimizer_factory(completed["optimizer"], model)
        return _measure(completed, data, model, stream, plan, optimizers), whole

    measured, whole = attempt(FIRST)
    if sum(measured.batch) < SHORT_SECONDS:
        measured, whole = attempt(MORE)
    updates = [len(whole.stage_updates(i)) for i in range(len(whole.stages))]
    validations = math.ceil(whole.batches / whole.validate_every) + len(updates) - 1
    measured = replace(measured, setup=measured.setup + loaded)
    return measured.total([number * whole.accumulate for number in updates], validations)


def _measure(completed: Any, data: Any, model: Any, stream: Any, plan: Any, optimizers: Any) -> Measured:
    """Train by a short plan, with a clock on every part."""
    from dgmbench.data import BatchStream
    from dgmbench.evaluation.evaluator import validation_objective
    from dgmbench.runs.build import build_trainer
    from dgmbench.runs.progress import quiet_lightning
    from dgmbench.runs.run import INITIAL_EXAMPLES
    from dgmbench.training.module import Training
    from dgmbench.training.schedule import Schedule
    from dgmbench.training.update import Hooks

    rows: list[dict[str, Any]] = []
    validations: list[float] = []

    def validate(module: Any) -> None:
        begin = time.perf_counter()
        validation_objective(module.model, data, device=stream.device, limit=completed["trainer"]["validate_examples"])
        validations.append(time.perf_counter() - begin)

    counts = {"images_per_epoch": plan.images_per_epoch, "batch_size": plan.batch_size, "accumulate": plan.accumulate}
    size, seed = min(INITIAL_EXAMPLES, data.size("train")), completed["seed"]
    module = Training(
        model,
        plan=plan,
        stream=stream,
        initial=lambda: BatchStream(data, batch_size=size, seed=seed, device=stream.device).batch(0),
        seed=seed,
        optimizers=optimizers,
        schedule=Schedule(completed["optimizer"]["schedule"], **counts),
        hooks=Hooks(validate=validate, row=rows.append),
    )
    begin = time.perf_counter()
    with quiet_lightning():
        build_trainer(completed["hardware"], stream.device, devices=1).fit(module)
    wall = time.perf_counter() - begin
    batch = per_batch(rows, [stage.name for stage in plan.stages])
    validation = sum(validations) / len(validations) if validations else 0.0
    return Measured(max(0.0, wall - rows[-1]["seconds"] - sum(validations)), batch, validation)
