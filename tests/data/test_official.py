"""The readers of published files, on small files of the same formats."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dgmbench.data import DataSpec, load
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
RNG = np.random.RandomState(0)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A data root with MNIST's four files, 50 and 20 images."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, n in (("train", 50), ("t10k", 20)):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(RNG.randint(256, size=(n, 28, 28))))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(n) % 10))
    return tmp_path


def test_mnist_files(config: Config, mnist: Path) -> None:
    data = load(config("mnist", valid=10, verify=False), mnist)
    assert data.spec == DataSpec((1, 28, 28), "discrete", levels=256, num_classes=10)
    raw = gzip.decompress((mnist / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    images = np.frombuffer(raw, np.uint8).reshape(50, 1, 28, 28)
    assert np.array_equal(data.splits["train"].x, images[:40])
    assert np.array_equal(data.splits["valid"].x, images[40:])
    assert data.splits["valid"].y.tolist() == list(range(10))
    assert len(data.splits["test"]) == 20


def test_other_files_than_the_published_ones_are_refused(config: Config, mnist: Path) -> None:
    sentence = r"train-images-idx3-ubyte\.gz is truncated or altered.*data\.download|data\.verify=false"
    with pytest.raises(UserError, match=sentence):
        load(config("mnist", valid=10), mnist)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda good: good[:400], "is no complete gzip file"),
        (lambda good: b"plain", "is no complete gzip file"),
        (lambda good: good[:300] + bytes([good[300] ^ 0xFF]) + good[301:], "is no complete gzip file"),
        (lambda good: gzip.compress(b"text"), "is no idx file of bytes"),
        (lambda good: gzip.compress(b""), "begins with nothing"),
        (lambda good: gzip.compress(gzip.decompress(good)[:-1]), r"shape \(50, 28, 28\) but holds 39199 bytes"),
        (lambda good: gzip.compress(b"\0\0\x08\x03\0\0"), "is no idx file of bytes"),
        (lambda good: idx(np.zeros((50, 20, 20))), r"hold images \(50, 20, 20\)"),
        (lambda good: idx(np.zeros((49, 28, 28))), r"hold images \(49, 28, 28\) and labels \(50,\)"),
    ],
)
def test_damaged_idx_files_are_refused(
    config: Config, mnist: Path, content: Callable[[bytes], bytes], sentence: str
) -> None:
    path = mnist / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(UserError, match=sentence):
        load(config("mnist", valid=10, verify=False), mnist)


def test_too_large_a_validation_set_is_refused(config: Config, mnist: Path) -> None:
    with pytest.raises(UserError, match="leaves none of 50 for training"):
        load(config("mnist", verify=False), mnist)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz"),
        ("fashion_mnist", "t10k-labels-idx1-ubyte.gz"),
        ("binarized_mnist", "binarized_mnist_train.amat"),
        ("cifar10", "cifar-10-python.tar.gz"),
    ],
)
def test_missing_files_are_named_with_their_place(config: Config, tmp_path: Path, name: str, files: str) -> None:
    with pytest.raises(UserError) as caught:
        load(config(name), tmp_path)
    text = str(caught.value)
    assert f"data={name} needs " in text
    assert files in text
    assert f"in {tmp_path / name};" in text
    assert "data.download=true" in text
    assert not (tmp_path / "prepared").exists()


def test_celeba_has_to_be_fetched_by_hand(config: Config, tmp_path: Path) -> None:
    for download in (False, True):
        with pytest.raises(UserError, match=r"img_align_celeba\.zip.* by hand from https://mmlab"):
            load(config("celeba", download=download), tmp_path)


def amat(rows: np.ndarray) -> bytes:
    return b"".join(b" ".join(b"%d" % v for v in row) + b"\n" for row in rows)


def test_binarized_mnist_text_and_archive_agree(config: Config, tmp_path: Path) -> None:
    rows = {split: RNG.randint(2, size=(n, 784)) for split, n in (("train", 30), ("valid", 20), ("test", 10))}
    folder = tmp_path / "text" / "binarized_mnist"
    folder.mkdir(parents=True)
    for split, x in rows.items():
        (folder / f"binarized_mnist_{split}.amat").write_bytes(amat(x))
    text = load(config("binarized_mnist", verify=False), tmp_path / "text")
    assert text.spec == DataSpec((1, 28, 28), "binary")
    for split, x in rows.items():
        assert np.array_equal(text.splits[split].x.reshape(-1, 784), x)

    folder = tmp_path / "archive" / "binarized_mnist"
    folder.mkdir(parents=True)
    images = {f"x_{s}": x.astype(np.uint8).reshape(-1, 1, 28, 28) for s, x in rows.items()}
    np.savez(folder / "binarized_mnist.npz", **images)
    assert load(config("binarized_mnist", verify=False), tmp_path / "archive").content_hash == text.content_hash
    with pytest.raises(UserError, match=r"x_train in .* differs from the published 50,000 rows"):
        load(config("binarized_mnist"), tmp_path / "archive")
    np.savez(folder / "binarized_mnist.npz", x_train=images["x_train"])
    with pytest.raises(UserError, match=r"needs x_valid of 784 values 0 or 1"):
        load(config("binarized_mnist", verify=False), tmp_path / "archive")


@pytest.mark.parametrize("content", [b"", b"0 1 2\n", b"0 1 0\n", b"\xff" * 784])
def test_damaged_amat_files_are_refused(config: Config, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"binarized_mnist_{split}.amat").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.amat does not consist of lines of 784 values 0 or 1"):
        load(config("binarized_mnist", verify=False), tmp_path)


def numpy_1_pickle(batch: dict[bytes, Any]) -> bytes:
    """As Python 2 and numpy 1 wrote it: protocol 2, arrays rebuilt by numpy.core.multiarray."""
    return pickle.dumps(batch, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_archive(root: Path, **replaced: bytes) -> Path:
    (root / "cifar10").mkdir(exist_ok=True)
    path = root / "cifar10" / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]):
            batch = {b"data": np.full((4, 3072), number, np.uint8), b"labels": [number, 1, 2, 3], b"batch_label": name}
            content = replaced.get(name, numpy_1_pickle(batch))
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_cifar10_archive(config: Config, tmp_path: Path) -> None:
    images = RNG.randint(256, size=(4, 3, 32, 32)).astype(np.uint8)
    first = numpy_1_pickle({b"data": images.reshape(4, 3072), b"labels": [9, 8, 7, 6]})
    cifar_archive(tmp_path, data_batch_1=first)
    data = load(config("cifar10", valid=4, verify=False), tmp_path)
    assert data.spec == DataSpec((3, 32, 32), "discrete", levels=256, num_classes=10)
    assert np.array_equal(data.splits["train"].x[:4], images)
    assert data.splits["train"].y[:5].tolist() == [9, 8, 7, 6, 1]
    assert data.splits["valid"].x.max() == data.splits["valid"].x.min() == 4  # data_batch_5
    assert data.splits["test"].y.tolist() == [5, 1, 2, 3]
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is truncated or altered"):
        load(config("cifar10"), tmp_path)


class Exploit:
    def __reduce__(self) -> Any:
        return (open, ("pwned", "w"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps({b"data": Exploit()}), r"asks for .*open, which no array needs"),
        (pickle.dumps({b"data": np.zeros((4, 3072))}), "is no batch of CIFAR-10"),
        (pickle.dumps({b"data": np.zeros((4, 3072)), b"labels": [1] * 4}), r"does not hold \(n, 3072\) bytes"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, 2, 3]}), "does not hold"),
        (pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1, 2, 3, 10]}), "labels 0 to 9"),
        (pickle.dumps([1, 2]), "is no batch of CIFAR-10"),
        (b"no pickle", "is no batch of CIFAR-10"),
    ],
)
def test_bad_batches_are_refused_and_run_nothing(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar_archive(tmp_path, data_batch_2=content)
    with pytest.raises(UserError, match=rf"data_batch_2 in .*{sentence}"):
        load(config("cifar10", valid=4, verify=False), tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_truncated_or_incomplete_archives_are_refused(config: Config, tmp_path: Path) -> None:
    path = cifar_archive(tmp_path)
    whole = path.read_bytes()
    for content in (whole[:300], b"no archive", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"no complete tar\.gz archive|lacks data_batch"):
            load(config("cifar10", valid=4, verify=False), tmp_path)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(UserError, match="lacks data_batch_1, data_batch_2"):
        load(config("cifar10", valid=4, verify=False), tmp_path)


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """A data root with CelebA's three files: ten pictures, grey by their number, with a green margin."""
    folder = tmp_path / "celeba"
    folder.mkdir()
    names = [f"{i + 1:06}.jpg" for i in range(10)]
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i, name in enumerate(names):
            image = Image.new("RGB", (178, 218), (0, 255, 0))
            image.paste((20 * i, 20 * i, 20 * i), (15, 35, 163, 183))
            content = io.BytesIO()
            image.save(content, "JPEG", quality=95, subsampling=0)
            archive.writestr(f"img_align_celeba/{name}", content.getvalue())
    splits = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]
    lines = [f"{name} {split}\n" for name, split in zip(names, splits, strict=True)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))
    lines = [f"{name} {-1 + 2 * (i % 2):2} {1:2}\n" for i, name in enumerate(names)]
    (folder / "list_attr_celeba.txt").write_text("10\nMale Smiling \n" + "".join(lines))
    return tmp_path


