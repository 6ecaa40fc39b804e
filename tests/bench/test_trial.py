"""The time of a cell, told from a few batches: what is added up, and that nothing is kept."""

from pathlib import Path

import pytest

from dgmbench.bench import trial
from dgmbench.bench.trial import Measured, per_batch, seconds_of_training
from dgmbench.bench.worker import Task, run_cell
from dgmbench.config import complete, compose


def told(folder: Path, *words: str) -> float:
    return seconds_of_training(complete(compose("train", [*words, f"paths.outputs={folder}"])))


def task(folder: Path, *words: str) -> Task:
    return Task(id="it", overrides=words, folder=str(folder), trial=True)


def test_batches_validations_and_the_rest_are_added_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def measure(completed, data, model, stream, plan, optimizers) -> Measured:
        asked.append([len(plan.stage_updates(i)) for i in range(len(plan.stages))])
        return Measured(0.0, (0.5, 0.25, 1.0), 8.0)  # of a stage each

    monkeypatch.setattr(trial, "_measure", measure)
    words = ["model=dbn", "model.hidden_sizes=[4,3]", "trainer.budget=60ba", "trainer.validate=20ba"]
    seconds = told(tmp_path, *words, "trainer.batch_size=50")
    # twenty batches of each stage; a validation every twenty, and two more at the stages' ends before the last
    assert 35.0 + 5 * 8.0 <= seconds < 35.0 + 6 * 8.0
    assert asked == [[2, 2, 2]]  # long batches are not asked for again


def test_short_batches_are_measured_again_over_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def measure(completed, data, model, stream, plan, optimizers) -> Measured:
        asked.append(plan.batches)
        return Measured(0.0, (0.001,), 0.0)

    monkeypatch.setattr(trial, "_measure", measure)
    told(tmp_path, "model=made", "model.hidden_sizes=[4]", "trainer.budget=3ep")
    assert asked == [trial.FIRST, trial.MORE]


def test_a_real_trial_measures_every_stage_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: list[Measured] = []
    real = trial._measure
    monkeypatch.setattr(trial, "_measure", lambda *given: found.append(real(*given)) or found[-1])
    words = ["model=dbn", "model.hidden_sizes=[4,3]", "trainer.budget=40ba"]
    outcome = run_cell(task(tmp_path / "none", *words))
    assert (outcome.status, outcome.run) == ("tried", None), outcome.reason
    assert outcome.seconds is not None
    assert outcome.seconds > 0
    assert [len(each.batch) for each in found] == [3, 3]
    assert all(each.validation > 0 and min(each.batch) >= 0 for each in found)
    assert list(tmp_path.iterdir()) == []


def test_a_trial_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("dgmbench.runs.build.load_data", lambda completed: asked.append(completed["data"]) or 1 / 0)
    words = ["model=vae", "data=mnist", "data.download=true", f"paths.data={tmp_path}"]
    assert run_cell(task(tmp_path, *words)).status == "failed"
    assert asked[0]["download"] is False


def test_the_first_batch_of_a_stage_counts_only_where_it_is_alone() -> None:
    rows = [("a", 1, 9.0), ("a", 2, 9.5), ("a", 4, 10.5), ("b", 5, 11.5)]
    found = per_batch([dict(zip(("stage", "batches", "seconds"), row, strict=True)) for row in rows], ["a", "b"])
    assert found == (0.5, 1.0)
    assert Measured(1.0, (0.5, 0.25), 2.0).total([10, 4], 3) == 13.0
