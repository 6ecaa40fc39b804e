"""Locks, cores, memory and a parent's death, with and without what only Linux has."""

import mmap
import os
import pathlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dgmbench import system
from dgmbench.system import Lock, is_alive, is_locked, locked

from .processes import until

HOLD = (
    "import sys; from pathlib import Path; from dgmbench.system import Lock\n"
    "print(Lock(Path(sys.argv[1])).take(), flush=True); sys.stdin.read()"
)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without Linux' own calls and files: no affinity, no /proc, no prctl."""
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    read, write = pathlib.Path.read_text, pathlib.Path.write_text

    def missing(self: Path, *args: object, **settings: object) -> str:
        if str(self).startswith("/proc"):
            raise FileNotFoundError(self)
        return read(self, *args, **settings)  # type: ignore[arg-type]

    def not_written(self: Path, *args: object, **settings: object) -> int:
        if str(self).startswith("/proc"):
            raise FileNotFoundError(self)
        return write(self, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    monkeypatch.setattr(pathlib.Path, "write_text", not_written)
    monkeypatch.setattr(system.sys, "platform", "other")


def test_a_lock_names_its_owner_and_a_kill_frees_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "None\n"
        assert is_locked(file)
        assert (Lock(file).take() or "").startswith(f"pid {owner.pid} on ")
        owner.kill()
        owner.wait()
    assert not is_locked(file)
    lock = Lock(file)
    assert lock.take() is None
    assert file.read_text().startswith(f"pid {os.getpid()} on ")
    lock.release()
    assert not is_locked(file)


def test_having_a_lock_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert not is_locked(file)  # there is none
    with locked(file):
        assert is_locked(file)
    assert not is_locked(file)


def test_who_is_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert is_alive(os.getpid())
    assert not any(is_alive(pid) for pid in (process.pid, 0, -1, 2**40))


def test_cores_are_those_that_the_system_grants() -> None:
    assert system.cores() == sorted(os.sched_getaffinity(0))


@pytest.mark.usefixtures("bare")
def test_cores_where_nothing_pins() -> None:
    assert len(system.cores()) == os.cpu_count()
    before = os.sched_getaffinity(0)
    system.pin([0])
    assert os.sched_getaffinity(0) == before


def test_memory_of_a_process_grows_by_what_it_takes() -> None:
    before = system.private_memory(os.getpid())
    with mmap.mmap(-1, 2**26) as taken:  # new pages, which nothing freed before can serve
        taken.write(bytes(2**26))
        assert system.private_memory(os.getpid()) - before == pytest.approx(2**26, rel=0.1)
    assert system.private_memory(2**22 + 1) == 0  # no process has this number on Linux


@pytest.mark.usefixtures("bare")
def test_memory_of_a_process_without_linux() -> None:
    before = system.private_memory(os.getpid())
    with mmap.mmap(-1, 2**26) as taken:  # new pages, which nothing freed before can serve
        taken.write(bytes(2**26))
        assert system.private_memory(os.getpid()) - before == pytest.approx(2**26, rel=0.1)
    assert system.private_memory(2**22 + 1) == 0


def test_peak_memory_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch, bare: None) -> None:
    resident = psutil.Process().memory_info().rss
    system.reset_peak_memory()
    assert 0.9 * resident < system.peak_memory() < 100 * resident  # kibibytes elsewhere: 1/1024 of it
    kibibytes = system.peak_memory() // 1024
    monkeypatch.setattr(system.sys, "platform", "darwin")  # where the same figure is of bytes
    assert system.peak_memory() == pytest.approx(kibibytes, rel=0.1)


PARENT = """
import os, sys, time
from dgmbench import system

def work(send, platform, survived):
    system.sys.platform = platform
    system.leave_terminal()
    system.die_with_parent()
    send.send((os.getpid(), os.getpgid(0)))
    time.sleep(60)
    open(survived, "w").close()

if __name__ == "__main__":
    context = system.process_context()
    receive, send = context.Pipe(duplex=False)
    context.Process(target=work, args=(send, *sys.argv[1:]), daemon=True).start()
    print(*receive.recv(), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("platform", ["linux", "other"])
def test_a_child_leaves_the_terminal_and_dies_with_its_parent(platform: str, tmp_path: Path) -> None:
    file = tmp_path / "parent.py"
    file.write_text(PARENT)
    command = [sys.executable, str(file), platform, str(tmp_path / "survived")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, group = map(int, parent.stdout.readline().split())
        assert group == child  # a group of its own
        assert is_alive(child)
        parent.kill()
    until(lambda: not is_alive(child), "the child ends")
    assert not (tmp_path / "survived").exists()
