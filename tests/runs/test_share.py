"""Weights as safetensors in a folder to share: read as a run is, compared with their hash, no word of their owner."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dgmbench.command import main as cli
from dgmbench.runs.load import load_run

SMALL = (
    "model=vae", "model.hidden_sizes=[8]", "model.latent=2", "trainer.progress=false", "hardware=cpu",
    "hardware.threads=1", "protocol=quick", "protocol.max_examples=10", "protocol.quality.samples=10",
    "protocol.quality.features=[]", "protocol.semi_supervised.labels=[]", "protocol.splits=[test]",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("secret_place")
    words = ("trainer.budget=3ba", "trainer.validate=2ba", "trainer.ema=0.9", f"paths.outputs={outputs}")
    assert cli.main(["train", *SMALL, *words]) == 0
    (folder,) = outputs.glob("vae-*")
    return folder


@pytest.fixture(scope="module")
def shared(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("shared") / "my_vae"
    assert cli.main(["export", f"run={run}", "what=weights", f"to={target}"]) == 0
    return target


def test_it_is_the_run_for_whoever_has_the_folder(run: Path, shared: Path) -> None:
    mine, theirs = load_run(shared), load_run(run)
    assert torch.equal(mine.sample(20, seed=3), theirs.sample(20, seed=3))
    assert mine.result is not None
    assert theirs.result is not None
    assert mine.result["metrics"] == theirs.result["metrics"]
    assert mine.spec == theirs.spec
    assert mine.images == theirs.images == theirs.result["objective"]["images"]
    tensors = load_file(shared / "model.safetensors")
    assert tensors.keys() == theirs.model.state_dict().keys()  # what other programs see: averaged weights
    assert all(torch.equal(value, tensors[name]) for name, value in theirs.model.state_dict().items())


def test_verbs_take_it_and_its_page_has_the_numbers(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(shared, tmp_path / "downloaded"))
    assert cli.main(["sample", f"run={copy}", "n=4"]) == 0
    assert list((copy / "samples").glob("*.npz"))
    one = ("protocol=quick", "protocol.max_examples=10", "protocol.quality.samples=10", "protocol.quality.features=[]")
    assert (
        cli.main(["evaluate", f"run={copy}", "hardware=cpu", *one, "protocol.checkpoint=[best]", "protocol.k=2"]) == 0
    )
    start = ("trainer.budget=1ba", f"trainer.start_from={copy}", f"paths.outputs={tmp_path / 'o'}")
    assert cli.main(["train", *SMALL, *start]) == 0
    capsys.readouterr()
    assert cli.main(["sample", f"run={copy}", "n=4", "checkpoint=final"]) == 2
    assert "holds the best weights of its run only, not the final ones" in capsys.readouterr().err
    assert cli.main(["train", f"run={copy}", "trainer.budget=5ba"]) == 2
    assert "has no last.ckpt to go on from; trainer.start_from=DIR takes weights" in capsys.readouterr().err
    page = (shared / "README.md").read_text()
    result = json.loads((shared / "result.json").read_text())
    assert f"| elbo | {result['metrics']['elbo']['value']:.6g} |" in page
    assert "Kingma" in page


def test_it_tells_nothing_of_its_owner(shared: Path) -> None:
    for file in shared.iterdir():
        assert b"secret_place" not in file.read_bytes(), file.name
        assert str(Path.home()).encode() + b"/" not in file.read_bytes(), file.name


@pytest.mark.parametrize("change", ["weights", "file", "config", "spec", "foreign"])
def test_what_was_changed_is_refused(
    change: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(shared, tmp_path / "copy"))
    file = copy / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    if change == "weights":
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, file, metadata=metadata)
    elif change == "file":
        file.write_bytes(file.read_bytes()[:-8])
    elif change == "foreign":
        save_file(tensors, file)
    else:
        name, old, new = {"config": ("config.yaml", "lr: 0.001", "lr: 0.002"), "spec": ("spec.json", "8", "9")}[change]
        assert old in (copy / name).read_text()
        (copy / name).write_text((copy / name).read_text().replace(old, new, 1))
    assert cli.main(["sample", f"run={copy}"]) == 2
    sentence = {
        "weights": "are not those that were written",
        "file": "model.safetensors are damaged",
        "config": "belongs to the run vae-digits_binary-s0-",
        "spec": "spec.json is damaged",
        "foreign": "was not written by 'dgm export run=DIR what=weights'",
    }
    assert sentence[change] in capsys.readouterr().err


def test_a_missing_package_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.delattr("safetensors.torch", raising=False)
    assert cli.main(["export", f"run={run}", "what=weights", f"to={tmp_path / 'x'}"]) == 2
    assert "pip install safetensors" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
