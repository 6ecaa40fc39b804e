"""A clock that goes back, and runs and caches from another time: of an earlier or a later version of the software."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.command import main as cli
from dgmbench.data import prepared
from dgmbench.data.dataset import load
from dgmbench.runs.folder import RunFolder
from dgmbench.runs.record import sealed
from dgmbench.training.files import AtomicCheckpointIO, read_checkpoint, read_rows

from ..processes import script

BACKWARDS = Path(__file__).with_name("backwards.py")
WORDS = ("model=vae", "model.hidden_sizes=[2]", "model.latent=1", "data=digits_binary", "trainer.budget=6ba",
         "trainer.checkpoint=1s", "trainer.validate=2ba", "trainer.progress=false", "hardware=cpu",
         "hardware.threads=1", "protocol=quick", "protocol.max_examples=5", "protocol.quality.samples=5",
         "protocol.splits=[test]")  # fmt: skip
AS_LONG_AS = {"seconds", "train_seconds", "evaluate_seconds", "sample_seconds_per_image", "train_images_per_second",
              "peak_memory_mib", "evaluate_peak_memory_mib"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("whole")
    assert cli.main(["train", *WORDS, f"paths.outputs={outputs}"]) == 0
    (folder,) = outputs.glob("vae-*")
    return folder


def copied(run: Path, outputs: Path) -> Path:
    return Path(shutil.copytree(run, outputs / run.name))


# ---------------------------------------------------------------------- the clock


def test_a_clock_that_goes_back_changes_nothing_but_the_date(run: Path, tmp_path: Path) -> None:
    words = ("train", *WORDS, f"paths.outputs={tmp_path}")
    stopped = script(BACKWARDS, "3", *words)
    assert stopped.returncode == 143, stopped.stderr
    (folder,) = tmp_path.glob("vae-*")
    for file in (tmp_path / "x", *folder.rglob("*")):  # as if they had been written tomorrow
        if file.is_file():
            os.utime(file, (time.time() + 86400,) * 2)
    assert script(BACKWARDS, "0", *words).returncode == 0
    for number in (1, 2):  # done already, and rerun finds the same run
        assert script(BACKWARDS, "0", *(words if number == 1 else ("rerun", str(folder)))).returncode == 0
    one, other = (RunFolder(each).read_result() for each in (run, folder))
    assert one is not None
    assert other is not None
    assert one["metrics"] == other["metrics"]
    assert all(other["cost"][key] >= 0 for key in AS_LONG_AS & set(other["cost"]))
    seconds = [row["seconds"] for row in read_rows(folder / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    first, second = (read_checkpoint(each / "checkpoints" / "last.ckpt")["state_dict"] for each in (run, folder))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert script(BACKWARDS, "0", "report", str(tmp_path)).returncode == 0
    assert script(BACKWARDS, "0", "report", str(tmp_path)).returncode == 0  # from what it remembers
    assert f"{one['metrics']['elbo']['value']}" in (tmp_path / "report.csv").read_text()


# ---------------------------------------------------------------------- other versions


def change_result(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A result as it would be without the hash that this version writes."""
    file = folder / "result.json"
    result = json.loads(file.read_text())
    result.pop("digest")
    change(result)
    file.write_text(json.dumps(result))


def change_checkpoint(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(file)
    change(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    (folder / "result.json").unlink()


@pytest.mark.parametrize("part", ["metrics", "protocols", "objective", "cost", "versions"])
@pytest.mark.parametrize("value", [{}, [], 3])
def test_results_of_another_shape_are_read_or_refused(
    part: str, value: object, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(run, tmp_path)
    change_result(folder, lambda result: result.__setitem__(part, value))
    for words in (("show", f"run={folder}"), ("rerun", str(folder)), ("report", str(tmp_path)),
                  ("diff", str(run), str(folder)), ("sample", f"run={folder}", "n=1")):  # fmt: skip
        assert cli.main(list(words)) in (0, 2), words
        assert "DGM_DEBUG" not in capsys.readouterr().err


def test_checkpoints_that_lack_what_a_resume_needs_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "run.log_length": lambda c: c["run"].pop("log_length"),
        "windows": lambda c: c["dgmbench"].pop("windows"),
        "clock.sampled_at": lambda c: c["dgmbench"]["clock"].pop("sampled_at"),
        "clock.sampled_twice_at": lambda c: c["dgmbench"]["clock"].__setitem__("sampled_twice_at", 3),
    }
    for number, (what, change) in enumerate(changes.items()):
        folder = copied(run, tmp_path / str(number))
        change_checkpoint(folder, change)  # type: ignore[arg-type]
        assert cli.main(["rerun", str(folder)]) == 2
        error = capsys.readouterr().err
        assert "was saved by another version of dgm" in error
        assert f"(it differs in {what})" in error


def test_prepared_sets_of_another_version_are_prepared_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=np.arange(60, dtype=np.uint8).reshape(30, 2))
    cfg = {"name": "npz", "_target_": "dgmbench.data.npz.Npz", "path": str(tmp_path / "x.npz")}
    whole = load(cfg, tmp_path)
    (folder,) = (tmp_path / "prepared").glob("npz-*")
    good = json.loads((folder / "meta.json").read_text())
    for change in (
        lambda meta: meta["spec"].__setitem__("of_a_later_version", 1),
        lambda meta: meta["spec"].pop("shape"),
        lambda meta: meta.pop("split_hash"),
        lambda meta: meta.pop("content_hash"),
        lambda meta: meta["arrays"].pop("valid_x"),
    ):
        meta = json.loads(json.dumps(good))
        change(meta)
        meta["record_hash"] = prepared._record_hash({k: v for k, v in meta.items() if k != "record_hash"})
        (folder / "meta.json").write_text(json.dumps(meta))
        again = load(cfg, tmp_path)
        assert again.content_hash == whole.content_hash
        assert all(np.array_equal(again.splits[s].x, whole.splits[s].x) for s in whole.splits)
        assert json.loads((folder / "meta.json").read_text()) == good


def test_a_sealed_result_lacks_nothing(run: Path) -> None:
    """What the tests above change is what this version writes."""
    result = RunFolder(run).read_result()
    assert result is not None
    assert result["digest"] == sealed({k: v for k, v in result.items() if k != "digest"})["digest"]
