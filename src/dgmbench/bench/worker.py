"""One cell in one process: the same as ``dgm train``, with an outcome in place of an exit code."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dgmbench.errors import UserError
from dgmbench.system import is_locked

OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker needs to know about a cell."""

    id: str
    overrides: Sequence[str]
    folder: str
    """The suite's folder, which holds the runs."""
    config_dirs: Sequence[str] = ()
    threads: int | None = None
    trial: bool = False
    """Only find out how long it will take."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended: done, failed, oom, timeout, skipped, interrupted (which can be resumed) or tried."""

    status: str
    run: str | None = None
    reason: str | None = None
    seconds: float | None = field(default=None, compare=False)


def run_cell(task: Task) -> Outcome:
    """Train, evaluate and sample the cell, resume it, or find it done; never raises an exception."""
    begin = time.monotonic()
    run: list[str] = []
    try:
        _get_ready(task)
        found = _run(task, run)
    except (SystemExit, KeyboardInterrupt):
        found = Outcome(status="interrupted")
    except BaseException as error:
        found = _failure(error)
        if run and is_locked(Path(task.folder) / run[0] / ".lock"):  # by another process
            found = replace(found, status="interrupted")
    seconds = round(time.monotonic() - begin, 3) if found.seconds is None else found.seconds
    return replace(found, run=run[0] if run else None, seconds=seconds)


def _get_ready(task: Task) -> None:
    import torch

    from dgmbench.config import search_path
    from dgmbench.config.files import import_from

    import_from(search_path(task.config_dirs)[:-1])
    if task.threads is not None:
        torch.set_num_threads(task.threads)


def _run(task: Task, run: list[str]) -> Outcome:
    from dgmbench.config import complete, compose, run_name
    from dgmbench.data.pairs import check_pair, spec_from_card
    from dgmbench.runs.build import count_devices, load_data, settle
    from dgmbench.runs.evaluate import evaluate_run
    from dgmbench.runs.record import is_measured
    from dgmbench.runs.run import train

    words = [*task.overrides, f"paths.outputs={task.folder}", "trainer.progress=false"]
    cfg = compose("train", words, config_dirs=task.config_dirs)
    completed = complete(cfg)
    announced = spec_from_card(completed["data"])
    if announced is not None:
        try:
            names = completed["names"]
            check_pair(completed["model"].get("card") or {}, announced, names["data"], names["model"])
        except UserError as error:
            return Outcome(status="skipped", reason=str(error))
    if task.trial:
        from dgmbench.bench.trial import seconds_of_training

        return Outcome(status="tried", seconds=seconds_of_training(completed))
    completed["hardware"]["devices"] = count_devices(completed["hardware"])
    data = load_data(completed)
    settle(completed, data.spec)
    run.append(run_name(completed, data.content_hash))
    outcome = train(cfg)
    run[0] = outcome.run.name
    if not is_measured(outcome.result, completed["protocol"]):  # it is no part of the run's name
        evaluate_run(outcome.run, completed["protocol"], hardware=completed["hardware"])
    return Outcome(status="done")


def _failure(error: BaseException) -> Outcome:
    from dgmbench.errors import explain

    sentence = explain(error)[1] if isinstance(error, Exception) else type(error).__name__
    first = error.__cause__ or error  # a UserError says what a class could not be built from
    if isinstance(first, MemoryError) or (isinstance(first, RuntimeError) and OUT_OF_MEMORY.search(str(first))):
        return Outcome(status="oom", reason=sentence)
    return Outcome(status="failed", reason=sentence)


def redirect_output(log: Path) -> None:
    """Send everything that this process prints, also from C, to a file of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
