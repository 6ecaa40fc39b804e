"""SLURM through submitit's local executor, and a local Ray: the same cells, the same results."""

import importlib.util
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dgmbench.bench.executors import Executor, check_executor, make_executor
from dgmbench.bench.worker import Outcome, Task
from dgmbench.config import compose
from dgmbench.runs.run import train

from ..processes import until

OWN = Path(__file__).parent / "own"
SETTINGS: dict[str, dict[str, Any]] = {
    "slurm": {"slots": 4, "threads": 1, "gpus": 0, "time": "120s", "memory": "4GiB", "partition": None,
              "cluster": "local"},
    "ray": {"address": None, "slots": 4, "threads": 1, "gpus": 0, "time": None, "memory": None},
}  # fmt: skip
WORDS = ("trainer.budget=4ba", "protocol=quick", "protocol.quality.samples=50", "protocol.semi_supervised.labels=[]",
         "hardware.threads=1")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One Ray for all tests of this file, if there is one."""
    if importlib.util.find_spec("ray") is None:
        yield
        return
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Ray's own workers are nice to everybody else; on a busy machine they would hardly run
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        yield
        ray.shutdown()


@pytest.fixture(params=SETTINGS)
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executor]:
    pytest.importorskip({"slurm": "submitit", "ray": "ray"}[request.param])
    found = make_executor(check_executor({"name": request.param, **SETTINGS[request.param]}), tmp_path)
    yield found
    found.close()


def collect(executor: Executor, *names: str) -> dict[str, Outcome]:
    """The outcomes of these cells, however long they take."""
    found: dict[str, Outcome] = {}
    until(lambda: found.update(executor.wait(1.0)) or found.keys() >= set(names), f"{names} end")
    return found


def task(folder: Path, name: str, *words: str) -> Task:
    return Task(id=name, overrides=[*WORDS, *words], folder=str(folder), config_dirs=[str(OWN)], threads=1)


def hanging(folder: Path) -> list[str]:
    """A cell that says that it trains, and trains for ever."""
    return ["model=troubled", "model.trouble=hang", f"model.marks={folder}", "trainer.budget=1000000ba"]


def test_cells_run_fail_and_stop_as_they_do_locally(executor: Executor, tmp_path: Path) -> None:
    made = ["model=made", "model.hidden_sizes=[4]"]
    executor.submit([task(tmp_path, "good", *made), task(tmp_path, "dead", "model=troubled", "model.trouble=exit")])
    found = collect(executor, "good", "dead")
    assert {name: outcome.status for name, outcome in found.items()} == {"good": "done", "dead": "failed"}
    assert found["dead"].reason
    run = found["good"].run
    assert run is not None
    quiet = ["trainer.progress=false", f"paths.outputs={tmp_path / 'alone'}"]
    alone = train(compose("train", [*made, *WORDS, *quiet]))
    assert alone.run.name == run
    assert alone.result["metrics"] == json.loads((tmp_path / run / "result.json").read_text())["metrics"]

    executor.submit([task(tmp_path, "long", *hanging(tmp_path))])
    until((tmp_path / "begun").exists, "the cell trains")
    assert executor.wait(0.0) == []
    executor.interrupt()
    assert collect(executor, "long")["long"].status == "interrupted"


def test_rays_time_limit_counts_from_a_cells_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that waits for cores while another one uses up its time is not stopped for that."""
    ray = pytest.importorskip("ray")
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("dgmbench.bench.executors.ray.time", SimpleNamespace(monotonic=lambda: clock.now))
    everything = {**SETTINGS["ray"], "threads": os.cpu_count(), "time": "600s"}  # so one at a time
    executor = make_executor(check_executor({"name": "ray", **everything}), tmp_path)
    try:
        words = {"hangs": hanging(tmp_path), "waits": ["model=made", "model.hidden_sizes=[4]"]}
        executor.submit([task(tmp_path, name, *own) for name, own in words.items()])
        until((tmp_path / "begun").exists, "the cell trains")
        until(lambda: executor.wait(0.0) or executor._since, "the first is known to have begun")  # type: ignore[attr-defined]
        assert list(executor._since) == ["hangs"]  # type: ignore[attr-defined]
        clock.now = 601.0
        found = collect(executor, "hangs", "waits")
    finally:
        executor.close()
    assert {name: outcome.status for name, outcome in found.items()} == {"hangs": "timeout", "waits": "done"}
    assert ray.is_initialized(), "what was there before stays"
