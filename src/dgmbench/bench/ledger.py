"""The ledger of a suite: ``cells.json``, who may write it, and what of an earlier start still holds."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgmbench.bench.cells import FAILURES, Cell
from dgmbench.bench.suite import Folders, Suite
from dgmbench.config import search_path
from dgmbench.config.bounded import read_bytes
from dgmbench.config.cards import Card, read_cards
from dgmbench.errors import UserError
from dgmbench.runs.record import is_as_written
from dgmbench.source import hash_of_target, source_hash
from dgmbench.system import Lock, is_locked

KEPT = (*FAILURES, "skipped")
SECONDS_BETWEEN_WRITES = 1.0


class Ledger:
    """Owns a suite's folder for one runner at a time and keeps its ``cells.json``."""

    def __init__(
        self,
        folder: Path,
        suite: Suite,
        cells: list[Cell],
        chosen: Sequence[Cell] | None = None,
        names: Iterable[str] = (),
    ) -> None:
        """``chosen`` are the cells of this start; what is stored about others of the suite (``names``) stays."""
        self.folder, self.suite, self.cells = folder, suite, list(cells)
        self.chosen, self.names = cells if chosen is None else chosen, set(names)
        self.file = folder / "cells.json"
        self._lock = Lock(folder / ".lock")
        self._written, self._cost = -1e9, 0.0

    def acquire(self) -> None:
        """Take the folder until this process ends; refuse if another runner has it, wait for its orphaned cells."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            owner = self._lock.take()
        except OSError as error:
            raise UserError(
                f"The folder {self.folder} cannot be written ({error.strerror}): choose another with paths.outputs=DIR."
            ) from error
        if owner is not None:
            raise UserError(
                f"The suite in {self.folder} is being run by another process ({owner}); wait until it is done, or "
                "stop it."
            )
        wait_for_orphans(self.folder)

    def release(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def restore(self, fingerprints: "Fingerprints") -> None:
        """Take over what an earlier start found out about cells that are still the same, and look for their results."""
        try:
            stored = {cell["id"]: cell for cell in json.loads(read_bytes(self.file))["cells"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            stored = {}  # the run folders hold the truth: cells that are done say so when they are started
        kept = self._keep(stored)
        sources = _Sources(fingerprints.cards)
        for cell in self.cells:
            if cell.status == "not built" or cell.id in kept:
                continue
            cell.fingerprint = fingerprints.of(cell)
            old = stored.get(cell.id)
            if old is None or old.get("fingerprint") != cell.fingerprint:
                continue
            cell.run, cell.seconds = old["run"], old["seconds"]
            result = self.result(cell)
            if result is not None and data_changed(result):
                cell.run, cell.seconds = None, None  # other data, another run
            elif result is not None:
                cell.status = "done"
                if sources.changed(cell, result):
                    cell.status = "stale"
                    cell.reason = "the source of the model has changed since; --stale runs the cell again"
            elif old["status"] in KEPT:
                cell.status, cell.reason = old["status"], old["reason"]

    def _keep(self, stored: dict[str, Any]) -> set[str]:
        """Put the stored entries of cells that are not of this start in their places, word for word."""
        kept: set[str] = set()
        chosen, present = {cell.id for cell in self.chosen}, {cell.id for cell in self.cells}
        others = {cell.model for cell in self.cells} - {cell.model for cell in self.chosen}
        for name, entry in stored.items():
            if name in chosen:
                continue
            try:
                cell = Cell(**entry)
            except TypeError:
                continue  # written by another version
            if cell.status == "not built":
                continue  # it may be by now
            if cell.status == "running":
                cell.status = "planned"  # the runner that said so has gone
            if name in present:
                self.cells = [cell if known.id == name else known for known in self.cells]
            elif cell.model in others or name in self.names:
                last = [i for i, known in enumerate(self.cells) if known.model == cell.model]
                self.cells.insert(last[-1] + 1 if last else len(self.cells), cell)
            else:
                continue
            kept.add(name)
        return kept

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's ``result.json``, if its run is done."""
        if cell.run is None:
            return None
        try:
            result = json.loads(read_bytes(self.folder / cell.run / "result.json"))
        except (OSError, ValueError, RecursionError):
            return None
        return result if isinstance(result, dict) and is_as_written(result) else None

    def set_aside(self, cell: Cell) -> None:
        """Move a stale run out of the way, so that the cell is trained again; nothing is deleted."""
        if cell.run is not None and (self.folder / cell.run).is_dir():
            place = self.folder / ".stale" / f"{cell.run}-{time.strftime('%Y%m%dT%H%M%S')}-{time.monotonic_ns()}"
            place.parent.mkdir(exist_ok=True)
            (self.folder / cell.run).rename(place)
        cell.run, cell.status, cell.reason = None, "planned", None

    def write(self, *, now: bool = False) -> None:
        """Write ``cells.json`` whole and atomically, at most once a second and never for most of the time."""
        begin = time.monotonic()
        if not now and begin - self._written < max(SECONDS_BETWEEN_WRITES, 20 * self._cost):
            return
        content = {
            "suite": self.suite.name,
            "title": self.suite.title,
            "survey": self.suite.survey,
            "cells": [cell.as_dict() for cell in self.cells],
        }
        temporary = self.file.with_name(".cells.json.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.file)
        except OSError as error:
            raise UserError(
                f"{self.file} cannot be written ({error.strerror}); free some space and give the same command again."
            ) from error
        self._written = time.monotonic()
        self._cost = self._written - begin


class Fingerprints:
    """Names what a cell's identity depends on, from files alone, so that finished cells are recognised in no time.

    A run's own name needs its complete configuration and its data; as long as the settings, the configuration files
    they choose from and the files they name are the same, so is the name.
    """

    def __init__(self, config_dirs: Folders = ()) -> None:
        config_dirs = list(config_dirs)
        self.cards: dict[str, Card] = read_cards(config_dirs)
        self._models: dict[str, bytes] = {}
        shared = hashlib.sha256()
        for folder in reversed(search_path(config_dirs)):
            for file in sorted(folder.rglob("*.yaml")):
                group, content = file.relative_to(folder).parent.as_posix(), file.read_bytes()
                if group == "model":
                    self._models[file.stem] = content
                elif group not in ("suite", "experiment", "executor"):
                    shared.update(f"{file.relative_to(folder)}\0{len(content)}\0".encode() + content)
        self._shared = shared.digest()

    def of(self, cell: Cell) -> str:
        """16 hex digits for a cell."""
        digest = hashlib.sha256(self._shared + self._models[cell.model])
        for text in sorted(cell.overrides):
            digest.update(f"\0{text}".encode())
            if "/" in text and os.path.isfile(path := os.path.expanduser(text.partition("=")[2].strip("'\""))):
                stat = os.stat(path)
                digest.update(f"\0{stat.st_size} {stat.st_mtime_ns}".encode())
        return digest.hexdigest()[:16]


def data_changed(result: Mapping[str, Any]) -> bool:
    """Whether the user's own data files are no longer those that a result was made from."""
    source = result.get("data_source") or {}
    for state in (source, *source.values()):
        if not isinstance(state, Mapping) or "path" not in state:
            continue  # published files are known by their checksums
        try:
            if "modified_ns" in state:
                found = os.stat(state["path"])
                now = {"path": state["path"], "bytes": found.st_size, "modified_ns": found.st_mtime_ns}
            else:
                from dgmbench.data.images import folder_state

                now = folder_state(Path(state["path"]))
        except OSError:
            return True
        if now != state:
            return True
    return False


class _Sources:
    """Whether the source of a model is still the one that made a result; reads files, imports only in doubt."""

    def __init__(self, cards: dict[str, Card]) -> None:
        self._cards = cards
        self._hashes: dict[str, list[str | None]] = {}

    def changed(self, cell: Cell, result: dict[str, Any]) -> bool:
        """Whether the model's class, or the mathematics that it imports, differs from that of ``result.json``."""
        then, target = result["versions"].get("model_source"), str(self._cards[cell.model].settings.get("_target_", ""))
        known = self._hashes.setdefault(cell.model, [hash_of_target(target)])
        if then not in known and len(known) == 1:
            known.append(self._of_class(target))  # the class may come from elsewhere
        return then not in known

    def _of_class(self, target: str) -> str | None:
        from dgmbench.config.targets import locate

        found = locate(target, "model")
        return source_hash(found) if isinstance(found, type) else None


# ---------------------------------------------------------------------- cells that outlive their runner


def mark_working(folder: Path, cell: str) -> None:
    """Say that this process works on a cell of the suite's folder until it ends."""
    marks = folder / ".working"
    marks.mkdir(exist_ok=True)
    Lock(marks / cell).take()


def wait_for_orphans(folder: Path, seconds: float = 30.0) -> None:
    """Wait until the cells of a runner that was killed have gone."""
    end = time.monotonic() + seconds
    for mark in (folder / ".working").glob("*"):
        while is_locked(mark):
            if time.monotonic() > end:
                return  # cells on other machines may go on: a run's own lock keeps two from one folder
            time.sleep(0.05)
        mark.unlink(missing_ok=True)


def statuses(cells: Iterable[Cell]) -> dict[str, int]:
    """How many cells there are of each status."""
    found: dict[str, int] = {}
    for cell in cells:
        found[cell.status] = found.get(cell.status, 0) + 1
    return found


def retried(words: str | None) -> Sequence[str]:
    """The statuses that ``--retry`` names."""
    if words is None:
        return ()
    wanted = FAILURES if words == "all" else tuple(words.split(","))
    for word in wanted:
        if word not in FAILURES:
            raise UserError(f"--retry {words}: '{word}' is none of failed, oom, timeout or all.")
    return wanted
