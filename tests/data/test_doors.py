"""Data of a user's own behind other doors than a file of arrays: HDF5, and any Dataset of PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from dgmbench.data import DataSpec, evaluation_batches, load
from dgmbench.data.hdf5 import Hdf5
from dgmbench.data.npz import Npz
from dgmbench.data.torch_dataset import TorchDataset
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
X = np.random.RandomState(0).randint(256, size=(40, 6, 6)).astype(np.uint8)
Y = np.arange(40) % 4


def everything(reader: Npz, tmp_path: Path) -> dict[str, Any]:
    decoded = reader.read(tmp_path)
    return {split: (part.x, part.y, part.index) for split, part in decoded.parts.items()} | {"spec": decoded.spec}


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    pairs = [pair for split in ("train", "valid", "test") for pair in zip(ours[split], theirs[split], strict=True)]
    return ours["spec"] == theirs["spec"] and all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture
def npz(tmp_path: Path) -> dict[str, Any]:
    np.savez(tmp_path / "own.npz", x_train=X, y_train=Y)
    return everything(Npz(path=str(tmp_path / "own.npz")), tmp_path)


class Own(Dataset):
    """Items as a user's Dataset has them."""

    def __init__(self, x: Any, y: Any = None) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> Any:
        return self.x[place] if self.y is None else (self.x[place], self.y[place])


def test_hdf5_is_what_the_same_arrays_are_in_an_npz_file(npz: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x_train"], file["y_train"], file["remarks"] = X, Y, np.zeros(3)
    assert same(everything(Hdf5(path=str(tmp_path / "own.h5")), tmp_path), npz)
    with h5py.File(tmp_path / "named.h5", "w") as file:
        file["all/images"], file["all/labels"] = X, Y
    keys = {"x_train": "all/images", "y_train": "all/labels"}
    assert same(everything(Hdf5(path=str(tmp_path / "named.h5"), keys=keys), tmp_path), npz)


def test_hdf5_from_the_command_line_s_configuration(config: Config, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x_train"] = X
    data = load(config("hdf5", path=str(tmp_path / "own.h5")), tmp_path / "root")
    assert data.spec == DataSpec((1, 6, 6), "discrete", levels=256)
    assert {split: len(part.x) for split, part in data.splits.items()} == {"train": 32, "valid": 4, "test": 4}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (None, r"has no x_train; its arrays are: images, sub/labels\. Name the one to train on by data\.keys="),
        ({"x_train": "image"}, r"data\.keys\.x_train=image: .*did you mean images"),
        ({"x_tarin": "images"}, r"x_tarin.*did you mean x_train"),
        ({"y_train": "sub/labels"}, r"has no x_train"),
        ({"x_train": "sub"}, r"data\.keys\.x_train=sub"),
        ({"x_train": "elsewhere"}, r"data\.keys\.x_train=elsewhere"),
    ],
)
def test_hdf5_that_does_not_say_what_is_what(tmp_path: Path, keys: dict[str, str] | None, words: str) -> None:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["images"], file["sub/labels"] = X, Y
        file["elsewhere"] = h5py.ExternalLink("other.h5", "x")
    with pytest.raises(UserError, match=words):
        Hdf5(path=str(tmp_path / "own.h5"), keys=keys).read(tmp_path)


def test_no_hdf5_file(tmp_path: Path) -> None:
    (tmp_path / "own.h5").write_bytes(b"x_train" * 100)
    with pytest.raises(UserError, match=r"own\.h5 is no complete HDF5 file"):
        Hdf5(path=str(tmp_path / "own.h5")).read(tmp_path)
    with pytest.raises(UserError, match="There is no file"):
        Hdf5(path=str(tmp_path / "none.h5")).fetch(tmp_path)


