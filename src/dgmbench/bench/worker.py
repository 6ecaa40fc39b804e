"""One cell in one process: the same as ``dgm train``, with an outcome in place of an exit code."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended: done, failed, oom, timeout, skipped or interrupted (which can be resumed)."""

    status: str
    run: str | None = None
    reason: str | None = None
    seconds: float | None = field(default=None, compare=False)


def run_cell(task: Task) -> Outcome:
    """Train, evaluate and sample the cell, resume it, or find it done; never raises an exception."""
    begin = time.monotonic()
    run: list[str] = []
    try:
        status, reason = _run(task, run)
    except (SystemExit, KeyboardInterrupt):
        status, reason = "interrupted", None
    except BaseException as error:
        status, reason = _failure(error)
        if run and is_locked(Path(task.folder) / run[0] / ".lock"):  # by another process
            status = "interrupted"
    seconds = round(time.monotonic() - begin, 3)
    return Outcome(status=status, run=run[0] if run else None, reason=reason, seconds=seconds)


def _run(task: Task, run: list[str]) -> tuple[str, str | None]:
    import torch

    from dgmbench.config import complete, compose, run_name, search_path
    from dgmbench.config.files import import_from
    from dgmbench.data.pairs import check_pair, spec_from_card
    from dgmbench.runs.build import count_devices, load_data, settle
    from dgmbench.runs.evaluate import evaluate_run
    from dgmbench.runs.record import is_measured
    from dgmbench.runs.run import train

    import_from(search_path(task.config_dirs)[:-1])
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    words = [*task.overrides, f"paths.outputs={task.folder}", "trainer.progress=false"]
    cfg = compose("train", words, config_dirs=task.config_dirs)
    completed = complete(cfg)
    announced = spec_from_card(completed["data"])
    if announced is not None:
        try:
            names = completed["names"]
            check_pair(completed["model"].get("card") or {}, announced, names["data"], names["model"])
        except UserError as error:
            return "skipped", str(error)
    completed["hardware"]["devices"] = count_devices(completed["hardware"])
    data = load_data(completed)
    settle(completed, data.spec)
    run.append(run_name(completed, data.content_hash))
    outcome = train(cfg)
    run[0] = outcome.run.name
    if not is_measured(outcome.result, completed["protocol"]):  # it is no part of the run's name
        evaluate_run(outcome.run, completed["protocol"], hardware=completed["hardware"])
    return "done", None


def _failure(error: BaseException) -> tuple[str, str]:
    from dgmbench.errors import explain

    sentence = explain(error)[1] if isinstance(error, Exception) else type(error).__name__
    first = error.__cause__ or error  # a UserError says what a class could not be built from
    if isinstance(first, MemoryError) or (isinstance(first, RuntimeError) and OUT_OF_MEMORY.search(str(first))):
        return "oom", sentence
    return "failed", sentence


def redirect_output(log: Path) -> None:
    """Send everything that this process prints, also from C, to a file of its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
