"""Whether pictures show what captions say, and how much videos move: against models whose answers are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.data.shapes_captions import ShapesCaptions
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.tasks.motion import frame_change
from dgmbench.models.contract import Model

PROTOCOL: dict[str, Any] = {
    "seed": 0, "k": 1, "ais": {"chains": 5, "temperatures": 5}, "max_examples": None,
    "quality": {"samples": 80, "features": []},
}  # fmt: skip


def measured(model: Model, data: DataSet) -> tuple[dict[str, Metric], dict[str, dict[str, Any]]]:
    cpu = torch.device("cpu")
    evaluator = Evaluator(data, PROTOCOL, split="test", rule="best", averaged=False, device=cpu)
    found = evaluator.measure(model)
    return {name: each[0] for name, each in found.items()}, {name: each[1] for name, each in found.items()}


class Pictured(Model):
    """The example whose caption it is given, or the one after it in the set."""

    def __init__(self, spec: DataSpec, part: Split, *, off: int) -> None:
        super().__init__(spec)
        assert part.given is not None
        self.places = {row.tobytes(): place for place, row in enumerate(part.given)}
        self.x, self.off = torch.from_numpy(part.x), off

    def sample(self, n: int, y: Tensor | None = None, *, given: Tensor, generator: object = None) -> Tensor:
        places = [(self.places[row.tobytes()] + self.off) % len(self.x) for row in given.numpy()]
        return self.x[places]


def test_pictures_of_their_captions_agree_and_those_of_others_do_so_by_chance(tmp_path: Path) -> None:
    reader = ShapesCaptions(train=2, valid=2, test=80)
    decoded = reader.read(tmp_path)
    splits = {name: Split(np.asarray(p.x), p.y, np.asarray(p.given)) for name, p in decoded.parts.items()}
    data = DataSet("shapes_captions", decoded.spec, splits, "0" * 64, factors_of=reader.factors_of)
    part = data.splits["test"]
    assert part.y is not None
    right, protocols = measured(Pictured(data.spec, part, off=0), data)
    names = [f"caption_{name}_agreement" for name in ("shape", "colour", "size", "place")] + ["caption_agreement"]
    assert all(right[name].value == 1 for name in names)
    assert [protocols[name]["chance"] for name in names] == [0.25, 0.2, 0.5, 0.2, 0.005]
    wrong, _ = measured(Pictured(data.spec, part, off=1), data)
    factors = np.stack(np.unravel_index(part.y, (4, 5, 2, 5)), 1)
    # captions may occur twice, so that their first picture of the two is taken; few do
    agree = (np.roll(factors, -1, 0) == factors).mean(0)
    assert [wrong[name].value for name in names[:-1]] == pytest.approx(agree.tolist(), abs=0.1)
    assert wrong["caption_agreement"].value < 0.1
    assert wrong["caption_shape_agreement"].se == pytest.approx((0.25 * 0.75 / 80) ** 0.5, rel=0.3)


class Moving(Model):
    """Videos of one bright pixel that moves on every frame, or every other."""

    def __init__(self, spec: DataSpec, *, every: int) -> None:
        super().__init__(spec)
        self.every = every

    def sample(self, n: int, y: Tensor | None = None, *, generator: object = None) -> Tensor:
        return torch.from_numpy(videos(n, self.every))


def videos(n: int, every: int) -> np.ndarray:
    x = np.zeros((n, 9, 4), np.uint8)
    for time in range(9):
        x[:, time, time // every % 4] = 1
    return x


def test_a_videos_change_by_hand() -> None:
    spec = DataSpec((3, 2), "discrete", levels=5, frame=(1, 2))
    x = torch.from_numpy(np.array([[[0, 4], [2, 4], [2, 0]], [[1, 1], [1, 1], [1, 1]]], np.uint8))
    torch.testing.assert_close(frame_change(x, spec), torch.tensor([(0.5 + 1.0) / 4, 0.0], dtype=torch.float64))


def test_motion_is_compared_with_that_of_the_data() -> None:
    split = Split(videos(20, 1), None)
    spec = DataSpec((9, 4), "binary", frame=(2, 2))
    data = DataSet("toy", spec, {"train": split, "valid": split, "test": split}, "0" * 64)
    found, _ = measured(Moving(spec, every=2), data)
    assert found["data_frame_change"].value == pytest.approx(2 / 4)  # two of four pixels change on each frame
    assert found["frame_change"].value == pytest.approx(1 / 4)
    assert found["frame_change_ratio"].value == pytest.approx(0.5)
    assert found["frame_change_ratio"].direction == "none"
    plain = DataSet("toy", DataSpec((9, 4), "binary"), data.splits, "0" * 64)
    assert "frame_change" not in measured(Moving(plain.spec, every=2), plain)[0]
