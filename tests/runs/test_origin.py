"""Going on from a finished run, and starting from another one's weights: what is equal, said and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dgmbench.command import main as cli
from dgmbench.data import DataSpec
from dgmbench.models.contract import Facts, Model, Stage
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.load import load_run
from dgmbench.runs.origin import _paced
from dgmbench.training.files import read_checkpoint
from dgmbench.training.plan import make_plan
from dgmbench.training.tensors import weights_hash

SMALL = (
    "model=vae", "model.hidden_sizes=[8]", "model.latent=2", "trainer.progress=false", "hardware=cpu",
    "hardware.threads=1", "protocol=quick", "protocol.max_examples=10", "protocol.quality.samples=10",
    "protocol.quality.features=[]", "protocol.semi_supervised.labels=[]", "protocol.splits=[test]",
)  # fmt: skip


def train(outputs: Path, *words: str) -> Path:
    before = set(outputs.glob("*"))
    assert cli.main(["train", *SMALL, f"paths.outputs={outputs}", *words]) == 0
    (folder,) = set(outputs.glob("*-*")) - before
    return folder


def go_on(run: Path, *words: str, outputs: Path) -> Path:
    assert cli.main(["train", f"run={run}", f"paths.outputs={outputs}", *words]) == 0
    (folder,) = outputs.glob("*-*")
    return folder


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Nested containers of tensors and plain values, bit by bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four batches with averaged weights, its end between two validations."""
    return train(tmp_path_factory.mktemp("short"), "trainer.budget=4ba", "trainer.validate=3ba", "trainer.ema=0.9")


def same_training(longer: Path, whole: Path) -> None:
    """Weights, optimisers, averages, generator, choice of checkpoint and numbers."""
    assert longer.name == whole.name
    for file in ("last.ckpt", "best.ckpt"):
        mine, theirs = (read_checkpoint(run / "checkpoints" / file) for run in (longer, whole))
        assert_equal(mine["state_dict"], theirs["state_dict"])
        for part in ("optimizers", "ema"):
            assert_equal(mine["dgmbench"][part], theirs["dgmbench"][part], part)
        assert torch.equal(mine["dgmbench"]["rng"]["torch"], theirs["dgmbench"]["rng"]["torch"])
        for part in ("best", "validated", "between"):
            assert_equal(mine["run"][part], theirs["run"][part], part)
    assert result(longer)["metrics"] == result(whole)["metrics"]


def test_a_larger_budget_goes_on_as_if_it_had_been_there_from_the_beginning(short: Path, tmp_path: Path) -> None:
    longer = go_on(short, "trainer.budget=8ba", outputs=tmp_path / "on")
    whole = train(tmp_path / "whole", "trainer.budget=8ba", "trainer.validate=3ba", "trainer.ema=0.9")
    same_training(longer, whole)
    record = result(longer)["origin"]["continued"]
    assert record["run"] == short.name
    assert record["images"] == 400
    assert record["exact"]
    assert record["sha256"] == weights_hash(read_checkpoint(RunFolder(short).last)["state_dict"])
    again = go_on(longer, "trainer.epochs=1", outputs=tmp_path / "further")  # a chain of two, named as from the start
    assert result(again)["origin"]["continued"]["before"] == record
    assert result(again)["origin"]["continued"]["exact"]


def test_it_needs_its_origin_only_to_begin(short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(short, tmp_path / "source" / short.name))
    longer = go_on(source, "trainer.budget=6ba", outputs=tmp_path / "on")
    shutil.rmtree(source)
    capsys.readouterr()
    assert cli.main(["rerun", str(longer)]) == 0
    assert "was done already" in capsys.readouterr().out
    assert cli.main(["rerun", str(longer), "--fresh", str(tmp_path / "fresh")]) == 2
    assert f"The run {short.name} that this one comes from is not at {source} any more" in capsys.readouterr().err


def test_a_schedule_over_the_budget_is_said_and_named(short: Path, tmp_path: Path) -> None:
    falling = ("optimizer.schedule.name=linear", "trainer.validate=2ba")
    source = train(tmp_path / "source", "trainer.budget=4ba", *falling)
    longer = go_on(source, "trainer.budget=6ba", outputs=tmp_path / "on")
    whole = train(tmp_path / "whole", "trainer.budget=6ba", *falling)
    assert longer.name != whole.name
    record = result(longer)["origin"]["continued"]
    assert record["because"] == ["optimizer.schedule.name=linear falls over the budget"]
    assert not record["exact"]
    assert load_run(longer).sample(2).shape == (2, 1, 8, 8)  # its name follows from its own configuration
    assert cli.main(["evaluate", f"run={longer}", *SMALL[4:], "protocol.k=2"]) == 0


def test_best_weights_that_the_larger_budget_would_not_have_seen(short: Path, tmp_path: Path) -> None:
    """A validation between two periods, at the end, is forgotten: also where its weights were the best."""
    last = read_checkpoint(RunFolder(short).last)["run"]
    assert last["between"]["best"]["images"] == 300
    assert last["best"]["images"] == 400  # else this test shows nothing
    assert read_checkpoint(RunFolder(short).second)["dgmbench"]["clock"]["images"] == 300
    longer = go_on(short, "trainer.budget=5ba", outputs=tmp_path / "on")
    assert [each["images"] for each in read_checkpoint(RunFolder(longer).last)["run"]["validated"]] == [300, 500]
    lost = Path(shutil.copytree(short, tmp_path / "lost" / short.name))
    RunFolder(lost).second.unlink()
    record = result(go_on(lost, "trainer.budget=5ba", outputs=tmp_path / "off"))["origin"]["continued"]
    assert record["because"] == ["the best weights are those of its end, where the larger budget has no validation"]


