"""The real sets, read from the files that people have: published archives dropped in, and arrays as .npz."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.data import BatchStream, DataSet, DataSpec, evaluation_batches, load
from dgmbench.data.text import decode_tokens

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def unpack(shared: Path) -> dict[str, Any]:
    return runpy.run_path(str(shared / "unpack_data.py"))


@pytest.fixture(scope="module")
def root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root into which the published files of MNIST and Fashion-MNIST were dropped."""
    root = tmp_path_factory.mktemp("root")
    for name in ("mnist", "fashion_mnist"):
        (root / name).mkdir()
        for file in (shared / "data" / name).iterdir():
            (root / name / file.name).symlink_to(file)
    return root


def check_batches(data: DataSet) -> None:
    """One batch and one pass agree with the stored arrays."""
    batch = BatchStream(data, batch_size=64, seed=0).batch(3)
    assert batch.x.dtype == data.spec.dtype
    assert np.array_equal(batch.x.numpy(), data.splits["train"].x[batch.index.numpy()])
    test = torch.cat([b.x for b in evaluation_batches(data, "test", batch_size=1000)])
    assert np.array_equal(test.numpy(), data.splits["test"].x)


@pytest.mark.parametrize(("name", "mean"), [("mnist", 33.318), ("fashion_mnist", 72.940)])
def test_mnist_and_fashion_mnist(config: Config, root: Path, name: str, mean: float) -> None:
    data = load(config(name), root)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 50_000, "valid": 10_000, "test": 10_000}
    official = (5 * data.splits["train"].x.mean() + data.splits["valid"].x.mean()) / 6
    assert official == pytest.approx(mean, abs=1e-3)  # of the 60,000, as published
    assert np.bincount(data.splits["test"].y).sum() == 10_000
    check_batches(data)
    assert load(config(name), root).content_hash == data.content_hash


def test_mnist_begins_with_the_known_labels(config: Config, root: Path) -> None:
    data = load(config("mnist"), root)
    assert data.splits["train"].y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.splits["test"].y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_mnist_binarised_both_ways(config: Config, root: Path) -> None:
    grey = load(config("mnist"), root)
    still = load(config("mnist", binarise="threshold"), root)
    moving = load(config("mnist", binarise="dynamic"), root)
    assert np.array_equal(still.splits["test"].x, grey.splits["test"].x >= 128)
    batch = next(evaluation_batches(moving, "test", batch_size=10_000))
    p = grey.splits["test"].x / 255
    assert batch.x.numpy().mean() == pytest.approx(p.mean(), abs=5 * np.sqrt((p * (1 - p)).mean() / p.size))


def test_binarized_mnist(config: Config, unpack: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "binarized_mnist").mkdir()
    np.savez_compressed(tmp_path / "binarized_mnist" / "binarized_mnist.npz", **unpack["binarized_mnist"]())
    data = load(config("binarized_mnist"), tmp_path)
    assert data.spec == DataSpec((1, 28, 28), "binary")
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 50_000, "valid": 10_000, "test": 10_000}
    check_batches(data)


@pytest.mark.parametrize(
    ("name", "spec", "counts"),
    [
        ("frey_faces", DataSpec((1, 28, 20), "discrete", levels=256), (1589, 176, 200)),
        ("olivetti_faces", DataSpec((1, 64, 64), "discrete", levels=256, num_classes=40), (315, 35, 50)),
        ("dna", DataSpec((180,), "binary"), (1400, 600, 1186)),
    ],
)
def test_sets_unpacked_to_npz(
    config: Config, unpack: dict[str, Any], tmp_path: Path, name: str, spec: DataSpec, counts: tuple[int, ...]
) -> None:
    arrays = dict(unpack["binary_density"]())[name] if name == "dna" else unpack[name]()
    np.savez(tmp_path / f"{name}.npz", **arrays)
    data = load(config("npz", path=str(tmp_path / f"{name}.npz"), test=0.1), tmp_path / "root")
    assert data.spec == spec
    assert tuple(len(data.splits[split]) for split in ("train", "valid", "test")) == counts
    check_batches(data)


