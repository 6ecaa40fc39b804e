"""``trainer.patience`` ends a training early and for good; ``trainer.dry_run`` tries everything and keeps nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.command import main as cli
from dgmbench.config import complete, compose, config_hash
from dgmbench.evaluation.metrics import Metric
from dgmbench.models.contract import Stage
from dgmbench.models.vae.vae import Vae
from dgmbench.runs.selection import Selection
from dgmbench.training.files import read_checkpoint

WORDS = (
    "model=made", "data=npz", "model.hidden_sizes=[8]", "optimizer.lr=1", "trainer.batch_size=50",
    "trainer.samples=100ep", "trainer.validate=1ba", "trainer.progress=false", "hardware=cpu", "hardware.threads=1",
    "protocol=quick", "protocol.quality.samples=20", "protocol.quality.features=[]",
    "protocol.semi_supervised.labels=[]",
)  # fmt: skip


def train(folder: Path, *words: str) -> tuple[Path, dict[str, Any]]:
    """Values whose objective is best after the third batch of ten, and never so good again for long."""
    bits = (torch.rand(200, 12, generator=torch.Generator().manual_seed(0)) < 0.3).to(torch.uint8)
    if not (folder / "bits.npz").exists():
        np.savez(folder / "bits.npz", x_train=bits.numpy(), y_train=np.arange(200) % 2)
    paths = (f"data.path={folder / 'bits.npz'}", f"paths.outputs={folder / words[0]}", f"paths.data={folder / 'root'}")
    assert cli.main(["train", *WORDS, *paths, *words]) == 0
    (run,) = (folder / words[0]).glob("made-*")
    return run, json.loads((run / "result.json").read_text())


def test_a_run_without_gain_stops_where_a_smaller_budget_would_have_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, result = train(tmp_path, "trainer.budget=20ba", "trainer.patience=2")
    assert (result["cost"]["batches"], result["objective"]["images"], result["stopped_early"]) == (5, 150, True)
    assert "trained and stopped early; best log_likelihood" in capsys.readouterr().out
    whole, other = train(tmp_path, "trainer.budget=5ba")
    assert not other["stopped_early"]
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (stopped, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    values = [{name: each["value"] for name, each in found["metrics"].items()} for found in (result, other)]
    assert values[0] == values[1]

    (stopped / "result.json").unlink()  # killed while it measured: what has stopped does not go on
    again = train(tmp_path, "trainer.budget=20ba", "trainer.patience=2")[1]
    assert again["cost"]["batches"] == 5
    assert again["metrics"] == result["metrics"]


def test_validations_without_gain_are_counted_since_the_best_of_the_stage() -> None:
    selection = Selection({}, compare=False)

    def after(images: int, value: float, stage: str = "a") -> int:
        metric = Metric(value, "nats", "exact", "higher")
        selection.consider("log_likelihood", metric, {"images": images, "epoch": 0.0, "stage": stage})
        return selection.without_gain(stage)

    assert [after(i, value) for i, value in enumerate([-3.0, -2.0, -2.5, float("nan"), -1.0])] == [0, 0, 1, 2, 0]
    assert [after(5, -9.0, "b"), after(6, -9.5, "b")] == [0, 1]
    assert Selection({}, compare=False).without_gain("a") == 0


def test_patience_is_part_of_a_run_s_name_and_its_absence_is_not() -> None:
    completed = complete(compose("train", ["model=vae"]))
    trainer = completed["trainer"]
    before = {key: value for key, value in trainer.items() if key not in ("patience", "dry_run")}
    name = config_hash(completed, "data")
    assert config_hash({**completed, "trainer": before}, "data") == name
    assert config_hash({**completed, "trainer": trainer | {"patience": 3}}, "data") != name


def test_a_dry_run_goes_all_the_way_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    halves = (Stage("first", ("model",), share=0.5), Stage("second", ("model",), share=0.5))
    monkeypatch.setattr(Vae, "stages", lambda self: halves)
    words = ["model=vae", "hardware=cpu", f"paths.outputs={tmp_path / 'out'}", "trainer.dry_run=true", "logger=csv"]
    assert cli.main(["train", *words]) == 0
    said = capsys.readouterr().out
    assert "dry run of vae on digits_binary: 2 batches of 100, a validation (elbo), samples and" in said
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["train", *words[:3], "-m", "seed=0,1", words[3]]) == 2
    assert "leave it out of sweeps" in capsys.readouterr().err