@pytest.mark.parametrize("as_tensors", [True, False])
def test_a_dataset_is_what_its_items_are_in_an_npz_file(npz: dict[str, Any], tmp_path: Path, as_tensors: bool) -> None:
    own = Own(torch.tensor(X), torch.tensor(Y)) if as_tensors else Own(X, Y.tolist())
    assert same(everything(TorchDataset(train=own), tmp_path), npz)


def test_other_sets_validate_and_test(tmp_path: Path) -> None:
    reader = TorchDataset(train=Own(X), valid=Own(X[:3]), test=Own(X[3:8]))
    parts = reader.read(tmp_path).parts
    assert np.array_equal(parts["train"].x, X[:, None])
    assert np.array_equal(parts["valid"].x, X[:3, None])
    assert np.array_equal(parts["test"].x, X[3:8, None])
    assert parts["train"].y is None


def test_a_change_of_the_set_is_seen(tmp_path: Path) -> None:
    other = X.copy()
    other[0, 0, 0] ^= 1
    states = [TorchDataset(train=Own(x)).source(tmp_path) for x in (X, X.copy(), X[:30], other)]
    assert states[0] == states[1]
    assert states[0] != states[2]
    assert states[0] != states[3]


def test_a_set_that_changes_while_it_is_read_is_none(tmp_path: Path) -> None:
    class Augmented(Own):
        def __getitem__(self, place: int) -> Any:
            return self.x[place] + np.random.rand()

    with pytest.raises(UserError, match=r"data\.train: .*Augmented gives another item at the same place"):
        TorchDataset(train=Augmented(X / 255)).source(tmp_path)


TYPED = """
class Typed(Dataset):
    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        return self.x[place], self.y[place]
"""


def test_a_class_that_was_typed_in(npz: dict[str, Any], tmp_path: Path) -> None:
    typed: dict[str, Any] = {"Dataset": Dataset, "__name__": "typed_in"}
    exec(TYPED, typed)
    own = typed["Typed"]()
    own.x, own.y = X, Y
    reader = TorchDataset(train=own)
    assert same(everything(reader, tmp_path), npz)
    assert reader.source(tmp_path)["train"]["code"] is None


MODULE = """
import numpy as np
from torch.utils.data import Dataset


class Ramp(Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, place):
        return np.full(5, place, np.float32), place % 2


def load(n):
    return Ramp(n)
"""


def test_a_dataset_by_its_name(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ramps.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"train": {"_target_": "ramps.Ramp", "n": 50}, "test": {"_target_": "ramps.Ramp", "n": 4}}
    data = load(config("torch_dataset", **options), tmp_path / "root")
    batch = next(evaluation_batches(data, "test", batch_size=4))
    assert batch.x[:, 0].tolist() == [0, 1, 2, 3]
    assert batch.y is not None
    assert batch.y.tolist() == [0, 1, 0, 1]
    for target in ("ramps.load", "collections.OrderedDict", "torch.utils.data.dataset.TensorDataset"):
        with pytest.raises(UserError, match=r"is no part for|is part of Python's standard library"):
            load(config("torch_dataset", train={"_target_": target, "n": 50}), tmp_path / "root")


class Endless(IterableDataset):
    """A set without places."""

    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (None, r"needs data\.train=\{_target_: my_package\.MySet"),
        (Own([]), r"data\.train: the Dataset Own is empty"),
        (Endless(), r"data\.train: Endless has no length"),
        (Own([np.zeros(3), np.zeros(4)]), r"item 1 of Own has shape \(4,\) and item 0 \(3,\)"),
        (Own([(1, 2, 3)] * 20), r"items of Own have 3 parts"),
        (Own([np.zeros(2), (np.zeros(2), 1)] * 20), r"some items of Own have a label and others none"),
        (Own(["a"] * 20), r"x_train in Own has dtype"),
    ],
)
def test_sets_that_are_none(tmp_path: Path, train: Any, words: str) -> None:
    def use() -> None:
        reader = TorchDataset(train=train)
        reader.fetch(tmp_path)
        reader.read(tmp_path)

    with pytest.raises(UserError, match=words):
        use()
