"""Arrays that stay in their file: the same data to the bit, a fraction of the memory, refused for the same reasons."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench import system
from dgmbench.data import load, npz
from dgmbench.data.large import blocks
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
RNG = np.random.RandomState(0)


def save(path: Path, how: str, x: np.ndarray) -> Path:
    if how == "npy":
        np.save(path.with_suffix(".npy"), x)
        return path.with_suffix(".npy")
    (np.savez_compressed if how == "compressed" else np.savez)(path, before=np.arange(3), x_train=x)
    return path


@pytest.mark.parametrize("how", ["stored", "compressed", "npy"])
@pytest.mark.parametrize(
    "x",
    [
        RNG.randn(300, 7),
        np.asfortranarray(RNG.randn(300, 7).astype(">f4")),
        RNG.randint(256, size=(300, 1, 6, 6)).astype(np.int64),
        (RNG.rand(300, 5, 5) < 0.5).astype(np.float64),
    ],
    ids=["real", "big-endian columns", "levels", "bits"],
)
def test_the_same_data_as_from_memory(
    x: np.ndarray, how: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.npz", how, x)
    whole = load(config("npz", path=str(path)), tmp_path / "whole")
    monkeypatch.setattr(npz, "LARGE", 1)
    monkeypatch.setattr("dgmbench.data.large.BLOCK", 999)  # rows are cut unevenly
    kept: list[type] = []
    monkeypatch.setattr(npz, "converted", lambda x, convert: kept.append(type(x)) or npz_converted(x, convert))
    mapped = load(config("npz", path=str(path)), tmp_path / "mapped")
    assert kept == [np.memmap]
    assert mapped.content_hash == whole.content_hash
    assert mapped.spec == whole.spec
    assert mapped.meta["notes"] == whole.meta["notes"]


npz_converted = npz.converted


@pytest.mark.parametrize("how", ["stored", "compressed"])
def test_a_fraction_of_the_memory(how: str, config: Config, tmp_path: Path) -> None:
    x = RNG.randn(1500, 64).repeat(100, axis=0)
    size = x.nbytes
    path = save(tmp_path / "x.npz", how, x)
    del x
    system.reset_peak_memory()
    before = system.peak_memory()
    data = load(config("npz", path=str(path)), tmp_path / "root")
    assert data.size("train") == 120_000
    assert system.peak_memory() - before < size  # held in memory it takes twice that


def test_what_is_refused_of_a_file_is_refused_of_a_large_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "LARGE", 1)

    def sentence(x: np.ndarray, change: Callable[[Path], object] = lambda path: None, **options: Any) -> str:
        path = save(tmp_path / "x.npz", "stored", x)
        change(path)
        with pytest.raises(UserError) as caught:
            load(config("npz", path=str(path), **options), tmp_path / "root")
        return str(caught.value)

    x = RNG.randn(50, 3)
    holed = np.where(np.arange(50)[:, None] == 31, np.nan, x)
    assert "holds 3 values that are NaN or infinite, the first in example 31" in sentence(holed)
    assert "values beyond float32, up to 1e+300" in sentence(np.where(x == x[7], 1e300, x))
    assert "values from 0 to 300, but discrete data are the integers 0 ... 255" in sentence(
        np.arange(300.0).repeat(2).reshape(-1, 2) * 300 / 299, kind="discrete"
    )

    long = RNG.randn(5000, 3)  # more than the archive's reader takes at once, which compares what it has read

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[content.find(long.tobytes()) + 100] ^= 1
        path.write_bytes(content)

    assert "Bad CRC-32" in sentence(long, flip)


def test_blocks_are_all_rows_in_order() -> None:
    x = RNG.randn(1001, 300).astype(np.float64)
    assert np.array_equal(np.concatenate(list(blocks(x))), x)
