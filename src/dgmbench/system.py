"""What differs between operating systems: locks, cores, memory, a parent's death. Nothing else asks which one it is on.

Each function says what it does where the system has no such thing. A lock belongs to an open file and is given back by
the system when its process ends, however it ends.
"""

import contextlib
import ctypes
import mmap
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import lock_descriptor

if TYPE_CHECKING:
    import numpy as np

ENDINGS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
"""The signals that ask a command to end in good order, in words."""
LOST_TERMINAL = getattr(signal, "SIGHUP", None)  # Windows has none
if LOST_TERMINAL is not None:
    ENDINGS[LOST_TERMINAL] = "the end of its terminal (SIGHUP)"


def heeded() -> list[int]:
    """Those of ``ENDINGS`` that this process listens to: nohup lets SIGHUP pass."""
    return [number for number in ENDINGS if number != LOST_TERMINAL or signal.getsignal(number) != signal.SIG_IGN]


class Lock:
    """A file that at most one process has at a time, with a line in it that says which."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> str | None:
        """Take it until this process ends: None, or who has it; an OSError where the file cannot be made."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if not lock_descriptor(descriptor, blocking=False):
            with contextlib.suppress(OSError):  # what is locked cannot be read everywhere
                owner = os.read(descriptor, 100).decode(errors="replace").strip()
            os.close(descriptor)
            return owner or "unknown"
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
        return None

    def release(self) -> None:
        """Give it back, if it was taken."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock, and have it meanwhile."""
    with path.open("w") as file:
        lock_descriptor(file.fileno())
        yield


def is_locked(path: Path) -> bool:
    """Whether a process has the lock; no if there is no such file, or none that can be opened."""
    try:
        with path.open("rb") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has this number and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def cores() -> list[int]:
    """The processor cores that this process may use; all of them where the system does not pin."""
    try:
        return sorted(psutil.Process().cpu_affinity() or [])
    except (AttributeError, psutil.Error):  # macOS
        return list(range(os.cpu_count() or 1))


def pin(chosen: Sequence[int]) -> None:
    """Use these cores alone, where the system can."""
    with contextlib.suppress(AttributeError, psutil.Error):
        psutil.Process().cpu_affinity(list(chosen))


def private_memory(pid: int | None) -> int:
    """Bytes of a process that belong to it alone: what it maps and shares with its parent does not count on Linux."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended


def reset_peak_memory() -> None:
    """Begin to measure the process's largest resident set anew; only Linux lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes of the process's largest resident set."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info()._asdict()["peak_wset"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_pages(mapped: "np.memmap") -> None:
    """Let go of what has been read of a mapped file; nothing where the system has no such call: it keeps the pages
    until somebody needs the memory.
    """
    advice, mapping = getattr(mmap, "MADV_DONTNEED", None), getattr(mapped, "_mmap", None)
    if advice is not None and mapping is not None:
        mapping.madvise(advice)


def process_context() -> ForkServerContext | SpawnContext:
    """How processes are started: forked from a server that has everything imported, or anew where nothing forks."""
    return get_context("forkserver") if "forkserver" in get_all_start_methods() else get_context("spawn")


def leave_terminal() -> None:
    """Be no part of the terminal's group of processes: Ctrl-C is the parent's business."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def die_with_parent() -> None:
    """End at once when the process that asked ``multiprocessing`` for this one does, however it ends."""
    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG: the parent is the fork server, which ends when the one who asked has
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        psutil.Process().kill()

    threading.Thread(target=watch, daemon=True).start()


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where a folder can be opened for that."""
    if os.name == "nt":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
