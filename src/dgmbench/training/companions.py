"""The other processes of a run: when one of them ends too early, the others end within seconds, in one sentence.

What is said between processes may wait for half an hour for one that has gone: in the rendezvous always, with NCCL at
any time. So the process that has started the others watches them, each of them watches it, and whoever is left and does
not get to know otherwise ends. Processes that torchrun or SLURM have started are theirs to watch; what such a process
is told by a connection that breaks becomes the same sentence.
"""

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from dgmbench.errors import RunFailed
from dgmbench.system import ENDINGS, is_alive

STARTER = "DGM_STARTED_BY"
"""The environment variable in which the first process tells the others its number."""
EVERY_SECONDS = 0.2
GRACE_SECONDS = 5.0
"""So long a process has to find out by itself, in good order, before it is ended."""
_BETWEEN = str(Path(torch.distributed.__file__).parent)


class Deserted(RunFailed):
    """Another process of the run has gone, so this one cannot go on; the run can be resumed."""

    def __init__(self, world: int, how: str = "") -> None:
        super().__init__(
            f"Another of the {world} processes of this run has ended{how}, and none goes on alone; what was saved "
            "is intact, and the same command resumes the run."
        )


@contextmanager
def together(world: int) -> Iterator[None]:
    """What breaks between the processes within the block means that one of them has gone."""
    try:
        yield
    except RuntimeError as error:
        if world == 1 or not _is_between_processes(error):
            raise
        if not _speaks():
            raise SystemExit(1) from error
        raise Deserted(world) from error


def _is_between_processes(error: BaseException) -> bool:
    """Whether it was torch.distributed that raised it: gloo has no type of its own, and words that change."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_BETWEEN)


class Watch:
    """A thread that ends this process where another one has gone and the main thread waits for it in vain."""

    def __init__(self, world: int, gone: Callable[[], int | None]) -> None:
        self.world, self._gone = world, gone
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True, name="companions")
        self.thread.start()

    def over(self) -> None:
        """Nobody is waited for any more."""
        self._over.set()

    def _watch(self) -> None:
        while (code := self._gone()) is None:
            if self._over.wait(EVERY_SECONDS):
                return
        if not self._over.wait(GRACE_SECONDS):
            with suppress(OSError, ValueError):
                print(f"dgm: {Deserted(self.world, _ending(code))}", file=sys.stderr, flush=True)  # noqa: T201
            asked = {128 + number for number in ENDINGS}
            os._exit(code if code in asked else 1)


def _ending(code: int) -> str:
    return f" (killed by signal {-code})" if code < 0 else f" (exit code {code})" if code > 0 else ""


def first_failure(processes: Sequence["subprocess.Popen[Any]"]) -> int | None:
    """The exit code of a process that has ended otherwise than well; None while there is none."""
    return next((code for process in processes if (code := process.poll())), None)


def starter_gone(starter: int) -> int | None:
    """0 if the process that has started this one has ended, however it did."""
    return None if is_alive(starter) else 0


def _speaks() -> bool:
    """Whether this process is to say that another one has gone: one that the first has started leaves that to it."""
    starter = os.environ.get(STARTER)
    return starter is None or not is_alive(int(starter))


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, which starts the others by the same command; but its watch kills the first process by SIGKILL."""

    watch: Watch | None = None

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, or be one of them, and watch while the function runs."""
        world, starter = self.num_processes * self.num_nodes, os.environ.get(STARTER)
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[STARTER] = str(os.getpid())
            try:
                self._call_children_scripts()
            finally:
                del os.environ[STARTER]
            self.watch = Watch(world, lambda: first_failure(self.procs))
        elif starter is not None:
            self.watch = Watch(world, lambda: starter_gone(int(starter)))
        _set_num_threads_if_needed(self.num_processes)
        return function(*args, **kwargs)


class ReplicatedStrategy(DDPStrategy):
    """Lightning's process group without its wrapper around the module, and with a launcher that watches.

    The wrapper's reducer does not know players: losses that leave a player's parameters out raise, and gradients taken
    by ``autograd.grad`` pass it by without a word. ``Training`` averages one player's gradients at a time instead.
    """

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def configure_ddp(self) -> None:
        """Do not wrap; every process builds the same weights from the same seed."""

    def teardown(self) -> None:
        """The training has ended, well or not: whoever leaves now is not missed."""
        if isinstance(self._launcher, Launcher) and self._launcher.watch is not None:
            self._launcher.watch.over()
        super().teardown()
