"""The best checkpoint's choice, and when a decline is said: of simulated runs, nothing but declines is remarked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.config import compose, import_from
from dgmbench.data.spec import DataSpec
from dgmbench.evaluation.metrics import Direction, Metric
from dgmbench.evaluation.sample_distance import pixel_energy_distance
from dgmbench.runs.run import train
from dgmbench.runs.selection import Selection, declined

OWN = Path(__file__).parent.parent / "my_tasks"


def seen(values: Any, se: float = 0.0, direction: Direction = "higher", stages: Any = None, **kind: Any) -> Selection:
    selection = Selection({}, compare=kind.get("compare", False))
    for i, value in enumerate(values, start=1):
        stage = "train" if stages is None else stages[i - 1]
        position = {"images": 100 * i, "epoch": float(i), "stage": stage, "seconds": 0.1}
        selection.consider("score", Metric(float(value), "1", "estimate", direction, se), position)
        selection = Selection(selection.state(), compare=selection.compare)  # as after a resume
    return selection


@pytest.mark.parametrize(("direction", "best"), [("higher", 3), ("lower", 2)])
def test_the_better_of_finite_values_is_kept(direction: Direction, best: int) -> None:
    selection = seen([1.0, -2.0, 5.0, float("nan"), 3.0, 5.0], direction=direction)
    assert selection.best is not None
    assert (selection.best["images"], selection.best["value"]) == (100 * best, {2: -2.0, 3: 5.0}[best])
    assert seen([float("nan"), float("inf")]).best is None


def test_a_new_stage_starts_anew_unless_objectives_compare() -> None:
    values, stages = [9.0, 8.0, 1.0, float("nan"), 2.0], ["a", "a", "b", "b", "b"]
    for compare, value, stage in ((False, 2.0, "b"), (True, 9.0, "a")):
        selection = seen(values, stages=stages, compare=compare)
        assert selection.best is not None
        assert (selection.best["value"], selection.best["stage"]) == (value, stage)
        assert selection.holds_for("b")
    assert not seen([9.0, float("nan")], stages=["a", "b"]).holds_for("b"), "the last stage has no number"


def test_a_long_fall_is_said_with_values_and_epochs_in_either_direction() -> None:
    fall = -124 - np.linspace(0, 27, 20) ** 1.0
    for sign, direction in ((1, "higher"), (-1, "lower")):
        text = seen(sign * fall, se=0.5, direction=direction).decline()  # type: ignore[arg-type]
        assert text is not None
        assert f"from {sign * -124} at epoch 1 to {sign * -151} at epoch 20" in text
    quick = np.concatenate([[-130, -124], np.full(18, -140.0)])  # over in no time, and bad ever since
    assert seen(quick, se=0.5).decline() is not None


def test_what_is_no_decline_is_not_said() -> None:
    rise = np.linspace(-150, -124, 20)
    assert seen(rise, se=0.5).decline() is None
    overfit_late = np.concatenate([np.linspace(-150, -124, 14), np.linspace(-124, -130, 6)])
    assert seen(overfit_late, se=0.1).decline() is None, "most of the run was good"
    slight = -124 - np.linspace(0, 1, 20)
    assert seen(slight, se=0.5).decline() is None, "within three standard errors"
    assert seen(-124 - np.linspace(0, 27, 14), se=0.5).decline() is None, "too few to know the noise"
    assert seen([float("nan")] * 20).decline() is None
    assert seen([]).decline() is None
    stages = ["a"] * 10 + ["b"] * 18
    values = [0.0] * 10 + list(np.linspace(-100, -90, 18))
    assert seen(values, stages=stages).decline() is None, "the first stage is on another scale"


@pytest.mark.parametrize(("correlation", "most"), [(0.0, 0.005), (0.5, 0.01), (0.7, 0.03)])
@pytest.mark.parametrize("m", [16, 40, 200])
def test_fluctuations_are_hardly_ever_called_a_decline(m: int, correlation: float, most: float) -> None:
    rng, runs = np.random.RandomState(m), 1000
    noise = rng.standard_normal((runs, m))
    for t in range(1, m):  # the variance stays 1
        noise[:, t] = correlation * noise[:, t - 1] + np.sqrt(1 - correlation**2) * noise[:, t]
    images = 100.0 * np.arange(1, m + 1)
    said = sum(declined(images, values, np.full(m, 1e-3)) is not None for values in noise)
    assert said <= most * runs, "though the standard error is given as far too small"


def test_energy_distances_of_one_model_are_no_decline() -> None:
    generator, spec = torch.Generator().manual_seed(0), DataSpec((2,), "real")
    data = torch.randn((60, 2), generator=generator)
    for _ in range(40):
        found = [pixel_energy_distance(torch.randn((60, 2), generator=generator), data, spec) for _ in range(20)]
        gains, errors = (np.array([getattr(m, key) for m in found]) for key in ("value", "se"))
        assert declined(100.0 * np.arange(1, 21), -gains, errors) is None


def test_a_run_that_falls_says_so_once_and_in_its_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import_from([OWN])
    words = ["model=falling", "trainer.budget=20ba", "trainer.validate=1ba", "trainer.samples=20ba",
             "trainer.progress=false", "protocol=quick", "hardware=cpu", f"paths.outputs={tmp_path}"]  # fmt: skip
    outcome = train(compose("train", words, config_dirs=[OWN]))
    said = capfd.readouterr().err
    assert said.count("dgm: note: the height on validation has got worse for most of the run, from -1 at epoch") == 1
    assert "from -1 at epoch" in outcome.result["objective"]["note"]
    assert "to -20 at epoch" in outcome.result["objective"]["note"]
    assert outcome.result["objective"]["note"] in outcome.objective_text
    assert outcome.result["objective"]["value"] == -1
