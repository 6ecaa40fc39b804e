"""Downloads, from a server of our own on this machine."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import load
from dgmbench.data.binarized_mnist import BinarizedMnist
from dgmbench.data.files import PublishedFile
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def published(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small stand-ins for binarized_mnist's files, published under their true names and checksums."""
    folder, address = served
    files = []
    for file, n in zip(BinarizedMnist.files, (30, 20, 10), strict=True):
        rows = np.random.RandomState(n).randint(2, size=(n, 784))
        content = b"".join(b" ".join(b"%d" % v for v in row) + b"\n" for row in rows)
        (folder / file.name).write_bytes(content)
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        files.append(PublishedFile(file.name, checksum, f"{address}/{file.name}"))
    monkeypatch.setattr(BinarizedMnist, "files", tuple(files))
    return folder


def test_only_on_request(config: Config, published: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.download=true fetch them"):
        load(config("binarized_mnist"), tmp_path)
    assert not (tmp_path / "binarized_mnist").exists()


def test_missing_files_are_fetched_with_a_progress_bar(
    config: Config, published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = load(config("binarized_mnist", download=True), tmp_path)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 30, "valid": 20, "test": 10}
    assert sorted(p.name for p in (tmp_path / "binarized_mnist").iterdir()) == sorted(
        p.name for p in published.iterdir()
    )
    assert "100%" in capfd.readouterr().err


def test_a_download_that_differs_is_refused_and_not_kept(config: Config, published: Path, tmp_path: Path) -> None:
    (published / "binarized_mnist_valid.amat").write_bytes(b"0 1\n")
    with pytest.raises(UserError, match=r"binarized_mnist_valid\.amat does not have the published sha256:"):
        load(config("binarized_mnist", download=True), tmp_path)
    assert [p.name for p in (tmp_path / "binarized_mnist").iterdir()] == ["binarized_mnist_train.amat"]


def test_an_unreachable_server_is_named(config: Config, published: Path, tmp_path: Path) -> None:
    (published / "binarized_mnist_train.amat").unlink()
    with pytest.raises(UserError, match=r"http://127.* cannot be fetched to .*404.*get binarized_mnist_train\.amat by"):
        load(config("binarized_mnist", download=True), tmp_path)
