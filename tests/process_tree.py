"""The processes that descend from this one, their processor time, and an end for those that nobody waits for.

Everything is read from /proc; elsewhere than on Linux nothing is found, and nothing is checked.
"""

import ctypes
import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
MARK = "DGM_TEST_SESSION"
SET_CHILD_SUBREAPER = 36
# A process that is on its way out may need this long on a busy machine; only a test that fails waits so long.
GRACE_SECONDS = 60.0


def adopt_orphans() -> None:
    """Let processes whose parent dies become children of this one, so that they are found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(process: int) -> list[int]:
    found: list[int] = []
    for file in PROC.glob(f"{process}/task/*/children"):
        try:
            found += map(int, file.read_text().split())
        except OSError:
            continue
    return found


def descendants(process: int, stop: Callable[[int], bool] = lambda process: False) -> Iterator[int]:
    """All processes below this one; nothing below those where ``stop`` is true."""
    for child in children(process):
        if not stop(child):
            yield child
            yield from descendants(child, stop)


def fields(process: int) -> list[str]:
    """What follows the name in ``stat``: state, parent, ...; nothing if it is gone."""
    try:
        return (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_alive(process: int) -> bool:
    return fields(process)[:1] not in ([], ["Z"])


def cpu_seconds() -> float:
    """Of this process, of the descendants that it has, and of those that have ended, user and system."""
    found = sum(os.times()[:4])
    for process in descendants(os.getpid()):
        found += sum(map(int, fields(process)[11:15])) / TICKS
    return found


# ---------------------------------------------------------------------- what a test leaves behind


def servers() -> set[int | None]:
    """Processes that live as long as this one, started by whoever needs them first."""
    forks = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return {forks, multiprocessing.resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]


def popen_of(process: int) -> subprocess.Popen | None:
    """The object that has started a child, even if nothing but the garbage collector knows it."""
    # of the type alone: isinstance asks objects for their class, and torch has some that warn when they are asked
    found = (o for o in gc.get_objects() if issubclass(type(o), subprocess.Popen))
    return next((o for o in found if o.pid == process), None)


def _new(before: set[int]) -> list[int]:
    """What has been started since: not below processes of longer-lived fixtures, whose business that is."""
    multiprocessing.active_children()  # takes in those of multiprocessing that have ended
    longer = before - servers()
    found = []
    for process in list(descendants(os.getpid(), longer.__contains__)):
        if process in servers():
            continue
        if fields(process)[:2] == ["Z", str(os.getpid())] and popen_of(process) is None:
            os.waitpid(process, os.WNOHANG)  # adopted and dead
        elif is_alive(process) or is_unwaited(process):
            found.append(process)
    return found


def is_unwaited(process: int) -> bool:
    """Whether this process has started it, it has ended, and nobody has waited for it."""
    return fields(process)[:2] == ["Z", str(os.getpid())] and popen_of(process) is not None


def end_leftovers(before: set[int]) -> list[str]:
    """End every process that has been started since ``before`` and still runs; returns their command lines."""
    deadline = time.monotonic() + GRACE_SECONDS
    while left := _new(before):
        if all(is_unwaited(process) for process in left) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    told = []
    for process in left:
        words = (PROC / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        told.append(f"{process} ({words[:200].strip() or 'ended, but was not waited for'})")
        if is_alive(process):
            os.kill(process, signal.SIGKILL)
        if (owner := popen_of(process)) is not None:
            owner.wait()
            for stream in (owner.stdin, owner.stdout, owner.stderr):
                if stream is not None:
                    stream.close()
    return told


# ---------------------------------------------------------------------- what a session leaves behind

GUARDIAN = r"""
import os, sys
sys.stdin.read()  # ends when the tests do, however they end
mark, kill = sys.argv[1].encode(), True
while kill:
    kill = False
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark in open(f"/proc/{name}/environ", "rb").read().split(b"\0"):
                with open(f"/proc/{name}/stat") as file:
                    if file.read().rpartition(")")[2].split()[0] != "Z":
                        os.kill(int(name), 9)
                        kill = True
        except OSError:
            pass
"""


def start_guardian() -> "subprocess.Popen[bytes] | None":
    """A process that kills what the tests have started once they have ended, even by SIGKILL.

    All of it carries this session's mark in its environment, whatever its parent, group or session.
    """
    if sys.platform != "linux":
        return None
    mark = uuid.uuid4().hex
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    guardian = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", GUARDIAN, f"{MARK}={mark}"],
        stdin=subprocess.PIPE, env=environment, start_new_session=True,
    )  # fmt: skip
    os.environ[MARK] = mark
    return guardian


def dismiss(guardian: "subprocess.Popen[bytes]") -> None:
    """Let it do its work and wait for it."""
    guardian.communicate()
