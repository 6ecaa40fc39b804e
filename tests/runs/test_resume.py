"""Interrupted and resumed equals uninterrupted, bit by bit, with a real process and a real SIGKILL."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dgmbench.config import compose
from dgmbench.runs.run import train
from dgmbench.training.files import read_checkpoint, read_rows

from ..processes import script

KILL = Path(__file__).with_name("kill.py")
# Rows carry the wall clock, so their length may differ; the shape checker of the tests draws from Python's generator.
NOT_COMPARED = ("peak_memory", "train_seconds", "log_length", "python")
COMMON = ("trainer.progress=false", "protocol=quick", "protocol.max_examples=100", "protocol.quality.samples=50",
          "protocol.semi_supervised.labels=[]", "hardware=cpu", "hardware.threads=1")  # fmt: skip

# Digits have 1,258 training images: with 100 a batch an epoch ends inside update 12.
CASES = {
    # one objective, accumulation of 3 batches an update, averaged weights, clipping, a learning-rate schedule
    "vae": (
        [
            "model=vae",
            "trainer.accumulate=3",
            "trainer.ema=0.9",
            "trainer.clip=1.0",
            "optimizer.schedule.name=cosine",
            "trainer.budget=60ba",
            "trainer.checkpoint=6ba",
            "trainer.validate=12ba",
            "trainer.samples=30ba",
        ],
        [("before", 7), ("middle", 12), ("saving", 15)],
    ),
    # five critic batches a generator step; killed inside the cycle and between critic and generator
    "wgan_gp": (
        [
            "model=wgan_gp",
            "trainer.budget=40ba",
            "trainer.checkpoint=3ba",
            "trainer.validate=10ba",
            "trainer.samples=20ba",
        ],
        [("before", 8), ("middle", 14), ("before", 13)],
    ),
    # persistent chains and fast weights, killed at the epoch's end
    "rbm_fpcd": (
        [
            "model=rbm_fpcd",
            "model.hidden=20",
            "trainer.budget=40ba",
            "trainer.checkpoint=4ba",
            "trainer.validate=20ba",
            "trainer.samples=40ba",
        ],
        [("before", 12), ("middle", 13), ("saving", 20)],
    ),
    # three players
    "vae_gan": (
        [
            "model=vae_gan",
            "trainer.budget=24ba",
            "trainer.checkpoint=5ba",
            "trainer.validate=12ba",
            "trainer.samples=12ba",
        ],
        [("middle", 7), ("before", 13)],
    ),
    # stages: killed at the change from one to the next, before and after it was saved
    "dbn": (
        [
            "model=dbn",
            "model.hidden_sizes=[20,10]",
            "trainer.budget=36ba",
            "trainer.checkpoint=4ba",
            "trainer.validate=18ba",
            "trainer.samples=36ba",
        ],
        [("before", "stage 1"), ("middle", "stage 1"), ("before", "stage 2")],
    ),
}


def overrides(name: str, outputs: Path) -> list[str]:
    return [*COMMON, *CASES[name][0], f"paths.outputs={outputs}"]


def first_update(name: str, point: str | int, outputs: Path) -> int:
    """The update at which a stage begins, from the model's own plan."""
    if isinstance(point, int):
        return point
    from dgmbench.config import complete
    from dgmbench.runs.build import build_model, load_data
    from dgmbench.training.plan import make_plan

    completed = complete(compose("train", overrides(name, outputs)))
    data = load_data(completed)
    plan = make_plan(
        completed["trainer"], images_per_epoch=data.size("train"), stages=build_model(completed, data.spec).stages()
    )
    return plan.stage_starts[int(point.removeprefix("stage "))]


def assert_same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.allclose(a, b, rtol=0, atol=0, equal_nan=True), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in NOT_COMPARED:
                assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    whole = train(compose("train", overrides(name, tmp_path / "whole"))).run
    for point, update in CASES[name][1]:
        at = first_update(name, update, tmp_path)
        killed = script(KILL, point, str(at), *overrides(name, tmp_path / "killed"))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "killed" / whole.name
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "result.json").exists()
    torch.manual_seed(99)  # the resume must not depend on this process's generator
    outcome = train(compose("train", overrides(name, tmp_path / "killed")))
    assert outcome.message.startswith("resumed")

    for checkpoint in ("last", "best"):
        one, other = (read_checkpoint(run / "checkpoints" / f"{checkpoint}.ckpt") for run in (whole, folder))
        for part in ("state_dict", "dgmbench", "run"):
            assert_same(one[part], other[part], f"{checkpoint}.{part}")
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(run / "metrics.jsonl")]
        for run in (whole, folder)
    ]
    assert rows[0] == rows[1]
    results = [json.loads((run / "result.json").read_text()) for run in (whole, folder)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["objective"] == results[1]["objective"]
    pictures = [{p.name: p.read_bytes() for p in sorted((run / "samples").glob("*.png"))} for run in (whole, folder)]
    assert pictures[0] == pictures[1]
    assert pictures[0]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    command = [*COMMON, "model=vae", "trainer.budget=3ba", f"paths.outputs={tmp_path}"]
    first = train(compose("train", command))
    before = {p: p.stat().st_mtime_ns for p in first.run.rglob("*") if p.is_file() and p.name != ".lock"}
    again = train(compose("train", command))
    assert again.message == "was done already"
    assert again.objective == first.objective
    assert before == {p: p.stat().st_mtime_ns for p in first.run.rglob("*") if p.is_file() and p.name != ".lock"}
