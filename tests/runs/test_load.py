"""``load_run``: a finished run as an object, from its folder alone."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dgmbench
from dgmbench.command import main as cli
from dgmbench.data import DataSpec, load
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.runs import load as loading
from dgmbench.runs.build import load_data
from dgmbench.runs.folder import RunFolder
from dgmbench.training.files import read_checkpoint

QUICK = (
    "protocol=quick", "hardware=cpu", "hardware.threads=1", "trainer.progress=false", "trainer.samples=100ep",
    "trainer.validate=1ba", "protocol.quality.samples=20", "protocol.quality.features=[]",
    "protocol.semi_supervised.labels=[]",
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MADE that got worse after its best checkpoint, trained on a user's arrays in relative paths."""
    folder = tmp_path_factory.mktemp("run")
    bits = (torch.rand(200, 12, generator=torch.Generator().manual_seed(0)) < 0.3).to(torch.uint8)
    np.savez(folder / "bits.npz", x_train=bits.numpy(), y_train=np.arange(200) % 2)
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = ("model=made", "data=npz", "data.path=bits.npz", "paths.outputs=out", "paths.data=data")
        more = (
            "trainer.budget=6ba",
            "model.hidden_sizes=[8]",
            "optimizer.lr=1",
            "trainer.batch_size=50",
            "protocol.max_examples=null",
        )
        assert cli.main(["train", *QUICK, *words, *more]) == 0
    finally:
        os.chdir(before)
    (found,) = (folder / "out").glob("made-*")
    return found


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In another folder, where reading data is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr(loading, "load_data", refuse)
    monkeypatch.setattr("dgmbench.runs.sampling.load_data", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("without_data")
def test_a_run_is_loaded_without_its_data_while_another_process_owns_it(path: Path) -> None:
    owner = RunFolder(path)
    owner.acquire()
    try:
        run = dgmbench.load_run(path)
    finally:
        owner.release()
    assert run.spec == DataSpec((12,), "binary", num_classes=2)
    assert run.config["names"]["model"] == "made"
    assert run.result is not None
    assert run.result["status"] == "done"
    assert not run.model.training
    best = read_checkpoint(path / "checkpoints" / "best.ckpt")["state_dict"]
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in run.model.state_dict().items())
    last = read_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"]
    assert any(not torch.equal(value, last[name]) for name, value in best.items())


def test_its_log_probabilities_are_those_of_the_evaluation(path: Path) -> None:
    for checkpoint, name in (("best", "log_likelihood"), ("final", "log_likelihood@final")):
        run = dgmbench.load_run(path, checkpoint=checkpoint)  # type: ignore[arg-type]
        nats = run.log_prob(load_data(run.config).splits["test"].x)
        assert nats.shape == (20,)
        assert float(nats.double().mean()) == pytest.approx(run.result["metrics"][name]["value"], rel=1e-6)  # type: ignore[index]


@pytest.mark.usefixtures("without_data")
def test_dgm_sample_needs_no_data_and_draws_what_the_object_draws(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", f"run={path}", "n=501", "seed=3", "hardware=cpu"]) == 0
    written = np.load(capsys.readouterr().out.splitlines()[-1])["x"]
    drawn = dgmbench.load_run(path, device="cpu").sample(501, seed=3)
    assert drawn.dtype == torch.uint8
    assert np.array_equal(written, drawn.numpy())


def test_paths_are_stored_such_that_they_hold_from_anywhere(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunFolder(path).read_config()
    assert config["data"]["path"] == str(path.parent.parent / "bits.npz")
    assert config["paths"] == {"outputs": str(path.parent), "data": str(path.parent.parent / "data")}
    assert load(config["data"], Path(config["paths"]["data"])).size("test") == 20


def test_runs_of_earlier_versions_take_the_spec_from_the_data(path: Path) -> None:
    spec = path / "spec.json"
    content = spec.read_bytes()
    spec.unlink()
    try:
        assert dgmbench.load_run(path).spec.shape == (12,)
        spec.write_bytes(content[:20])
        with pytest.raises(UserError, match=r"spec\.json is damaged"):
            dgmbench.load_run(path)
    finally:
        spec.write_bytes(content)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (np.zeros((5, 11)), r"x has shape \(5, 11\); binary 12 takes \(n, 12\)"),
        (
            np.full((5, 12), 0.25),
            "holds values from 0.25 to 0.25, some of them fractions, but binary data are integers",
        ),
        (np.full((5, 12), 2), "holds values from 2 to 2, but binary data are integers from 0 to 1"),
    ],
)
def test_values_of_another_space_are_refused(path: Path, x: np.ndarray, sentence: str) -> None:
    run = dgmbench.load_run(path)
    with pytest.raises(UserError, match=sentence):
        run.log_prob(x)
    assert torch.equal(run.log_prob(np.ones((2, 12))), run.log_prob(torch.ones(2, 12, dtype=torch.uint8)))


class Bounded(Model):
    def elbo(self, x: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        return x.sum(1)


def test_what_the_model_or_its_data_do_not_have_is_refused(path: Path) -> None:
    run = dgmbench.load_run(path)
    with pytest.raises(UserError, match="label=1: Made was not trained on labels"):
        run.sample(2, y=1)
    with pytest.raises(UserError, match="have no given with every example: leave given= out"):
        run.sample(2, given=torch.zeros(2, 3))
    with pytest.raises(UserError, match="n=0 must be at least 1"):
        run.sample(0)
    with pytest.raises(UserError, match="checkpoint=last must be best or final"):
        dgmbench.load_run(path, checkpoint="last")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Bounded has no exact log-probability; it has model\.elbo"):
        replace(run, model=Bounded(run.spec)).log_prob(torch.zeros(2, 12))
