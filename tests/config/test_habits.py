"""Words from other tools are understood, or pointed to the right one."""

from pathlib import Path

import pytest

from dgmbench.command import main as cli
from dgmbench.config import complete, compose
from dgmbench.config.habits import HABITS, understood
from dgmbench.config.overrides import rewrite


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("trainer.epochs=7", "budget", "7ep"),
        ("max_epochs=7ep", "budget", "7ep"),
        ("max_steps=3e3", "budget", "3e3ba"),
        ("batch_size=32", "batch_size", 32),
        ("patience=4", "patience", 4),
    ],
)
def test_habits_of_the_trainer(word: str, key: str, value: object) -> None:
    assert complete(compose("train", ["model=vae", word]))["trainer"][key] == value


@pytest.mark.parametrize("word", ["lr=0.5", "learning_rate=0.5", "optimizer.learning_rate=0.5", "trainer.lr=0.5"])
def test_habits_of_the_learning_rate(word: str) -> None:
    assert complete(compose("train", ["model=vae", word]))["optimizer"]["lr"] == 0.5


def test_habits_of_other_groups() -> None:
    cfg = compose("train", ["model=vae", "dataset=digits", "device=cpu", "output_dir=somewhere", "precision=bf16"])
    assert (cfg.data.name, cfg.hardware.accelerator, cfg.paths.outputs) == ("digits", "cpu", "somewhere")
    assert cfg.hardware.precision == "bf16"
    assert compose("sample", ["run=x", "y=3"]).label == 3
    assert understood("device=cuda") == "hardware=gpu"


def test_sweeps_keep_every_value_and_own_words_stay() -> None:
    assert rewrite(["epochs=10,20"], multirun=True) == ["trainer.budget=10ep,20ep"]
    assert understood("epochs=range(1,3)") == "trainer.budget=range(1,3)"
    assert all(understood(f"{key}=1") == f"{key}=1" for key, _ in HABITS.values())
    assert understood("model.lr=1") == "model.lr=1"


def test_a_group_of_one_s_own_comes_before_a_habit(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("a: 1")
    assert understood("dataset=mine", [tmp_path]) == "dataset=mine"


def test_cfg_job_and_lists_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "model=vae", "--cfg"]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["train", "--cfg", "job", "model=vae"]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["list", "model=vae"]) == 0
    page = capsys.readouterr().out
    assert cli.main(["list", "vae"]) == 0
    assert capsys.readouterr().out == page
    assert cli.main(["list", "mnist"]) == 2
    assert "'mnist' is one of data: dgm list data shows them all" in capsys.readouterr().err