def test_a_run_that_stopped_early_needs_more_patience(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.validate=1ba", "optimizer.lr=0")  # no validation is better than the first
    source = train(tmp_path / "source", "trainer.budget=9ba", "trainer.patience=2", *words)
    assert result(source)["stopped_early"]
    assert cli.main(["train", f"run={source}", "trainer.budget=12ba"]) == 2
    assert "stopped early, by trainer.patience=2" in capsys.readouterr().err
    longer = go_on(source, "trainer.budget=12ba", "trainer.patience=4", outputs=tmp_path / "on")
    same_training(longer, train(tmp_path / "whole", "trainer.budget=12ba", "trainer.patience=4", *words))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trainer.budget=4ba"], "trainer.budget=4ba is 4 batches, and {run} has had 4: give a larger one"),
        (["trainer.budget=3ba"], "is 3 batches"),
        ([], "Say how far run={run} is to go, in all"),
        (["trainer.budget=8ba", "optimizer.lr=1"], "optimizer.lr=1 cannot be changed of a run that goes on"),
    ],
)
def test_what_a_run_does_not_go_on_with(
    words: list[str], sentence: str, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", f"run={short}", *words]) == 2
    assert sentence.format(run=short) in capsys.readouterr().err


def test_the_setting_itself_compares_all_others(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"trainer.continue_from={short}", "trainer.budget=8ba", f"paths.outputs={tmp_path}"]
    assert cli.main(["train", *SMALL, *words]) == 2
    assert "was trained with trainer.ema=0.9, and this command says 0.0" in capsys.readouterr().err
    assert not list(tmp_path.glob("vae*"))


def test_a_model_that_paces_itself_is_noticed() -> None:
    spec = DataSpec((4,), "binary")

    class Asks(Model):
        def prepare(self, facts: Facts) -> None:
            self.total = sum(facts.updates.values())

    class Looks(Model):
        def prepare(self, facts: Facts) -> None:
            self.size = facts.examples

    class Advances(Model):
        def advance(self, stage: Stage, share: float) -> None:
            self.share = share

    trainer = {"budget": "4ba", "batch_size": 10, "accumulate": 1, "validate": "2ba", "samples": "2ba"}
    trainer |= {"checkpoint": "60s", "clip": None, "ema": 0.0}
    plan = make_plan(trainer, images_per_epoch=100, stages=Model(spec).stages())
    assert [_paced(kind(spec), plan) for kind in (Model, Asks, Looks, Advances)] == [False, True, False, True]


def test_training_starts_from_weights(short: Path, tmp_path: Path) -> None:
    words = ("trainer.budget=1ba", "optimizer.lr=0", f"trainer.start_from={short}", "seed=5")
    started = train(tmp_path, *words)
    mine, theirs = (load_run(run).model.state_dict() for run in (started, short))
    assert mine.pop("step") == theirs["step"] + 1
    assert_equal(mine, {name: value for name, value in theirs.items() if name != "step"})  # at a rate of zero
    record = result(started)["origin"]["started"]
    assert record["run"] == short.name
    assert record["sha256"] == weights_hash(theirs)
    fresh = train(tmp_path, *words[:2], *words[3:])
    assert fresh.name != started.name
    assert weights_hash(load_run(fresh).model.state_dict()) != record["sha256"]
    # and it goes on, too, from where it started
    longer = go_on(started, "trainer.budget=2ba", outputs=tmp_path / "on")
    assert result(longer)["origin"]["started"] == record


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["model.latent=3"], "its encoder.3.weight is (4, 8), this model's (6, 8)"),
        (["data=digits"], "its data have kind=binary, these discrete"),
    ],
)
def test_weights_of_another_space_or_size_are_refused(
    words: list[str], reason: str, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"trainer.start_from={short}", f"paths.outputs={tmp_path}", *words]
    assert cli.main(["train", *SMALL, *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*-*"))


def test_starting_values_are_not_taken_anew(tmp_path: Path) -> None:
    """Visible biases, which a new training takes from the data, are those of the run that it starts from."""
    words = ("model=rbm", "model.hidden=3", "trainer.budget=2ba", *SMALL[3:], "protocol.ais.chains=2")
    words = (*words, "protocol.ais.temperatures=10", f"paths.outputs={tmp_path}")
    assert cli.main(["train", *words, "optimizer.lr=0.5"]) == 0
    (first,) = tmp_path.glob("rbm-*")
    assert cli.main(["train", *words, "optimizer.lr=0", f"trainer.start_from={first}"]) == 0
    (other,) = set(tmp_path.glob("rbm-*")) - {first}
    theirs, mine = (dict(load_run(run).model.named_parameters()) for run in (first, other))
    assert_equal(dict(theirs), dict(mine))
