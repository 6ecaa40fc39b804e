"""Checkpoints that are not what was written, or not this run's: refused in a sentence, never measured."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgmbench.command import main as cli
from dgmbench.training.files import AtomicCheckpointIO, is_whole, read_checkpoint

SMALL = (
    "trainer.progress=false", "hardware=cpu", "hardware.threads=1", "protocol=quick", "protocol.max_examples=20",
    "protocol.quality.samples=20", "protocol.semi_supervised.labels=[]", "protocol.splits=[test]",
)  # fmt: skip
EVALUATE = (*SMALL[3:], "protocol.k=2")
Tampered = Callable[..., tuple[int, str]]


def train(outputs: Path, *words: str) -> Path:
    words = (
        "model=vae",
        "trainer.budget=4ba",
        "trainer.validate=2ba",
        "model.hidden_sizes=[8]",
        "model.latent=2",
        *words,
    )
    assert cli.main(["train", *SMALL, f"paths.outputs={outputs}", *words]) == 0
    (folder,) = outputs.glob("vae-*")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    changed = {"mine": (), "seed": ("seed=1",), "size": ("model.latent=3",)}
    return {name: train(tmp_path_factory.mktemp(name), *words) for name, words in changed.items()}


@pytest.fixture
def refused(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tampered:
    """Evaluate a copy of a run in which one file was changed; the result stays as it was."""

    def run(change: Callable[[Path], object], *words: str) -> tuple[int, str]:
        folder = Path(shutil.copytree(runs["mine"], tmp_path / runs["mine"].name))
        before = (folder / "result.json").read_bytes()
        change(folder / "checkpoints")
        code = cli.main([*(words or ("evaluate", *EVALUATE)), f"run={folder}"])
        assert (folder / "result.json").read_bytes() == before
        return code, capsys.readouterr().err

    return run


def flip(path: Path) -> None:
    """XOR 0x40 into one byte of 64 of the largest record: finite weights, but others."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    start = content.find(largest.filename.encode(), largest.header_offset) + 256
    for place in range(start, start + largest.file_size - 256, 64):
        content[place] ^= 0x40
    path.write_bytes(content)


def test_weights_that_were_altered_are_not_measured(refused: Tampered) -> None:
    code, sentence = refused(lambda folder: flip(folder / "best.ckpt"))
    assert code == 2
    assert "best.ckpt is damaged (ValueError: its contents are not those that were written)" in sentence


@pytest.mark.parametrize("kind", ["seed", "size"])
def test_another_run_s_checkpoint_is_refused(kind: str, runs: dict[str, Path], refused: Tampered) -> None:
    other = runs[kind]
    code, sentence = refused(lambda folder: shutil.copy(other / "checkpoints" / "best.ckpt", folder / "best.ckpt"))
    assert code == 2
    assert f"best.ckpt belongs to the run {other.name}, but" in sentence
    assert runs["mine"].name in sentence


def test_so_is_one_to_resume_from_and_one_to_sample_from(
    runs: dict[str, Path], tmp_path: Path, refused: Tampered, capsys: pytest.CaptureFixture[str]
) -> None:
    other = runs["seed"] / "checkpoints" / "last.ckpt"
    code, sentence = refused(
        lambda folder: shutil.copy(other, folder / "last.ckpt"), "sample", "n=2", "checkpoint=final"
    )
    assert (code, "belongs to the run" in sentence) == (2, True)
    (folder,) = tmp_path.glob("vae-*")
    (folder / "result.json").unlink()
    assert cli.main(["rerun", str(folder)]) == 2
    assert "belongs to the run" in capsys.readouterr().err


def test_a_checkpoint_from_another_time_of_the_run_is_refused(refused: Tampered) -> None:
    def earlier(folder: Path) -> None:
        checkpoint = read_checkpoint(folder / "best.ckpt")
        checkpoint["dgmbench"]["clock"]["images"] -= 100
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "best.ckpt")

    code, sentence = refused(earlier)
    assert code == 2
    assert "images, but the run's best weights are those after" in sentence


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"state_dict": {}, "run": 3, "dgmbench": {}}])
def test_a_checkpoint_of_something_else_is_refused(content: object, refused: Tampered) -> None:
    code, sentence = refused(lambda folder: AtomicCheckpointIO().save_checkpoint(content, folder / "best.ckpt"))  # type: ignore[arg-type]
    assert code == 2
    assert "best.ckpt is damaged" in sentence or "is no checkpoint of dgm" in sentence


def test_weights_that_do_not_fit_the_model_end_in_a_sentence(refused: Tampered) -> None:
    def smaller(folder: Path) -> None:
        checkpoint = read_checkpoint(folder / "best.ckpt")
        checkpoint["state_dict"] = dict(list(checkpoint["state_dict"].items())[1:])
        AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "best.ckpt")

    code, sentence = refused(smaller)
    assert code == 2
    assert "best.ckpt does not fit Vae as " in sentence
    assert len(sentence.splitlines()) == 1


def test_a_run_that_was_renamed_is_measured_all_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs["mine"], tmp_path / "mine"))
    assert cli.main(["evaluate", *EVALUATE, f"run={folder}"]) == 0
    assert json.loads((folder / "result.json").read_bytes())["run"] == runs["mine"].name


def test_the_seal_covers_every_byte_and_checkpoints_without_one_have_checksums(tmp_path: Path) -> None:
    path, content = tmp_path / "x.ckpt", {"a": torch.arange(5.0), "b": "text"}
    AtomicCheckpointIO().save_checkpoint(content, path)
    whole = path.read_bytes()
    assert is_whole(path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], content["a"])  # by anybody
    for place in (*range(0, len(whole) - 100, 29), *range(len(whole) - 100, len(whole))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        # where the seal is no longer known as one, the archive's own checksums say that nothing else has changed
        assert not is_whole(path) or len(whole) - 71 <= place < len(whole) - 64
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())
    assert is_whole(path)
    values = torch.arange(5.0).numpy().tobytes()
    path.write_bytes(buffer.getvalue().replace(values, values[:4] + b"\1" + values[5:]))
    assert not is_whole(path)
