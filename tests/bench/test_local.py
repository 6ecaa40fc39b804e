"""Local slots: what a cell may use, how it ends, and that its result is that of ``dgm train``."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dgmbench.bench.executors import LocalSettings, check_executor, local, size
from dgmbench.bench.executors.local import LocalExecutor, make_slots, visible_gpus
from dgmbench.bench.worker import Outcome, Task, run_cell
from dgmbench.config import compose
from dgmbench.errors import UserError
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.runs.run import train
from dgmbench.system import is_locked

from ..processes import until

OWN = Path(__file__).parent / "own"
DEFAULTS = {"name": "local", "slots": 2, "threads": 1, "gpus": 0, "cells_per_gpu": 1, "time": None, "memory": None}
QUICK = ["protocol=quick", "protocol.quality.samples=50", "protocol.semi_supervised.labels=[]", "hardware.threads=1"]
# Undirected models are annealed at every validation.
SMALL = {"rbm": ["model.hidden=8"], "rbm_pcd": ["model.hidden=8"]}


def settings(**changes: object) -> LocalSettings:
    return LocalSettings(**check_executor({**DEFAULTS, **changes}))


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    found = LocalExecutor(settings(), tmp_path)
    yield found
    found.close()


def task(folder: Path, name: str, *overrides: str) -> Task:
    return Task(id=name, overrides=overrides, folder=str(folder), config_dirs=[str(OWN)], threads=1)


def outcomes(executor: LocalExecutor, *tasks: Task) -> dict[str, Outcome]:
    """Run the tasks, as many at a time as there are slots, and wait for those that run already."""
    left, found, running = list(tasks), {}, len(executor._running)
    while left or running:
        start = left[: executor.slots - running]
        del left[: len(start)]
        executor.submit(start)
        running += len(start)
        for name, outcome in executor.wait(1.0):
            found[name] = outcome
            running -= 1
    return found


@pytest.mark.parametrize("model", ["made", "rbm_pcd", "wgan_gp"])
def test_a_cells_result_is_that_of_dgm_train(model: str, executor: LocalExecutor, tmp_path: Path) -> None:
    words = [f"model={model}", "seed=3", "trainer.budget=6ba", *QUICK, *SMALL.get(model, [])]
    outcome = outcomes(executor, task(tmp_path, "cell", *words))["cell"]
    assert outcome.status == "done"
    assert outcome.run is not None
    by_hand = tmp_path / "by_hand"
    alone = train(compose("train", [*words, "trainer.progress=false", f"paths.outputs={by_hand}"]))
    assert alone.run.name == outcome.run
    ours, theirs = (json.loads((folder / outcome.run / "result.json").read_text()) for folder in (tmp_path, by_hand))
    for key in ("metrics", "protocols", "objective", "run", "data_hash"):
        assert ours[key] == theirs[key]
    names = [sorted(p.name for p in (folder / outcome.run).rglob("*")) for folder in (tmp_path, by_hand)]
    assert names[0] == names[1]


def test_failures_stay_with_their_cell(tmp_path: Path) -> None:
    executor = LocalExecutor(settings(memory="1GiB"), tmp_path)
    troubles = {
        "raise": ("failed", "the trouble that was asked for"),
        "die": ("failed", "killed by SIGSEGV"),
        "exit": ("failed", "exit code 3"),
        "no memory": ("oom", "memory"),
        "memory": ("oom", "the limit of 1,024 MiB"),
        "nonsense": ("failed", "model.trouble"),
        "none": ("done", None),
    }
    words = ["model=troubled", "trainer.budget=4ba", *QUICK]
    try:
        found = outcomes(executor, *(task(tmp_path, key, *words, f"model.trouble='{key}'") for key in troubles))
    finally:
        executor.close()
    for key, (status, reason) in troubles.items():
        assert found[key].status == status, (key, found[key])
        assert (reason or "") in (found[key].reason or ""), (key, found[key])
    assert found["raise"].run is not None
    assert (tmp_path / found["raise"].run / "traceback.txt").is_file()


def test_cells_of_a_fork_server_that_was_killed_can_be_resumed(
    executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = iter((1, 2))  # the one that forked the cell, and the one that there is when it has died
    monkeypatch.setattr(local, "server_pid", lambda: next(servers))
    words = ["model=troubled", "trainer.budget=4ba", "model.trouble='die'", *QUICK]
    found = outcomes(executor, task(tmp_path, "cell", *words))["cell"]
    assert found.status == "interrupted"
    assert "the process that forks cells was killed" in (found.reason or "")


def test_a_server_that_is_about_to_end_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter((True, True, False))
    monkeypatch.setattr(local, "server_pid", lambda: 7)
    monkeypatch.setattr(local, "alive", lambda pid: next(asked))
    assert local.lost_server(7, local.NOBODY_WAITED)
    monkeypatch.setattr(local, "alive", lambda pid: True)
    assert not local.lost_server(7, 3)
    assert not local.lost_server(None, local.NOBODY_WAITED)
    assert local.lost_server(8, 3)
    monkeypatch.setattr(local, "SERVER_SECONDS", 0.05)
    assert not local.lost_server(7, local.NOBODY_WAITED)


def test_a_cell_that_is_stopped_is_waited_for_while_others_go_on(executor: LocalExecutor, tmp_path: Path) -> None:
    """SIGSTOP takes nothing from it: its locks are kept, it is not called dead, and it ends well after SIGCONT."""
    words = ["model=troubled", "trainer.budget=200ba", "model.trouble=hang", f"model.marks='{tmp_path}'", *QUICK]
    executor.submit([task(tmp_path, "stopped", *words)])
    process = executor._running[0].process
    until(lambda: (tmp_path / "begun").exists(), "it trains")
    os.kill(process.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "it has stopped")
    (tmp_path / "released").touch()
    executor.submit([task(tmp_path, "other", "model=troubled", "trainer.budget=4ba", *QUICK)])
    others = until(lambda: executor.wait(0.5), "the other one ends")
    assert [(name, outcome.status) for name, outcome in others] == [("other", "done")]
    assert executor.wait(0.0) == []
    (run,) = (path for path in tmp_path.glob("troubled-*") if not (path / "result.json").exists())
    assert is_locked(run / ".lock")
    assert is_locked(tmp_path / ".working" / "stopped")
    os.kill(process.pid, signal.SIGCONT)
    found = until(lambda: executor.wait(0.5), "it ends")
    assert [(name, outcome.status) for name, outcome in found] == [("stopped", "done")]


@pytest.mark.parametrize("failures", [2, 3])
def test_a_process_that_cannot_be_forked_is_tried_again(
    failures: int, executor: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Process:
        started, pid = 0, 0

        def __init__(self, **settings: object) -> None: ...

        def start(self) -> None:
            Process.started += 1
            if Process.started <= failures:
                raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(executor, "_context", SimpleNamespace(Process=Process))
    begin = lambda: executor._start(task(tmp_path, "cell"), None, executor._free[0])  # type: ignore[arg-type]
    if failures < local.ATTEMPTS:
        assert isinstance(begin(), Process)
        return
    with pytest.raises(UserError, match=r"No process can be started for cell .*the same command goes on"):
        begin()


def test_the_time_limit_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    words = ["model=troubled", "model.trouble=hang", f"model.marks={tmp_path}", "trainer.budget=1000ba",
             "trainer.validate=1000ba", *QUICK]  # fmt: skip
    executor = LocalExecutor(settings(time="600s"), tmp_path)
    try:
        executor.submit([task(tmp_path, "cell", *words)])
        until((tmp_path / "begun").exists, "the cell trains")
        executor._running[0].deadline = time.monotonic()  # its ten minutes are over
        first = outcomes(executor)["cell"]
        assert first.status == "timeout"
        assert "limit of 600 s" in (first.reason or "")
        assert first.run is not None
        assert (tmp_path / first.run / "checkpoints" / "last.ckpt").is_file()
        (tmp_path / "released").touch()
        assert outcomes(executor, task(tmp_path, "cell", *words))["cell"].status == "done"
    finally:
        executor.close()


def test_a_pair_that_does_not_fit_is_skipped_with_the_reason(executor: LocalExecutor, tmp_path: Path) -> None:
    found = outcomes(executor, task(tmp_path, "cell", "model=rbm", "data=digits", *QUICK))["cell"]
    assert found.status == "skipped"
    assert "model=rbm takes binary data" in (found.reason or "")


def test_a_run_that_another_process_owns_is_left_alone(executor: LocalExecutor, tmp_path: Path) -> None:
    words = ["model=troubled", "trainer.budget=2ba", *QUICK]
    run = outcomes(executor, task(tmp_path, "cell", *words))["cell"].run
    assert run is not None
    (tmp_path / run / "result.json").unlink()
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    lock = tmp_path / run / ".lock"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=pipe, stdout=pipe) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        found = outcomes(executor, task(tmp_path, "cell", *words))["cell"]
    assert found.status == "interrupted"
    assert "another process" in (found.reason or "")


def test_another_protocol_measures_again_without_training(executor: LocalExecutor, tmp_path: Path) -> None:
    words = ["model=vae", "trainer.budget=2ba", *QUICK]
    run = outcomes(executor, task(tmp_path, "a", *words))["a"].run
    assert run is not None
    checkpoint = tmp_path / run / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    assert outcomes(executor, task(tmp_path, "b", *words, "protocol.k=3"))["b"].run == run
    metrics = json.loads((tmp_path / run / "result.json").read_text())["metrics"]
    assert {"iw_bound_k10", "iw_bound_k3"} <= set(metrics)
    assert checkpoint.stat().st_mtime_ns == before


@pytest.mark.parametrize("model", ["made", "vae", "rbm", "gan"])
def test_a_cell_is_measured_once_under_each_protocol(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a family's numbers depend on; also by a list of k, and by settings that no number of the model shows."""
    measured: list[Any] = []
    measure = Evaluator.measure

    def counted(self: Evaluator, *arguments: Any, **named: Any) -> Any:
        measured.append(self.context.protocol["k"])
        return measure(self, *arguments, **named)

    monkeypatch.setattr(Evaluator, "measure", counted)

    def run(*more: str) -> dict[str, Any]:
        words = [f"model={model}", "trainer.budget=2ba", *QUICK, *SMALL.get(model, []), "protocol.checkpoint=[best]"]
        words += more
        outcome = run_cell(task(tmp_path, "cell", *words))
        assert outcome.status == "done", outcome.reason
        result: dict[str, Any] = json.loads((tmp_path / (outcome.run or "") / "result.json").read_text())
        return result

    first = run()
    assert run() == first
    assert measured == [10]
    few = run("protocol.k=[1,4]", "protocol.max_examples=50", "protocol.parzen.samples=20")
    assert run("protocol.k=[1,4]", "protocol.max_examples=50", "protocol.parzen.samples=20") == few
    assert measured == [10, [1, 4]]
    assert few["metrics"]["parzen"]["n"] == 50
    again = run()  # nothing is measured again, but names alone stand for what was asked for last
    assert measured == [10, [1, 4]]
    assert {name: again["metrics"][name] for name in first["metrics"]} == first["metrics"]
    assert [entry["protocol"]["k"] for entry in again["measured"]] == [[1, 4], 10]


