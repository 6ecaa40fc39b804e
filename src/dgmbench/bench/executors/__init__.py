"""Executors: where cells run. Each starts processes, watches over them and hands back outcomes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dgmbench.bench.worker import Outcome, Task
from dgmbench.config import checked
from dgmbench.config.budget import Amount
from dgmbench.errors import UserError, nearest

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class Executor(Protocol):
    """What the runner asks of an executor."""

    slots: int
    """How many cells it takes at a time."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Start cells, no more than there are free slots."""

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The cells that have ended, as soon as there is one, else nothing after some seconds."""

    def interrupt(self, *, at_once: bool = False) -> None:
        """Ask the running cells to stop so that they can be resumed; ``at_once`` kills them."""

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """``executor=local``."""

    name: Literal["local"]
    slots: int | None
    threads: int
    gpus: int | str
    cells_per_gpu: int
    time: str | None
    memory: str | None

    def __post_init__(self) -> None:
        _check(self)
        if self.gpus != "auto" and not (isinstance(self.gpus, int) and self.gpus >= 0):
            raise UserError(f"executor.gpus={self.gpus} must be auto or a number of GPUs.")


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """``executor=slurm``."""

    name: Literal["slurm"]
    slots: int
    threads: int
    gpus: int
    time: str
    memory: str
    partition: str | None
    cluster: Literal["slurm", "local"]

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """``executor=ray``."""

    name: Literal["ray"]
    address: str | None
    slots: int
    threads: int
    gpus: float
    time: str | None
    memory: str | None

    def __post_init__(self) -> None:
        _check(self)


SETTINGS: dict[str, type] = {"local": LocalSettings, "slurm": SlurmSettings, "ray": RaySettings}


def _check(settings: Any) -> None:
    for key in ("slots", "threads", "cells_per_gpu"):
        value = getattr(settings, key, None)
        if value is not None and value < 1:
            raise UserError(f"executor.{key}={value} leaves nothing to run cells on: give at least 1.")
    seconds(settings.time)
    size(settings.memory)


def seconds(text: str | None) -> float | None:
    """``600s`` as a number of seconds."""
    return None if text is None else Amount.parse(text, ("s",), what="executor.time").seconds


def size(text: str | None) -> int | None:
    """``4GiB`` as a number of bytes."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)", text)
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise UserError(f"executor.memory={text} is not a size: write for instance 500MiB or 4GiB.")
    return int(float(match[1]) * UNITS[match[2]])


def check_executor(node: Any) -> dict[str, Any]:
    """Check the settings of an executor."""
    name = node.get("name") if isinstance(node, Mapping) else node
    if name not in SETTINGS:
        raise UserError(nearest(str(name), SETTINGS, what="executor"))
    return checked(node, SETTINGS[name], "executor")


def make_executor(settings: Mapping[str, Any], folder: Path) -> Executor:
    """The executor of checked settings; ``folder`` is the suite's."""
    if settings["name"] == "slurm":
        from dgmbench.bench.executors.slurm import SlurmExecutor

        return SlurmExecutor(SlurmSettings(**settings), folder)
    if settings["name"] == "ray":
        from dgmbench.bench.executors.ray import RayExecutor

        return RayExecutor(RaySettings(**settings), folder)
    from dgmbench.bench.executors.local import LocalExecutor

    return LocalExecutor(LocalSettings(**settings), folder)
