"""What a bench folder holds: its cells with their states, numbers and reasons, read through an index.

Read are ``cells.json`` where there is one, else every run folder below; each run's ``result.json``, ``config.yaml``,
``status.json`` and ``traceback.txt``. What the first two say is kept in ``report.index.json``, keyed by their sizes
and times of change, so that a second report reads only what has changed; without that file everything is read anew.
"""

import json
import math
import os
import shlex
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgmbench.bench.report.index import Index, read_config, read_json
from dgmbench.bench.report.settings import flatten, sets_apart
from dgmbench.config.bounded import read_bytes
from dgmbench.errors import UserError
from dgmbench.runs.record import unlabelled_words
from dgmbench.source import hash_of_target
from dgmbench.system import is_locked

STATUSES = {
    "done": "finished",
    "stale": "finished, but the source of the model has changed since: train it again",
    "running": "not finished: it is being worked on",
    "interrupted": "not finished: nobody works on it; the same command resumes it",
    "planned": "not started",
    "failed": "failed while running",
    "oom": "ran out of memory",
    "timeout": "ran out of time",
    "skipped": "the pair is not defined",
    "not built": "this model of the survey has no configuration yet",
    "damaged": "its result cannot be read",
}
HAS_NUMBERS = ("done", "stale")


@dataclass
class Cell:
    """One model on one data set with one seed: its state and, once it is done, its numbers."""

    id: str
    model: str
    family: str
    data: str
    seed: int | None
    status: str
    reason: str = ""
    experiment: str = ""
    run: str = ""
    """The run's folder, relative to the bench folder."""
    command: str = ""
    overrides: tuple[str, ...] = ()
    settings_key: str = ""
    """Equal for runs whose configurations differ in nothing but the seed and where they ran."""
    variant: str = ""
    """What sets these settings apart from others of the same model and data, if there are others."""
    paper: dict[str, Any] | None = None
    seconds: float | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    finished: float | None = None
    unlabelled: dict[str, list[int]] = field(default_factory=dict)
    """For splits with examples without a label: how many, and how many examples there are."""
    changed: bool = False
    """Whether the run's configuration is no longer the one that it was made by."""
    log_hash: str | None = None
    """sha256 of the run's metric rows, if its result says it."""
    origin: str = ""
    """The name of the run that the numbers come from, whatever its folder is called now."""

    @property
    def explanation(self) -> str:
        """Why the cell has no numbers, in words."""
        text = STATUSES.get(self.status, self.status)
        return f"{text}: {self.reason}" if self.reason else text


@dataclass
class Ledger:
    """All cells of a bench folder, the protocols of their numbers, and what was found wrong on the way."""

    folder: Path
    title: str
    survey: str
    cells: list[Cell]
    protocols: dict[str, dict[str, Any]]
    notes: list[str]


def read_ledger(folder: Path) -> Ledger:
    """Read a bench folder, or any folder with runs somewhere below it."""
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist: give the one that 'dgm bench' or 'dgm train' wrote into.")
    notes: list[str] = []
    suite = _read_suite(folder / "cells.json", notes)
    index = Index(folder)
    if suite is None:
        cells = [_bare_cell(folder, path, index) for path in _run_folders(folder)]
        title, survey = folder.resolve().name, ""
    else:
        held = is_locked(folder / ".lock")  # a runner keeps it until it ends, however it ends
        cells = [_suite_cell(folder, entry, index, held) for entry in suite["cells"]]
        title, survey = str(suite.get("title") or suite.get("suite") or folder.name), str(suite.get("survey") or "")
    if not cells:
        raise UserError(f"{folder} holds neither a cells.json with cells nor the folder of a run: nothing to report.")
    cells = _once(cells, notes)
    notes += [f"{cell.run or cell.id}: {cell.reason}" for cell in cells if cell.status == "damaged"]
    notes += [f"{cell.run}/config.yaml has been changed since the run was made; believe its numbers, not its settings."
              for cell in cells if cell.changed]  # fmt: skip
    notes += dict.fromkeys(text for cell in cells for text in unlabelled_words(cell.data, cell.unlabelled))
    protocols = index.protocols()
    index.save()
    _name_variants(folder, cells)
    return Ledger(folder, title, survey, cells, protocols, notes)