def test_cores_and_gpus_are_dealt_out() -> None:
    cores = list(range(8))
    assert [slot.cores for slot in make_slots(settings(slots=None, threads=3), cores, [])] == [(0, 1, 2), (3, 4, 5)]
    assert [slot.cores for slot in make_slots(settings(slots=2, threads=4), cores, [])] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert all(slot.cores == () for slot in make_slots(settings(slots=9), cores, []))
    assert len(make_slots(settings(slots=None, threads=16), cores, [])) == 1
    shared = make_slots(settings(slots=None, gpus="auto", cells_per_gpu=2), cores, ["0", "1"])
    assert [slot.gpu for slot in shared] == ["0", "1", "0", "1"]
    assert [slot.cores for slot in shared] == [(0,), (1,), (2,), (3,)]
    assert {slot.gpu for slot in make_slots(settings(gpus=1), cores, ["0", "1"])} == {"0"}
    assert {slot.gpu for slot in make_slots(settings(gpus=0), cores, ["0", "1"])} == {None}


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    assert visible_gpus() == ["2", "GPU-5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


def test_cells_are_pinned(executor: LocalExecutor, tmp_path: Path) -> None:
    words = ["model=troubled", "model.trouble=hang", f"model.marks={tmp_path}", "trainer.budget=1000000ba", *QUICK]
    executor.submit([task(tmp_path, "cell", *words)])
    until((tmp_path / "begun").exists, "the cell trains")
    process, slot = executor._running[0].process, executor._running[0].slot
    assert os.sched_getaffinity(process.pid) == set(slot.cores or os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 0}, "executor.slots=0 leaves nothing"),
        ({"threads": 0}, "executor.threads=0"),
        ({"gpus": "some"}, "executor.gpus=some"),
        ({"gpus": -1}, "executor.gpus=-1"),
        ({"time": "5ep"}, "executor.time=5ep"),
        ({"memory": "4G"}, "executor.memory=4G is not a size"),
        ({"name": "lokal"}, "did you mean local"),
        ({"slot": 3}, "did you mean slots"),
    ],
)
def test_bad_settings_are_sentences(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(**change)


def test_sizes() -> None:
    assert size("1.5KiB") == 1536
    assert size("2 GiB") == 2 * 2**30
    assert size(None) is None
