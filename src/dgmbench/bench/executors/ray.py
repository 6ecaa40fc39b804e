"""Cells as tasks of a Ray cluster."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgmbench.bench.executors import RaySettings, seconds, size
from dgmbench.bench.worker import Outcome, Task, run_cell
from dgmbench.errors import UserError


class RayExecutor:
    """One task a cell, each in a process of its own; Ray chooses cores and GPUs."""

    def __init__(self, settings: RaySettings, folder: Path) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("executor=ray needs Ray: pip install 'dgmbench[ray]'.") from error
        self._ray: Any = ray
        self.slots = settings.slots
        self.time = seconds(settings.time)
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(
                    address=settings.address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR
                )
            except ConnectionError as error:
                raise UserError(f"executor.address={settings.address}: no Ray cluster answers there.") from error
        # a process runs one cell only: its memory and threads are not the next one's
        resources = {"num_cpus": settings.threads, "num_gpus": settings.gpus, "memory": size(settings.memory)}
        self._remote = self._ray.remote(**resources, max_retries=0, max_calls=1)(_run_and_say)
        from ray.util.queue import Queue

        self._begun: Any = Queue(actor_options={"num_cpus": 0})  # a task waits for free cores first
        self._since: dict[str, float] = {}
        self._cells: dict[Any, str] = {}
        self._stopped: dict[Any, str] = {}

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand the cells to Ray."""
        for task in tasks:
            self._cells[self._remote.remote(task, self._begun)] = task.id

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The tasks that have ended."""
        if not self._cells:
            return []
        ended, running = self._ray.wait(list(self._cells), num_returns=1, timeout=seconds)
        now = time.monotonic()
        while not self._begun.empty():
            self._since[self._begun.get()] = now
        for task in running:
            if self.time is not None and now - self._since.get(self._cells[task], now) > self.time:
                self._stopped[task] = "timeout"
                self._ray.cancel(task, force=True)
        return [(self._cells[task], self._outcome(task)) for task in ended]

    def _outcome(self, task: Any) -> Outcome:
        self._since.pop(self._cells.pop(task), None)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.OutOfMemoryError as error:
            return Outcome(status="oom", reason=str(error).splitlines()[0])
        except self._ray.exceptions.RayError as error:
            stopped = self._stopped.pop(task, None)
            if stopped == "timeout":
                return Outcome(status="timeout", reason=f"reached the limit of {self.time:g} s (executor.time)")
            if stopped is not None:
                return Outcome(status=stopped)
            return Outcome(status="failed", reason=f"Ray: {type(error).__name__}: {str(error).splitlines()[0]}")

    def interrupt(self, *, at_once: bool = False) -> None:
        """Stop the tasks; their runs can be resumed."""
        for task in self._cells:
            self._stopped[task] = "interrupted"
            self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Stop what still runs, and the connection to Ray if it was made here."""
        self.interrupt(at_once=True)
        if self._started:
            self._ray.shutdown()


def _run_and_say(task: Task, begun: Any) -> Outcome:
    """Run a cell, after a word that it has begun."""
    begun.actor.put.remote(task.id)  # not awaited: a task that waits for an actor lends its cores to the next one
    return run_cell(task)