def _once(cells: list[Cell], notes: list[str]) -> list[Cell]:
    """The cells without copies of one run, which are no further seeds; a note says which were left out.

    Of several copies the one stays whose folder has the run's own name and lies highest.
    """
    copies: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if cell.origin:
            copies.setdefault((cell.origin, cell.experiment, *cell.overrides), []).append(cell)
    left_out: set[int] = set()
    for same in copies.values():
        kept = min(same, key=lambda cell: (Path(cell.run).name != cell.origin, len(Path(cell.run).parts)))
        left_out |= {id(cell) for cell in same if cell is not kept}
        notes += [
            f"{cell.run} is a copy of the run {kept.run}, which counts once." for cell in same if cell is not kept
        ]
    return [cell for cell in cells if id(cell) not in left_out]


def _read_suite(path: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        suite = json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError):
        suite = None
    if not (isinstance(suite, dict) and isinstance(suite.get("cells"), list)):
        notes.append(f"{path.name} is damaged and was left out; what is listed are the run folders.")
        return None
    good = [entry for entry in suite["cells"] if isinstance(entry, dict) and entry.get("model")]
    if len(good) < len(suite["cells"]):
        notes.append(f"{path.name} has {len(suite['cells']) - len(good)} damaged cells, which were left out.")
    return {**suite, "cells": good}


def _run_folders(folder: Path) -> Iterator[Path]:
    if (folder / "config.yaml").is_file() or (folder / "result.json").is_file():
        yield folder
        return
    with os.scandir(folder) as entries:
        below = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    for path in below:
        yield from _run_folders(Path(path))


def _bare_cell(folder: Path, path: Path, index: "Index") -> Cell:
    record = index.record(path)
    name = path.resolve().name
    found = record.get("result") or record["named"]
    cell = Cell(
        id=name if path == folder else str(path.relative_to(folder)),
        model=str(found.get("model") or "unknown"),
        family=str(found.get("family") or "unknown"),
        data=str(found.get("data") or "unknown"),
        seed=found.get("seed"),
        status="planned",
        run="." if path == folder else str(path.relative_to(folder)),
        command=f"dgm rerun {shlex.quote(str(path))}",
        settings_key=record["settings_key"],
    )
    return _with_run(cell, path, record)


def _suite_cell(folder: Path, entry: Mapping[str, Any], index: "Index", held: bool) -> Cell:
    paper = entry.get("paper")
    seed = entry.get("seed")
    cell = Cell(
        id=str(entry.get("id") or f"{entry['model']}-{entry.get('data')}-s{seed}"),
        model=str(entry["model"]),
        family=str(entry.get("family") or "unknown"),
        data=str(entry.get("data") or "unknown"),
        seed=seed if isinstance(seed, int) else None,
        status=str(entry.get("status") or "planned"),
        reason=str(entry.get("reason") or ""),
        experiment=str(entry.get("experiment") or ""),
        run=str(entry.get("run") or ""),
        command=str(entry.get("command") or ""),
        overrides=tuple(str(word) for word in entry.get("overrides") or () if not str(word).startswith("seed=")),
        paper=dict(paper) if isinstance(paper, dict) else None,
        seconds=_number(entry.get("seconds")),
    )
    path = folder / cell.run
    record: dict[str, Any] = index.record(path) if cell.run else {"stamp": [0, 0, 0, 0]}
    if any(record["stamp"]) or (cell.run and path.is_dir()):
        cell.settings_key = str(record["settings_key"])
        result = record.get("result") or {}
        wanted = {"model": cell.model, "data": cell.data, "seed": cell.seed}
        if other := [f"{key}={result[key]}" for key in wanted if key in result and result[key] != wanted[key]]:
            cell.status, cell.reason = "damaged", f"its run folder {cell.run} holds numbers of {' '.join(other)}"
            return cell
        return _with_run(cell, path, record, held)
    if cell.status == "running" and not held:
        cell.status = "interrupted"
    if cell.status in HAS_NUMBERS:
        cell.status, cell.reason = "damaged", f"its run folder {cell.run or '(not named)'} is missing"
    return cell


