"""Programs in processes of their own, most of them forked from one that has everything imported.

A new interpreter needs seconds for torch, Lightning and Hydra; a fork of a warm one needs none of them. The server is
the one that the local executor uses (it has never computed anything, because OpenMP does not survive a fork), so that
a worker of the tests has one of it. What is about starting a process starts a real one by ``subprocess``.

Nothing here waits for a number of seconds: it waits for what should happen, and gives up at once when the process
that should do it has ended. ``MINUTES`` is the last resort for one that hangs.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

MINUTES = 15.0
FORKED = str(Path(__file__).with_name("forked.py"))
Found = TypeVar("Found")
_numbers = count()
_outputs = Path(tempfile.mkdtemp(prefix="dgm-tests-"))
atexit.register(shutil.rmtree, _outputs, ignore_errors=True)


def until(happened: Callable[[], Found], what: str, *processes: Any) -> Found:
    """Wait until ``happened()`` is true and return it; fail if all of the processes that should do it have ended."""
    deadline = time.monotonic() + 60 * MINUTES
    while True:
        ended = bool(processes) and all(process.poll() is not None for process in processes)
        if found := happened():
            return found
        assert not ended, f"ended before {what}: {[getattr(process, 'errors', process) for process in processes]}"
        assert time.monotonic() < deadline, f"{MINUTES:g} minutes have passed, but not {what}"
        time.sleep(0.02)


class Forked:
    """A program in a forked process; like ``subprocess.Popen``, its output in files."""

    def __init__(
        self,
        argv: Iterable[str],
        *,
        module: str | None = None,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        group: int | None = None,
        terminal: str | None = None,
        own_server: bool = True,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dgmbench.bench.preload"])
        number = next(_numbers)
        self._stdout, self._stderr = (_outputs / f"{number}.{name}" for name in ("stdout", "stderr"))
        server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
        server.ensure_running()
        request = {
            "argv": list(argv), "module": module, "environment": {**os.environ, **(environment or {})},
            "folder": str(folder or Path.cwd()), "group": group, "stdout": terminal or str(self._stdout),
            "stderr": terminal or str(self._stderr), "server": None if own_server else server._forkserver_address,
        }  # fmt: skip
        self._process = context.Process(
            target=runpy.run_path, args=(FORKED,), kwargs={"init_globals": {"REQUEST": request}}
        )
        self._process.start()
        self.pid: int = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def output(self) -> str:
        return self._stdout.read_text(encoding="utf-8") if self._stdout.exists() else ""

    @property
    def errors(self) -> str:
        return self._stderr.read_text(encoding="utf-8") if self._stderr.exists() else ""

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end and return the exit code, negative after a signal."""
        self._process.join(60 * MINUTES)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
            raise AssertionError(f"{MINUTES:g} minutes have passed and it runs: {self.output}\n{self.errors}")
        return self._process.exitcode

    def done(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end; what ``subprocess.run`` gives."""
        return subprocess.CompletedProcess([], self.wait(), self.output, self.errors)


def start_dgm(*words: str, **options: Any) -> Forked:
    """Start ``dgm WORD...`` in a forked process."""
    return Forked(["dgm", *words], module="dgmbench", **options)


def dgm(*words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run ``dgm WORD...`` in a forked process."""
    return start_dgm(*words, **options).done()


def script(file: Path, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run ``python FILE WORD...`` in a forked process."""
    return Forked([str(file), *words], **options).done()


def free_port() -> int:
    """A port to meet at, below those that the system deals out to others by itself."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def fresh(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python WORD...`` in a new interpreter."""
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=60 * MINUTES,
        env={**os.environ, **environment},
    )  # fmt: skip
