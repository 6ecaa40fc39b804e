"""Labels: -1 is unknown, numbers have no gaps, and few-label sets keep just so many."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dgmbench.data import DataSet, DataSpec, load
from dgmbench.data.checks import exactly
from dgmbench.data.digits import Digits, DigitsFewLabels
from dgmbench.data.labels import few_labels, numbered
from dgmbench.data.reader import Chunks, Decoded, Part
from dgmbench.errors import UserError

Open = Callable[..., DataSet]


def test_ten_labels_a_class_are_kept_and_nothing_else_changes() -> None:
    whole, few = Digits().read(Path()), DigitsFewLabels().read(Path())
    y, kept = whole.parts["train"].y, few.parts["train"].y
    assert (np.bincount(kept[kept >= 0]) == 10).all()
    assert (kept == -1).sum() == len(y) - 100
    assert (kept[kept >= 0] == y[kept >= 0]).all()
    for split in ("train", "valid", "test"):
        assert (few.parts[split].x == whole.parts[split].x).all()
    for split in ("valid", "test"):
        assert (few.parts[split].y == whole.parts[split].y).all()
    assert few.spec == whole.spec


def test_another_draw_keeps_other_labels_and_the_same_draw_the_same() -> None:
    draws = [DigitsFewLabels(draw=draw).read(Path()).parts["train"].y for draw in (0, 1, 1)]
    assert (draws[1] == draws[2]).all()
    assert 0 < ((draws[0] >= 0) & (draws[1] >= 0)).sum() < 40  # 100 * 100 / 1258 by chance
    some = DigitsFewLabels(labels_per_class=3).read(Path()).parts["train"].y
    assert (some >= 0).sum() == 30


@pytest.mark.parametrize(("per_class", "draw", "what"), [(0, 0, "at least 1"), (3, 0, "class 1"), (1, -1, "data.draw")])
def test_labels_that_cannot_be_kept(per_class: int, draw: int, what: str) -> None:
    with pytest.raises(UserError, match=what):
        few_labels(np.array([0, 0, 0, 1, 1]), per_class=per_class, draw=draw)


def test_gaps_close_and_the_old_numbers_are_names() -> None:
    labels = {"train": np.array([50, -1, 0, 7]), "test": np.array([7, 7])}
    found, classes, names = numbered(labels)
    assert (classes, names) == (3, ("0", "7", "50"))
    assert found["train"].tolist() == [2, -1, 0, 1]
    assert found["test"].tolist() == [1, 1]


def test_labels_without_gaps_stay() -> None:
    labels = {"train": np.array([2, 0, 1, -1])}
    found, classes, names = numbered(labels)
    assert (found["train"].tolist(), classes, names) == ([2, 0, 1, -1], 3, None)


def npz(tmp_path: Path, **arrays: np.ndarray) -> DataSet:
    np.savez(tmp_path / "own.npz", **arrays)
    cfg = {"name": "own", "_target_": "dgmbench.data.npz.Npz", "path": str(tmp_path / "own.npz")}
    return load(cfg, tmp_path / "root")


def test_a_file_with_gaps_and_unknown_labels(tmp_path: Path) -> None:
    x = np.random.RandomState(0).randint(2, size=(60, 3))
    y = np.array([0, 7, 50, -1, 7] * 12)
    data = npz(tmp_path, x_train=x, y_train=y)
    assert data.spec.num_classes == 3
    assert data.spec.class_names == ("0", "7", "50")
    assert sum(data.unlabelled(split) for split in ("train", "valid", "test")) == 12
    again = npz(tmp_path, x_train=x, y_train=y)  # from the prepared cache
    assert again.spec.class_names == ("0", "7", "50")


def test_labels_of_steps_and_lengths(tmp_path: Path) -> None:
    length = np.array([3, 1, 2, 3] * 10)
    inside = np.arange(3) < length[:, None]
    x = np.where(inside, 1 + np.random.RandomState(0).randint(5, size=(40, 3)), 0)
    y = np.where(inside, np.arange(40)[:, None] % 2, -1)
    y[0] = -1
    data = npz(tmp_path, x_train=x, y_train=y, length_train=length)
    assert data.spec.lengths
    assert data.spec.step_labels
    assert data.spec.num_classes == 2
    assert sum(data.unlabelled(split) for split in ("train", "valid", "test")) == 3
    for part in data.splits.values():
        assert ((part.x == 0) == (np.arange(3) >= part.length[:, None])).all()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"length_train": np.zeros(40, int)}, "1 ... 3"),
        ({"length_train": np.full(40, 2)}, "behind the end"),
        ({"length_train": np.full(40, 3.0)}, "give integers"),
        ({"length_train": np.full(39, 3)}, "39 rows"),
        ({"length_test": np.full(40, 3)}, "other splits"),
    ],
)
def test_lengths_that_cannot_be(tmp_path: Path, change: dict[str, np.ndarray], what: str) -> None:
    with pytest.raises(UserError, match=what):
        npz(tmp_path, x_train=np.ones((40, 3), int) * 2, **change)


def test_conditions_of_a_file(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    given = random.randint(256, size=(40, 2, 2)).astype(np.uint8)
    x = np.repeat(np.repeat(given, 2, 1), 2, 2)
    data = npz(tmp_path, x_train=x, given_train=given)
    assert str(data.spec) == "discrete 1x4x4, 256 levels, given discrete 1x2x2, 256 levels"
    for part in data.splits.values():  # each example keeps its own
        assert (part.x[:, :, ::2, ::2] == part.given).all()
    again = npz(tmp_path, x_train=x, given_train=given)
    assert again.spec == data.spec
    assert again.content_hash == data.content_hash
    other = npz(tmp_path, x_train=x, given_train=255 - given)
    assert other.content_hash != data.content_hash


def test_conditions_need_one_for_each_example(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="39 rows"):
        npz(tmp_path, x_train=np.ones((40, 3), int), given_train=np.ones((39, 2), int))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"y_train": np.array([2**64 - 1, 0, 1] * 10, np.uint64)},
            "y_train .* 18446744073709551615, which int64",
        ),
        ({"y_train": np.array([2**63, 0, 1] * 10, np.uint64)}, "9223372036854775808, which int64 cannot"),
        ({"length_train": np.full(30, 2**64 - 1, np.uint64)}, "length_train .* which int64 cannot hold"),
        ({"x_train": np.full((30, 4), 3.5e38)}, "x_train .* beyond float32"),
        ({"x_train": np.full((30, 4), np.longdouble(3.4028236e38)) + 0.5}, "x_train .* beyond float32"),
    ],
)
def test_numbers_that_the_kept_dtype_cannot_hold(tmp_path: Path, change: dict[str, np.ndarray], what: str) -> None:
    arrays = {"x_train": np.arange(120).reshape(30, 4) + 0.5, "y_train": np.arange(30) % 3, **change}
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(UserError, match=what):
        load({"name": "own", "_target_": "dgmbench.data.npz.Npz", "path": str(tmp_path / "own.npz")}, tmp_path)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([255, 256], np.uint8), ([0, -1], np.uint8), ([0.5], np.int64), ([np.nan], np.int64), ([2.0**63], np.int64),
     ([1e39], np.float32), ([2**24 + 1], np.float32), (np.array([2**64 - 1], np.uint64), np.int64),
     (np.array([-1]), np.uint64)],
)  # fmt: skip
def test_a_cast_that_changes_a_number_is_refused(values: list[float], dtype: type) -> None:
    with np.errstate(over="ignore"), pytest.raises(UserError, match=r"numbers has .* cannot hold"):
        exactly(np.asarray(values), dtype, "numbers")
    assert exactly(np.array([3.0, 250.0]), np.uint8, "numbers").tolist() == [3, 250]


@pytest.mark.parametrize(
    ("spec", "value"),
    [(DataSpec((2,), "binary"), 2), (DataSpec((2,), "discrete", 17), 17), (DataSpec((2,), "tokens", 5), 5),
     (DataSpec((2,), "tokens", 5), -1), (DataSpec((2,), "counts"), -1), (DataSpec((2,), "real"), np.inf)],
)  # fmt: skip
@pytest.mark.parametrize("piecewise", [False, True])
def test_values_outside_the_described_space_are_refused_of_every_reader(
    spec: DataSpec, value: float, piecewise: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x = np.zeros((4, 2), str(spec.dtype).removeprefix("torch."))
    x[2, 1] = value
    held = Chunks(x.shape, x.dtype, lambda: iter([x[:2], x[2:]])) if piecewise else x
    part = Part(held, None, "here", np.arange(4))
    good = Part(np.zeros_like(x), None, "here", np.arange(4))
    monkeypatch.setattr(
        Digits, "read", lambda self, folder: Decoded(spec, {"train": part, "valid": good, "test": good})
    )
    with pytest.raises(UserError, match=r"The train split holds .*values"):
        load({"name": "digits", "_target_": "dgmbench.data.digits.Digits"}, tmp_path)