def _with_run(cell: Cell, path: Path, record: Mapping[str, Any], held: bool | None = None) -> Cell:
    """Complete a cell by what its run's folder says, which is the truth; ``held``: whether a runner has its suite."""
    result = record.get("result")
    if result is not None:
        cell.metrics, cell.cost, cell.versions = result["metrics"], result["cost"], result["versions"]
        cell.origin, cell.changed = str(result.get("run") or ""), bool(record.get("changed"))
        cell.log_hash = (result.get("files") or {}).get("metrics.jsonl")
        cell.finished, cell.unlabelled = result.get("finished"), result.get("unlabelled") or {}
        stale = cell.status == "stale" or _source_changed(record["target"], cell.versions.get("model_source"))
        cell.status, cell.reason = "stale" if stale else "done", ""
        if cell.seconds is None:
            cell.seconds = _number(cell.cost.get("train_seconds"))
    elif record.get("damaged"):
        cell.status, cell.reason = "damaged", record["damaged"]
    elif cell.status not in ("failed", "oom", "timeout", "skipped", "not built"):
        status = read_json(path / "status.json")
        state = str(status.get("status") or "planned")
        if state == "running" and not (held or _at_work(path, status, elsewhere=held is None)):
            state = "interrupted"
        cell.status = state if state in STATUSES and state not in HAS_NUMBERS else "interrupted"
        if cell.status == "failed":
            cell.reason = str(status.get("reason") or "")
    if cell.status == "failed" and not cell.reason:
        cell.reason = (read_traceback(path) or "").strip().rpartition("\n")[2]
    return cell


def read_traceback(path: Path, limit: int = 6000) -> str | None:
    """The end of a failed run's traceback, or None."""
    try:
        text = read_bytes(path / "traceback.txt").decode("utf-8", errors="replace")
    except OSError:
        return None
    return text if len(text) <= limit else "[...]\n" + text[-limit:]


def _at_work(path: Path, status: Mapping[str, Any], *, elsewhere: bool) -> bool:
    """Whether a process has the run's lock: the number of the one that wrote ``status.json`` may be another's by now.

    ``elsewhere``: believed of other machines, whose locks may not be seen from here.
    """
    return is_locked(path / ".lock") or (elsewhere and status.get("host") != socket.gethostname())


_SOURCES: dict[str, str | None] = {}


def _source_changed(target: str, then: str | None) -> bool:
    """Whether the source of one of our models differs from what a run was made by; nothing is imported."""
    if target not in _SOURCES:
        _SOURCES[target] = hash_of_target(target) if target.startswith("dgmbench.") else None
    now = _SOURCES[target]
    return now is not None and then is not None and now != then


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


def _name_variants(folder: Path, cells: list[Cell]) -> None:
    """Tell apart cells of one model, data set and experiment that differ in more than their seed."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.data, cell.experiment), []).append(cell)
    for group in groups.values():
        by_overrides: dict[tuple[str, ...], list[Cell]] = {}
        for cell in group:
            by_overrides.setdefault(cell.overrides, []).append(cell)
        common = set.intersection(*(set(overrides) for overrides in by_overrides))
        for overrides, members in by_overrides.items():
            label = " ".join(word for word in overrides if word not in common)
            keys = sorted({cell.settings_key for cell in members} - {""})
            details = _differences(folder, members) if len(keys) > 1 else {}
            for cell in members:
                detail = details.get(cell.settings_key or keys[0], "") if details else ""
                cell.variant = " ".join(part for part in (label, detail) if part)


def _differences(folder: Path, cells: list[Cell], limit: int = 100) -> dict[str, str]:
    """For each configuration among ``cells``, the settings in which it differs from the others."""
    examples: dict[str, Cell] = {}
    for cell in cells:
        if cell.settings_key:
            examples.setdefault(cell.settings_key, cell)
    if len(examples) > limit:
        return {key: f"settings {key}" for key in examples}
    flat = {key: flatten(read_config(folder / cell.run)) for key, cell in examples.items()}
    names = {name for settings in flat.values() for name in settings}
    differing = [
        name
        for name in sorted(names)
        if sets_apart(name) and len({repr(settings.get(name)) for settings in flat.values()}) > 1
    ]
    found = {}
    for key, settings in flat.items():
        text = " ".join(f"{name}={settings[name]}" for name in differing if name in settings)
        found[key] = text if 0 < len(text) <= 120 else f"settings {key}"
    return found
