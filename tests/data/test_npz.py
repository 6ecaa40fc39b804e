from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import BatchStream, DataSet, DataSpec, evaluation_batches, load
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
RNG = np.random.RandomState(0)
BYTES = RNG.randint(256, size=(40, 1, 6, 6)).astype(np.uint8)


@pytest.fixture
def open_npz(config: Config, tmp_path: Path) -> Callable[..., DataSet]:
    """Save arrays and load them as data=npz; options go after ``options=``."""

    def run(*, options: dict[str, Any] | None = None, **arrays: Any) -> DataSet:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return load(config("npz", path=str(path), **(options or {})), tmp_path / "root")

    return run


Open = Callable[..., DataSet]


@pytest.mark.parametrize(
    ("x", "spec"),
    [
        (BYTES, DataSpec((1, 6, 6), "discrete", levels=256)),
        (BYTES[:, 0], DataSpec((1, 6, 6), "discrete", levels=256)),
        (BYTES.reshape(40, 36), DataSpec((36,), "discrete", levels=256)),
        (BYTES.astype(np.int64), DataSpec((1, 6, 6), "discrete", levels=256)),
        (BYTES.reshape(40, 36).astype(np.int32), DataSpec((36,), "counts")),
        (BYTES > 100, DataSpec((1, 6, 6), "binary")),
        ((BYTES > 100).astype(np.float32), DataSpec((1, 6, 6), "binary")),
        (BYTES / 255, DataSpec((1, 6, 6), "real")),
        (RNG.normal(size=(40, 5)), DataSpec((5,), "real")),
        (-BYTES.reshape(40, 36).astype(np.int16), DataSpec((36,), "real")),
        (BYTES[:, 0].repeat(3, 0).reshape(40, 3, 6, 6), DataSpec((3, 6, 6), "discrete", levels=256)),
    ],
)
def test_the_kind_follows_from_the_values(open_npz: Open, x: np.ndarray, spec: DataSpec) -> None:
    data = open_npz(x_train=x, x_valid=x[:5], x_test=x[5:10])
    assert data.spec == spec
    batch = next(evaluation_batches(data, "train", batch_size=40))
    assert batch.x.dtype == spec.dtype
    assert np.allclose(batch.x.numpy(), x.reshape(40, *spec.shape), atol=1e-6)
    assert data.meta["remarks"]["kind"] == "inferred"


def test_kind_and_levels_can_be_given(open_npz: Open) -> None:
    small = BYTES % 4
    assert open_npz(x_train=small, options={"kind": "discrete", "levels": 4}).spec.levels == 4
    assert open_npz(x_train=small.astype(float), options={"kind": "counts"}).spec.kind == "counts"
    assert open_npz(x_train=BYTES[:, 0, 0], options={"kind": "tokens", "levels": 300}).spec.levels == 300
    assert open_npz(x_train=BYTES, options={"kind": "real"}).spec.kind == "real"
    with pytest.raises(UserError, match=r"no kind of data 'discret'; did you mean discrete"):
        open_npz(x_train=small, options={"kind": "discret"})
    with pytest.raises(UserError, match=r"needs data\.levels"):
        open_npz(x_train=small, options={"kind": "tokens"})
    with pytest.raises(UserError, match="levels is 1"):
        open_npz(x_train=small, options={"kind": "discrete", "levels": 1})


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (BYTES, {"kind": "discrete", "levels": 17}),
        (BYTES, {"kind": "binary"}),
        (BYTES / 255, {"kind": "discrete"}),
        (-BYTES.astype(int), {"kind": "counts"}),
        (BYTES[:, 0, 0], {"kind": "tokens", "levels": 10}),
    ],
)
def test_values_outside_the_given_kind_are_refused(open_npz: Open, x: np.ndarray, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"x_train in .* values from .* but {options['kind']} data are"):
        open_npz(x_train=x, options=options)