@pytest.mark.parametrize("size", [16, 64, 148])
def test_celeba_files(config: Config, celeba: Path, size: int) -> None:
    data = load(config("celeba", size=size, verify=False), celeba)
    assert data.spec == DataSpec((3, size, size), "discrete", levels=256)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 6, "valid": 2, "test": 2}
    grey = np.concatenate([part.x[:, :, size // 2, size // 2] for part in data.splits.values()]).astype(int)
    assert np.abs(grey - 20 * np.arange(10)[:, None]).max() <= 3
    corner = data.splits["test"].x[:, :, 1:-1, 1:-1].astype(int)  # the margin is cropped away up to JPEG's blur
    assert np.abs(corner[1] - 180).max() < 60


def test_celeba_attributes(config: Config, celeba: Path) -> None:
    data = load(config("celeba", attribute="Male", verify=False), celeba)
    assert data.spec.num_classes == 2
    assert data.splits["train"].y.tolist() == [0, 1, 0, 1, 0, 1]
    assert load(config("celeba", attribute="Smiling", verify=False), celeba).splits["test"].y.tolist() == [1, 1]
    with pytest.raises(UserError, match="no CelebA attribute 'Smile'; did you mean Smiling"):
        load(config("celeba", attribute="Smile", verify=False), celeba)


def test_bad_celeba_files_are_refused(config: Config, celeba: Path) -> None:
    folder = celeba / "celeba"
    archive, partition = folder / "img_align_celeba.zip", folder / "list_eval_partition.txt"
    whole, lists = archive.read_bytes(), partition.read_text()

    def attempt(**options: Any) -> None:
        load(config("celeba", **{"verify": False, **options}), celeba)

    with pytest.raises(UserError, match=r"img_align_celeba\.zip is truncated or altered"):
        attempt(verify=True)
    partition.write_text(lists + "000011.jpg 0\n")
    with pytest.raises(UserError, match=r"lacks 1 of the pictures .* such as 000011\.jpg"):
        attempt()
    partition.write_text(lists[:-3])
    with pytest.raises(UserError, match="truncated or altered: its lines"):
        attempt()
    partition.write_text(lists)
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is no complete zip archive"):
        attempt()
    damaged = bytearray(whole)
    damaged[400:500] = b"\0" * 100
    archive.write_bytes(damaged)
    with pytest.raises(UserError, match=r"000001\.jpg in .* is damaged"):
        attempt()
    with pytest.raises(UserError, match=r"data\.crop is 200"):
        attempt(crop=200)
    with pytest.raises(UserError, match=r"data\.size is 0"):
        attempt(size=0)


def test_a_verified_set_needs_its_files_only_once(config: Config, mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgmbench.data.files import PublishedFile
    from dgmbench.data.mnist import Mnist

    def here(file: PublishedFile) -> PublishedFile:
        content = (mnist / "mnist" / file.name).read_bytes()
        return PublishedFile(file.name, f"sha256:{hashlib.sha256(content).hexdigest()}", file.url)

    monkeypatch.setattr(Mnist, "files", tuple(here(file) for file in Mnist.files))
    first = load(config("mnist", valid=10), mnist)
    for file in Mnist.files:
        (mnist / "mnist" / file.name).unlink()
    again = load(config("mnist", valid=10), mnist)
    assert again.content_hash == first.content_hash
    assert again.meta["source"] == {file.name: file.checksum for file in Mnist.files}
    with pytest.raises(UserError, match="needs train-images"):
        load(config("mnist", valid=5), mnist)
