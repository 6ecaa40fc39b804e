"""SLURM through submitit's local executor, and a local Ray: the same cells, the same results."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dgmbench.bench.executors import Executor, check_executor, make_executor
from dgmbench.bench.worker import Outcome, Task
from dgmbench.config import compose
from dgmbench.runs.run import train

OWN = Path(__file__).parent / "own"
SETTINGS: dict[str, dict[str, Any]] = {
    "slurm": {"slots": 4, "threads": 1, "gpus": 0, "time": "120s", "memory": "4GiB", "partition": None,
              "cluster": "local"},
    "ray": {"address": None, "slots": 4, "threads": 1, "gpus": 0, "time": None, "memory": None},
}  # fmt: skip
WORDS = ("trainer.budget=4ba", "protocol=quick", "hardware.threads=1")


@pytest.fixture(autouse=True)
def equal_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own workers are nice to everybody else; on a busy machine they would hardly run."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture(params=SETTINGS)
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executor]:
    pytest.importorskip({"slurm": "submitit", "ray": "ray"}[request.param])
    found = make_executor(check_executor({"name": request.param, **SETTINGS[request.param]}), tmp_path)
    yield found
    found.close()


def collect(executor: Executor, number: int, tries: int = 100) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for _ in range(tries):
        found.update(executor.wait(2.0))
        if len(found) == number:
            break
    return found


def test_cells_run_fail_and_stop_as_they_do_locally(executor: Executor, tmp_path: Path) -> None:
    def task(name: str, *words: str) -> Task:
        return Task(id=name, overrides=[*WORDS, *words], folder=str(tmp_path), config_dirs=[str(OWN)], threads=1)

    made = ["model=made", "model.hidden_sizes=[4]"]
    executor.submit([task("good", *made), task("dead", "model=troubled", "model.trouble=exit")])
    found = collect(executor, 2)
    assert {name: outcome.status for name, outcome in found.items()} == {"good": "done", "dead": "failed"}
    assert found["dead"].reason
    run = found["good"].run
    assert run is not None
    quiet = ["trainer.progress=false", f"paths.outputs={tmp_path / 'alone'}"]
    alone = train(compose("train", [*made, *WORDS, *quiet]))
    assert alone.run.name == run
    assert alone.result["metrics"] == json.loads((tmp_path / run / "result.json").read_text())["metrics"]

    executor.submit([task("long", "model=troubled", "model.trouble=hang", "trainer.budget=100000ba")])
    assert executor.wait(2.0) == []
    executor.interrupt()
    assert collect(executor, 1, tries=20)["long"].status == "interrupted"


def test_rays_time_limit_counts_from_a_cells_begin(tmp_path: Path) -> None:
    """A cell that waits for cores while another one uses up its time is not stopped for that."""
    import os

    pytest.importorskip("ray")
    everything = {**SETTINGS["ray"], "threads": os.cpu_count(), "time": "25s"}  # so one at a time
    executor = make_executor(check_executor({"name": "ray", **everything}), tmp_path)
    try:
        words = [["model=troubled", "model.trouble=hang", "trainer.budget=100000ba"], ["model=made"]]
        executor.submit(
            [
                Task(id=name, overrides=[*WORDS, *own], folder=str(tmp_path), config_dirs=[str(OWN)], threads=1)
                for name, own in zip(("hangs", "waits"), words, strict=True)
            ]
        )
        found = collect(executor, 2)
    finally:
        executor.close()
    assert {name: outcome.status for name, outcome in found.items()} == {"hangs": "timeout", "waits": "done"}
