"""Cells as jobs of a SLURM cluster, through submitit."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgmbench.bench.executors import SlurmSettings, seconds, size
from dgmbench.bench.worker import Outcome, Task, run_cell
from dgmbench.errors import UserError


class Job:
    """A cell as submitit wants it: a call, and what to do when the job is preempted or reaches its time limit."""

    def __call__(self, task: Task) -> Outcome:
        """Run the cell."""
        return run_cell(task)

    def checkpoint(self, task: Task) -> Any:
        """Queue the same cell again: it resumes from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Job(), task)


class SlurmExecutor:
    """One job a cell, sent as array jobs; logs in ``<suite>/.submitit``."""

    def __init__(self, settings: SlurmSettings, folder: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("executor=slurm needs submitit: pip install 'dgmbench[slurm]'.") from error
        self.slots = settings.slots
        logs = folder / ".submitit"
        try:
            self._executor: Any = submitit.AutoExecutor(folder=logs, cluster=settings.cluster)
        except RuntimeError as error:
            raise UserError(
                "executor=slurm finds no SLURM here (no srun); run it on a login node, or try executor.cluster=local."
            ) from error
        parameters: dict[str, Any] = {
            "name": f"dgm-{folder.name}",
            "timeout_min": max(1, round((seconds(settings.time) or 60) / 60)),
            "cpus_per_task": settings.threads,
            "gpus_per_node": settings.gpus,
            "mem_gb": (size(settings.memory) or 0) / 2**30,
        }
        if settings.cluster == "slurm":
            parameters["slurm_array_parallelism"] = settings.slots
            if settings.partition is not None:
                parameters["slurm_partition"] = settings.partition
        self._executor.update_parameters(**parameters)
        self._threads = settings.threads
        self._jobs: dict[str, Any] = {}
        self._interrupted = False

    def submit(self, tasks: Sequence[Task]) -> None:
        """Send the cells as one array."""
        jobs = self._executor.map_array(Job(), tasks)
        self._jobs.update({task.id: job for task, job in zip(tasks, jobs, strict=True)})

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Ask after the jobs, which submitit does through their files and now and then ``sacct``."""
        end = time.monotonic() + seconds
        while True:
            ended = [cell for cell, job in self._jobs.items() if job.done()]
            if ended or time.monotonic() > end:
                return [(cell, self._outcome(self._jobs.pop(cell))) for cell in ended]
            time.sleep(0.2)

    def _outcome(self, job: Any) -> Outcome:
        error = job.exception()
        if error is None:
            return job.result()
        if self._interrupted:
            return Outcome(status="interrupted")  # a job that was cancelled leaves no result
        state = str(job.state)
        status = {"TIMEOUT": "timeout", "OUT_OF_MEMORY": "oom"}.get(state.split()[0] if state else "", "failed")
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return Outcome(status=status, reason=f"job {job.job_id} ({state}): {last[0]} (its output: {job.paths.stderr})")

    def interrupt(self, *, at_once: bool = False) -> None:
        """Cancel the jobs; their runs can be resumed."""
        self._interrupted = True
        for job in self._jobs.values():
            job.cancel(check=False)

    def close(self) -> None:
        """Cancel what still runs."""
        self.interrupt()