def test_missing_splits_are_dealt_out_and_recorded(open_npz: Open) -> None:
    x = np.arange(100, dtype=np.int64)[:, None] + 1000
    data = open_npz(x_train=x, y_train=np.arange(100) % 7)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 80, "valid": 10, "test": 10}
    assert sorted(np.concatenate([part.x[:, 0] for part in data.splits.values()])) == list(range(1000, 1100))
    assert all(np.array_equal(part.y, (part.x[:, 0] - 1000) % 7) for part in data.splits.values())
    assert data.spec.num_classes == 7
    assert data.meta["split"]["valid"]["origin"] == "x_train"
    again = open_npz(x_train=x, y_train=np.arange(100) % 7)
    other = open_npz(x_train=x, y_train=np.arange(100) % 7, options={"split_seed": 1})
    assert data.meta["split_hash"] == again.meta["split_hash"] != other.meta["split_hash"]
    assert data.content_hash == again.content_hash != other.content_hash


def test_given_splits_stay_as_they_are(open_npz: Open) -> None:
    data = open_npz(x_train=BYTES, x_test=BYTES[:7], options={"valid": 10})
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 30, "valid": 10, "test": 7}
    assert np.array_equal(data.splits["test"].x, BYTES[:7])


def test_the_content_hash_covers_values_and_labels(open_npz: Open) -> None:
    parts = {"x_train": BYTES, "x_valid": BYTES[:5], "x_test": BYTES[5:9]}
    labels = {f"y_{s}": np.zeros(len(parts[f"x_{s}"]), int) for s in ("train", "valid", "test")}
    changed = BYTES.copy()
    changed[3, 0, 2, 2] ^= 1
    hashes = [
        open_npz(**parts).content_hash,
        open_npz(**{**parts, "x_train": changed}).content_hash,
        open_npz(**parts, **labels).content_hash,
        open_npz(**parts, **{**labels, "y_test": np.array([0, 0, 1, 0])}).content_hash,
        open_npz(**parts, options={"binarise": "dynamic"}).content_hash,
        open_npz(**parts, options={"binarise": "threshold"}).content_hash,
    ]
    assert len(set(hashes)) == len(hashes)


def test_grey_arrays_can_be_binarised(open_npz: Open) -> None:
    data = open_npz(x_train=BYTES, x_valid=BYTES, x_test=BYTES, options={"binarise": "threshold"})
    assert np.array_equal(data.splits["train"].x, BYTES >= 128)
    dynamic = open_npz(x_train=BYTES, options={"binarise": "dynamic"})
    assert BatchStream(dynamic, batch_size=10, seed=0).batch(0).x.max() == 1


def _poisoned(value: float) -> np.ndarray:
    x = RNG.normal(size=(20, 5))
    x[7, 2] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x_test": BYTES}, "has no x_train; its keys are: x_test"),
        ({}, "has no x_train; its keys are: none"),
        ({"x_train": BYTES, "x_test": BYTES[:, :, :5]}, r"x_test has examples of shape \(1, 5, 6\), but x_train has"),
        ({"x_train": _poisoned(np.nan)}, "holds 1 values that are NaN or infinite, the first in example 7"),
        ({"x_train": BYTES / 255, "x_test": _poisoned(np.inf)}, "x_test in .* NaN or infinite"),
        ({"x_train": np.array(["a", "b"])}, "x_train in .* has dtype <U1"),
        ({"x_train": BYTES.astype(complex)}, "has dtype complex128"),
        ({"x_train": np.array([{"a": 1}], dtype=object)}, "x_train.* of Python objects.* not read"),
        ({"x_train": np.zeros(5)}, r"has shape \(5,\)"),
        ({"x_train": np.zeros((0, 5))}, r"has shape \(0, 5\); give at least one example"),
        ({"x_train": np.zeros((5, 2, 2, 2, 2))}, "has shape"),
        ({"x_train": np.zeros((9, 32, 32, 3), np.uint8)}, r"looks like channels last; save x_train.transpose"),
        ({"x_train": np.full((20, 3), 1e300)}, "beyond float32, up to 1e\\+300"),
        ({"x_train": BYTES, "y_train": np.zeros(39, int)}, r"y_train in .* is int64 of shape \(39,\)"),
        ({"x_train": BYTES, "y_train": np.zeros(40)}, "is float64 of shape"),
        ({"x_train": BYTES, "y_train": np.full(40, -1)}, "labels are integers from 0"),
        ({"x_train": BYTES, "x_test": BYTES, "y_train": np.zeros(40, int)}, "labels for some splits only: y_test is"),
        ({"x_train": BYTES, "y_train": np.zeros(40, int), "y_test": np.zeros(9, int)}, "some splits only: x_test is"),
        ({"x_train": BYTES[:3]}, "has no x_valid, and data.valid=0.1 of 3 training examples holds out none"),
    ],
)
def test_bad_arrays_are_refused_in_one_sentence(open_npz: Open, arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_npz(**arrays)


def test_bad_files_are_refused(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"

    def attempt() -> None:
        load(config("npz", path=str(path)), tmp_path / "root")

    with pytest.raises(UserError, match=r"There is no file .*data\.npz"):
        attempt()
    np.savez(path, x_train=BYTES)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="truncated"):
        attempt()
    path.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match=r"is no \.npz file at all"):
        attempt()
    path.write_bytes(b"")
    with pytest.raises(UserError, match="no readable"):
        attempt()
    np.savez_compressed(path, x_train=BYTES)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated"):
        attempt()
    with pytest.raises(UserError, match=r"needs data\.path=FILE"):
        load(config("npz"), tmp_path)
    assert not list((tmp_path / "root" / "prepared").glob("npz-*"))


