"""Cells as processes of this machine: forked from one that has everything imported, pinned, watched and bounded."""

import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from dgmbench.bench.executors import LocalSettings, seconds, size
from dgmbench.bench.ledger import mark_working
from dgmbench.bench.worker import Outcome, Task, redirect_output, run_cell
from dgmbench.errors import FULL, UserError
from dgmbench.system import cores, die_with_parent, leave_terminal, pin, private_memory, process_context

# After the polite signal a cell has this long to write a checkpoint.
GRACE_SECONDS = 20.0
POLL_SECONDS = 0.25
ATTEMPTS = 3
NOBODY_WAITED = 255  # multiprocessing's word for a process whose own exit code is lost with its server
SERVER_SECONDS = 5.0


@dataclass(frozen=True)
class Slot:
    """What one cell at a time may use."""

    cores: tuple[int, ...]
    """Empty: not pinned."""
    gpu: str | None


@dataclass
class _Running:
    task: Task
    slot: Slot
    process: Any
    connection: Connection
    deadline: float | None
    outcome: Outcome | None = None
    stopped: str | None = None
    """The status of a cell that was stopped: timeout, oom or interrupted."""
    kill_at: float | None = None


class LocalExecutor:
    """``slots`` processes at a time.

    ``forkserver`` forks from a process that has imported torch, Lightning and Hydra but has never computed anything,
    so a cell starts in no time and owns its OpenMP threads, its memory and its death.
    """

    def __init__(self, settings: LocalSettings, folder: Path) -> None:
        self.folder = folder
        self.threads = settings.threads
        self.time, self.memory = seconds(settings.time), size(settings.memory)
        self._free = make_slots(settings, cores(), visible_gpus())
        self.slots = len(self._free)
        self._running: list[_Running] = []
        self._forked_by: dict[int | None, int | None] = {}
        self._context = process_context()
        self._context.set_forkserver_preload(["dgmbench.bench.preload"])  # of no effect where nothing forks

    def submit(self, tasks: Sequence[Task]) -> None:
        """Start one process a task."""
        for task in tasks:
            slot = self._free.pop(0)
            receive, send = self._context.Pipe(duplex=False)
            process = self._start(task, send, slot)
            send.close()
            deadline = None if self.time is None else time.monotonic() + self.time
            self._running.append(_Running(task, slot, process, receive, deadline))

    def _start(self, task: Task, send: Connection, slot: Slot) -> Any:
        """A cell's process; where the one that forks them has just been killed, by another, which starts first."""
        for attempt in range(ATTEMPTS):
            process = self._context.Process(target=_child, args=(task, send, slot), name=task.id)
            try:
                process.start()
            except (OSError, EOFError) as error:
                if attempt == ATTEMPTS - 1:
                    reason = getattr(error, "strerror", None) or error
                    if getattr(error, "errno", None) in FULL:
                        reason = f"{reason} for temporary files: make room there, or name another folder by TMPDIR=DIR"
                    raise UserError(
                        f"No process can be started for {task.id} ({reason}); the same command goes on with the suite."
                    ) from error
                continue
            self._forked_by[process.pid] = server_pid()
            return process
        raise AssertionError("the last attempt returns or raises")

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Watch the cells until one has ended, for at most some seconds."""
        end = time.monotonic() + seconds
        while self._running:
            left = max(0.0, min(POLL_SECONDS, end - time.monotonic()))
            ready = wait([item for cell in self._running for item in (cell.connection, cell.process.sentinel)], left)
            self._enforce_limits()
            ended = [cell for cell in self._running if ready and self._has_ended(cell)]
            if ended or time.monotonic() >= end:
                return [(cell.task.id, self._collect(cell)) for cell in ended]
        return []

    def _has_ended(self, cell: _Running) -> bool:
        try:
            if cell.outcome is None and cell.connection.poll():
                cell.outcome = cell.connection.recv()
        except (EOFError, OSError):
            pass  # it died before it could say anything
        return cell.outcome is not None or cell.process.exitcode is not None

    def _collect(self, cell: _Running) -> Outcome:
        cell.process.join(5.0)
        if cell.process.exitcode is None:
            cell.process.kill()
            cell.process.join()
        code = cell.process.exitcode
        orphaned = lost_server(self._forked_by.pop(cell.process.pid), code)
        cell.process.close()
        cell.connection.close()
        self._running.remove(cell)
        self._free.append(cell.slot)
        if cell.outcome is not None and (cell.outcome.status != "interrupted" or cell.stopped is None):
            return cell.outcome
        run = cell.outcome.run if cell.outcome else None
        if cell.stopped == "timeout":
            return Outcome(status="timeout", run=run, reason=f"reached the limit of {self.time:g} s (executor.time)")
        if cell.stopped == "oom":
            reason = f"reached the limit of {(self.memory or 0) / 2**20:,.0f} MiB (executor.memory)"
            return Outcome(status="oom", run=run, reason=reason)
        if cell.stopped == "interrupted":
            return Outcome(status="interrupted", run=run)
        if orphaned:
            reason = "the process that forks cells was killed, and its cells with it; the same command resumes this one"
            return Outcome(status="interrupted", run=run, reason=reason)
        log = self.folder / ".logs" / f"{cell.task.id}.log"
        word = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; the system does that when memory runs out" if word.endswith("SIGKILL") else ""
        return Outcome(status="failed", reason=f"the process {word}{hint} (its output: {log})")

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for cell in self._running:
            if cell.kill_at is not None:
                if now > cell.kill_at:
                    cell.process.kill()
            elif cell.deadline is not None and now > cell.deadline:
                self._stop(cell, "timeout")
            elif self.memory is not None and private_memory(cell.process.pid) > self.memory:
                self._stop(cell, "oom", grace=0.0)

    def _stop(self, cell: _Running, status: str, *, grace: float = GRACE_SECONDS) -> None:
        cell.stopped, cell.kill_at = status, time.monotonic() + grace
        if grace:
            cell.process.terminate()
        else:
            cell.process.kill()

    def interrupt(self, *, at_once: bool = False) -> None:
        """SIGTERM, on which training stops between two batches and writes a checkpoint; or SIGKILL."""
        for cell in self._running:
            if at_once or cell.stopped is None:
                self._stop(cell, cell.stopped or "interrupted", grace=0.0 if at_once else GRACE_SECONDS)

    def close(self) -> None:
        """Kill what still runs."""
        self.interrupt(at_once=True)
        for cell in list(self._running):
            self._collect(cell)


def make_slots(settings: LocalSettings, cores: Sequence[int], gpus: Sequence[str]) -> list[Slot]:
    """Deal cores and GPUs out. Cores are pinned where there are enough of them, so that cells do not disturb others."""
    wanted = len(gpus) if settings.gpus == "auto" else int(settings.gpus)
    gpus = list(gpus)[:wanted]
    per_core = max(1, len(cores) // settings.threads)
    count = settings.slots or (len(gpus) * settings.cells_per_gpu if gpus else per_core)
    pinned = count * settings.threads <= len(cores)
    return [
        Slot(
            cores=tuple(cores[i * settings.threads : (i + 1) * settings.threads]) if pinned else (),
            gpu=gpus[i % len(gpus)] if gpus else None,
        )
        for i in range(count)
    ]


def server_pid() -> int | None:
    """The process that forks cells, or None if there is none yet."""
    server: Any = multiprocessing.forkserver._forkserver
    pid: int | None = server._forkserver_pid
    return pid


def lost_server(forked_by: int | None, code: int) -> bool:
    """Whether the process that has forked a cell has gone. Its files are closed a moment before it counts as ended, and
    a cell that nobody has waited for ends with NOBODY_WAITED then.
    """
    end = time.monotonic() + (SERVER_SECONDS if code == NOBODY_WAITED else 0.0)
    while forked_by is not None:
        server = server_pid()
        if forked_by != server or not alive(server):
            return True
        if time.monotonic() >= end:
            break
        time.sleep(0.02)
    return False


def alive(pid: int | None) -> bool:
    """Whether a child of this process has not ended; it is not reaped."""
    try:
        return pid is not None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def visible_gpus() -> list[str]:
    """The GPUs that a process started here would see, told without CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    devices = Path("/dev").glob("nvidia*")
    numbers = [int(match[1]) for file in devices if (match := re.fullmatch(r"nvidia(\d+)", file.name))]
    return [str(index) for index in range(len(numbers))]


# ---------------------------------------------------------------------- in the cell's process


def _child(task: Task, connection: Connection, slot: Slot) -> None:
    leave_terminal()  # Ctrl-C is the runner's business
    die_with_parent()  # a cell is resumed from its last checkpoint
    folder = Path(task.folder)
    redirect_output(folder / ".logs" / f"{task.id}.log")
    mark_working(folder, task.id)
    if slot.cores:
        pin(slot.cores)
    os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpu or ""
    outcome = run_cell(task)
    connection.send(outcome)
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and taking the interpreter down costs time