def test_one_sheet_of_cifar10(config: Config, shared: Path, unpack: dict[str, Any], tmp_path: Path) -> None:
    x = unpack["sheet"](shared / "data" / "cifar10" / "test_batch.webp", 32, 100)
    y = np.load(shared / "data" / "cifar10" / "labels.npz")["y_test"]
    np.savez(tmp_path / "cifar10.npz", x_train=x[1000:], y_train=y[1000:], x_test=x[:1000], y_test=y[:1000])
    data = load(config("npz", path=str(tmp_path / "cifar10.npz")), tmp_path / "root")
    assert data.spec == DataSpec((3, 32, 32), "discrete", levels=256, num_classes=10)
    assert data.splits["test"].y[:5].tolist() == [3, 8, 8, 0, 6]
    check_batches(data)


def test_one_sheet_of_lfw64(config: Config, shared: Path, unpack: dict[str, Any], tmp_path: Path) -> None:
    faces = unpack["sheet"](shared / "data" / "lfw64" / "faces_8.jpg", 64, 40)[:433]
    np.savez(tmp_path / "lfw64.npz", x_train=faces)
    data = load(config("npz", path=str(tmp_path / "lfw64.npz")), tmp_path / "root")
    assert data.spec == DataSpec((3, 64, 64), "discrete", levels=256)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 347, "valid": 43, "test": 43}
    check_batches(data)


def test_faces_as_a_folder_of_pictures(config: Config, unpack: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    arrays = unpack["olivetti_faces"]()
    for i, (face, person) in enumerate(zip(arrays["x_train"], arrays["y_train"], strict=True)):
        folder = tmp_path / "faces" / f"person{person:02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face[0]).save(folder / f"{i:03}.png")
    data = load(config("images", path=str(tmp_path / "faces"), channels=1), tmp_path / "root")
    assert data.spec == DataSpec((1, 64, 64), "discrete", levels=256, num_classes=35)
    everything = {x.tobytes(): y for part in data.splits.values() for x, y in zip(part.x, part.y, strict=True)}
    assert everything == {x.tobytes(): y for x, y in zip(arrays["x_train"], arrays["y_train"], strict=True)}


def test_spoken_digits(config: Config, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "fsdd").mkdir()
    (tmp_path / "fsdd" / "fsdd.npz").symlink_to(shared / "data" / "spoken_digits" / "fsdd.npz")
    data = load(config("fsdd"), tmp_path)
    with np.load(shared / "data" / "spoken_digits" / "fsdd.npz") as file:
        segments = np.diff(file["offsets"]) // 1024
        counts = {"test": segments[file["index"] < 5].sum(), "all": segments.sum()}
    assert len(data.splits["test"]) == counts["test"]
    assert sum(map(len, data.splits.values())) == counts["all"]
    check_batches(data)


def test_penn_treebank_and_shakespeare(config: Config, shared: Path, tmp_path: Path) -> None:
    for name in ("ptb", "tinyshakespeare"):
        (tmp_path / name).symlink_to(shared / "data" / name)
    ptb = load(config("ptb"), tmp_path)
    tokens = {split: int((part.x != 0).sum()) + len(part) for split, part in ptb.splits.items()}
    assert tokens == {"train": 929_589, "valid": 73_760, "test": 82_430}  # as published, with the ends
    assert ptb.spec.levels == 10_000
    check_batches(ptb)
    plays = load(config("tinyshakespeare"), tmp_path)
    assert plays.spec.levels == 65
    assert decode_tokens(plays.splits["train"].x[:1], plays.spec)[0].startswith("First Citizen:\nBefore we proceed")
    check_batches(plays)


def test_newsgroups(config: Config, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "newsgroups20").symlink_to(shared / "data" / "newsgroups20")
    data = load(config("newsgroups20", words=200), tmp_path)
    left_out = data.meta["remarks"]["documents_left_out"]
    assert {s: len(part) + left_out[s] for s, part in data.splits.items()} == {
        "train": 11_214, "valid": 100, "test": 7_531,
    }  # fmt: skip
    frequency = data.splits["train"].x.sum(0)
    assert (np.diff(frequency) <= 0).all(), "the frequent words first"
    assert "people" in data.spec.vocabulary[:20]
    check_batches(data)