def test_a_changed_file_is_read_again(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x_train=BYTES)
    first = load(config("npz", path=str(path)), tmp_path)
    np.savez(path, x_train=255 - BYTES[:30])
    second = load(config("npz", path=str(path)), tmp_path)
    assert first.content_hash != second.content_hash
    assert sum(len(part) for part in second.splits.values()) == 30


def test_a_single_array_is_the_training_set(config: Config, tmp_path: Path) -> None:
    np.save(tmp_path / "bytes.npy", BYTES)
    data = load(config("npz", path=str(tmp_path / "bytes.npy")), tmp_path / "root")
    assert data.spec == DataSpec((1, 6, 6), "discrete", levels=256)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 32, "valid": 4, "test": 4}
    found = np.concatenate([part.x for part in data.splits.values()])
    assert sorted(found.tobytes()) == sorted(BYTES.tobytes())


CLEAN = RNG.normal(size=(40, 4))


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (CLEAN, {}, []),
        (BYTES, {}, []),
        (BYTES / 255, {}, ["x is 256 grey levels as floats in [0, 1], taken for real values"]),
        (BYTES / 255, {"kind": "real"}, []),
        ((BYTES / 255).astype(np.float32).reshape(40, 36), {}, ["x is 256 grey levels as floats in [0, 1]"]),
        (RNG.uniform(size=(40, 1, 3, 3)), {}, ["x is floats in [0, 1] of images, taken for real values"]),
        (RNG.uniform(size=(40, 9)), {}, []),
        (-BYTES.astype(np.int16), {}, ["x is whole numbers from -255 to 0, taken for real values"]),
        (BYTES.astype(float).reshape(40, 36), {}, ["x is whole numbers from 0 to 255 kept as floats"]),
        (np.c_[CLEAN, np.full(40, 3.0)], {}, ["1 column (4) of x is constant: a density has no bound there"]),
        (np.c_[CLEAN, CLEAN[:, 2]], {}, ["1 column (4 = 2) of x is the same as another one"]),
        (np.c_[CLEAN, CLEAN[:, :2].round(0)], {}, ["2 columns (4: ", "of x are rounded, with many equal values"]),
    ],
)
def test_notes_say_what_values_were_taken_for_and_where_densities_have_no_bound(
    open_npz: Open, x: np.ndarray, options: dict[str, Any], words: list[str]
) -> None:
    notes = open_npz(x_train=x, x_valid=x[:5], x_test=x[5:10], options=options).meta["notes"]
    about = [note for note in notes if "rounded" not in note or "rounded" in "".join(words)]
    assert bool(about) == bool(words)
    assert all(word in about[0] for word in words)
