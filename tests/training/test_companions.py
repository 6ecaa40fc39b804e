"""One of several processes is killed: the others end, in a sentence, and the run resumes as if nothing had happened."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dgmbench.training import companions
from dgmbench.training.companions import STARTER, Deserted, Launcher, Watch, first_failure, together

from ..processes import MINUTES, Forked, free_port, until
from .test_ranks import COMMON, TWO, torchruns

SENTENCE = "Another of the 2 processes of this run has ended"


def pair(folder: Path, kill_at: str) -> list["subprocess.CompletedProcess[str]"]:
    """Two processes of one run, the second of which knows the first as the one that has started it."""
    folder.mkdir(exist_ok=True)
    words = [str(TWO), str(folder), kill_at, *COMMON, "model=made", "hardware.devices=2",
             f"paths.outputs={folder / 'outputs'}"]  # fmt: skip
    port, processes = free_port(), []
    for rank in range(2):
        started = {STARTER: str(processes[0].pid)} if processes else {}
        processes.append(Forked(words, environment={**torchruns(rank, 2, port), **started}))
    return [process.done() for process in processes]


def states(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"rank{rank}.pt")["state"] for rank in range(2)]


def test_one_of_two_that_is_killed_takes_the_other_with_it_and_the_run_resumes_exactly(tmp_path: Path) -> None:
    assert [process.returncode for process in pair(tmp_path / "whole", "0")] == [0, 0]
    cut = tmp_path / "cut"
    first, second = pair(cut, "13:1")
    assert (first.returncode, second.returncode) == (1, -signal.SIGKILL)
    assert SENTENCE in first.stderr.splitlines()[-1]
    (status,) = cut.glob("outputs/*/status.json")
    assert json.loads(status.read_text())["status"] == "interrupted"
    first, second = pair(cut, "23:0")
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 1)
    assert SENTENCE in second.stderr.splitlines()[-1]
    assert [process.returncode for process in pair(cut, "0")] == [0, 0]
    for whole, resumed in zip(states(tmp_path / "whole"), states(cut), strict=True):
        for name, value in whole.items():
            assert torch.equal(resumed[name], value), name


# ---------------------------------------------------------------------- where nothing tells the main thread


def ended(function: Callable[[], object], tmp_path: Path) -> tuple[int, str]:
    """How a process of its own ends that does this, and then waits for ever; what it says."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(round(60 * MINUTES))  # the last resort
        companions.GRACE_SECONDS, companions.EVERY_SECONDS = 0.05, 0.01
        with open(tmp_path / "said", "w") as said:
            companions.sys.stderr = said  # type: ignore[misc]
            try:
                function()
                threading.Event().wait()
            finally:
                os._exit(77)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (tmp_path / "said").read_text()


def launcher(monkeypatch: pytest.MonkeyPatch, *commands: str, external: bool = False) -> Launcher:
    environment: Any = SimpleNamespace(validate_settings=lambda **sizes: None, creates_processes_externally=external)
    made = Launcher(environment, len(commands) + 1, 1)

    def start(self: Launcher) -> None:
        self.procs = [
            subprocess.Popen(["sh", "-c", command], env={**os.environ, "LOCAL_RANK": "1"}) for command in commands
        ]

    monkeypatch.setattr(Launcher, "_call_children_scripts", start)
    return made


@pytest.mark.parametrize(
    ("command", "code", "how"),
    [("kill -9 $$", 1, "(killed by signal 9)"), ("exit 2", 1, "(exit code 2)"), ("exit 143", 143, "(exit code 143)")],
)
def test_a_process_that_waits_for_one_that_has_gone_is_ended(
    command: str, code: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launcher(monkeypatch, command)
    found, said = ended(lambda: made.launch(threading.Event().wait), tmp_path)
    assert found == code
    assert said.startswith(f"dgm: {SENTENCE} {how}")
    assert len(said.splitlines()) == 1


def test_the_others_are_told_who_has_started_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STARTER, raising=False)
    made = launcher(monkeypatch, f'echo "${STARTER}" > {tmp_path / "told"}')
    assert made.launch(lambda: made.procs[0].wait()) == 0
    assert (tmp_path / "told").read_text() == f"{os.getpid()}\n"
    assert STARTER not in os.environ
    assert made.watch is not None
    made.watch.over()


def test_a_process_whose_starter_has_gone_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv(STARTER, str(gone.pid))
    made = launcher(monkeypatch, "true", external=True)
    found, said = ended(lambda: made.launch(threading.Event().wait), tmp_path)
    assert found == 1
    assert said.startswith(f"dgm: {SENTENCE},")


def test_nobody_is_ended_while_all_are_there_or_after_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Semaphore(0)
    watch = Watch(2, lambda: asked.release())
    assert all(asked.acquire(timeout=60) for _ in range(3))
    watch.over()
    until(lambda: not watch.thread.is_alive(), "the watch ends")
    after = Watch(2, lambda: 1)  # within its grace the main thread comes to its end
    after.over()
    until(lambda: not after.thread.is_alive(), "the watch ends")


def broken() -> None:
    """What a collective raises as the connection to another process breaks."""
    code = compile("raise error", f"{companions._BETWEEN}/distributed_c10d.py", "exec")
    exec(code, {"error": RuntimeError("Connection reset by peer")})


def test_which_errors_come_from_between_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STARTER, raising=False)
    for world, error in ((2, Deserted), (1, RuntimeError)):
        with pytest.raises(error), together(world):
            broken()
    with pytest.raises(RuntimeError, match=r"^odd$"), together(2):
        raise RuntimeError("odd")


def test_one_that_was_started_leaves_the_word_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTER, str(os.getpid()))
    with pytest.raises(SystemExit) as silent, together(2):
        broken()
    assert silent.value.code == 1
    monkeypatch.delenv(STARTER)
    with pytest.raises(Deserted), together(2):
        broken()


def test_the_first_failure_counts() -> None:
    good, bad = subprocess.Popen(["true"]), subprocess.Popen(["false"])
    assert (good.wait(), bad.wait()) == (0, 1)
    assert first_failure([good]) is None
    assert first_failure([good, bad]) == 1
