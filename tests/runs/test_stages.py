"""Runs in stages from start to end: which checkpoint is the best one, kills at the change, pictures that grow."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dgmbench.config import compose, import_from
from dgmbench.runs.run import train
from dgmbench.training.files import read_checkpoint, read_rows

from ..processes import script
from .test_resume import COMMON, KILL, assert_same

OWN = Path(__file__).parent.parent / "my_tasks"
# Stage two begins at update 15, which no period hits.
TWO = ("model=two_stages", "trainer.budget=30ba", "trainer.validate=4ba", "trainer.samples=30ba", "optimizer.lr=0.1",
       "trainer.checkpoint=4ba", "trainer.ema=0.5")  # fmt: skip


def run(outputs: Path, *overrides: str) -> Any:
    import_from([OWN])
    return train(compose("train", [*COMMON, f"paths.outputs={outputs}", *overrides], config_dirs=[OWN]))


@pytest.mark.parametrize("compare", [False, True])
def test_the_best_checkpoint_belongs_to_the_last_stage_unless_objectives_compare(compare: bool, tmp_path: Path) -> None:
    outcome = run(tmp_path, *TWO, f"model.compare={str(compare).lower()}")
    rows = [row for row in read_rows(outcome.run / "metrics.jsonl") if row["kind"] == "valid"]
    stages = {row["batches"]: row["stage"] for row in rows}
    assert stages == dict.fromkeys([4, 8, 12, 15], "narrow") | dict.fromkeys([16, 20, 24, 28, 30], "wide")
    narrow, wide = ([row for row in rows if row["stage"] == stage] for stage in ("narrow", "wide"))
    assert max(row["log_likelihood"] for row in wide) < min(row["log_likelihood"] for row in narrow)
    chosen = max(rows if compare else wide, key=lambda row: row["log_likelihood"])
    objective = outcome.result["objective"]
    assert (objective["stage"], objective["images"]) == (chosen["stage"], chosen["images"])
    assert objective["value"] == chosen["log_likelihood"]
    best = read_checkpoint(outcome.run / "checkpoints" / "best.ckpt")
    assert float(best["state_dict"]["model.sigma"]) == (1.0 if compare else 10.0)
    assert float(read_checkpoint(outcome.run / "checkpoints" / "last.ckpt")["state_dict"]["model.share"]) == 1.0
    assert (outcome.run / "samples" / f"{15 * 100:012d}.png").is_file(), "the narrow Gaussian at its best"


@pytest.mark.parametrize("points", [[("leaving", 15)], [("saving", 14), ("leaving", 15), ("before", 15)]])
def test_killed_at_the_change_of_stage_and_resumed_equals_uninterrupted(
    points: list[tuple[str, int]], tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", *TWO).run
    for point, update in points:
        words = [point, str(update), *COMMON, *TWO, f"paths.outputs={tmp_path / 'killed'}"]
        killed = script(KILL, *words, environment={"DGM_CONFIG_DIR": str(OWN)})
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        folder = tmp_path / "killed" / whole.name
        clock = read_checkpoint(folder / "checkpoints" / "last.ckpt")["dgmbench"]["clock"]
        if point == "leaving":  # the first stage's last state is safe, and has been measured
            assert (clock["stage"], clock["batches"], clock["validated_at"], clock["sampled_at"]) == (0, 15, 15, 15)
    assert not (folder / "result.json").exists()
    outcome = run(tmp_path / "killed", *TWO)
    assert outcome.message.startswith("resumed")
    for checkpoint in ("last", "best"):
        one, other = (read_checkpoint(each / "checkpoints" / f"{checkpoint}.ckpt") for each in (whole, folder))
        for part in ("state_dict", "dgmbench", "run"):
            assert_same(one[part], other[part], f"{checkpoint}.{part}")
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(each / "metrics.jsonl")]
        for each in (whole, folder)
    ]
    assert rows[0] == rows[1]


def test_pictures_batches_and_validation_of_a_model_that_grows(tmp_path: Path) -> None:
    outcome = run(tmp_path, "model=growing", "trainer.budget=40ba", "optimizer.lr=0.05", "trainer.validate=40ba")
    rows = read_rows(outcome.run / "metrics.jsonl")
    sizes = {(row["stage"], row["coarse/size"]) for row in rows if "coarse/size" in row}
    assert sizes | {(row["stage"], row["fine/size"]) for row in rows if "fine/size" in row} == {
        ("half", 200.0),
        ("whole", 50.0),
    }
    assert outcome.result["cost"]["images"] == 4000
    assert outcome.result["cost"]["batches"] == 10 + 40, "half of 4,000 images each"
    assert [row["images"] for row in rows if row["kind"] == "valid"] == [2000, 3500, 4000]
    pictures = sorted((outcome.run / "samples").glob("*.png"))
    assert [int(picture.stem) for picture in pictures] == [0, 2000, 4000]
    sizes_of_pictures = set()
    for picture in pictures:
        with Image.open(picture) as image:
            sizes_of_pictures.add(image.size)
    assert len(sizes_of_pictures) == 1
    state = read_checkpoint(outcome.run / "checkpoints" / "last.ckpt")["state_dict"]
    assert float(state["model.alpha"]) == 1.0
    assert torch.isfinite(state["model.fine"]).all()
