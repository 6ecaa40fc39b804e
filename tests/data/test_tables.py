"""Readers of the density tables, on small files of the published layouts and, where they are, on the real ones."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import DataSpec, load
from dgmbench.data.binary_tables import BITS
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


@pytest.fixture
def rng() -> np.random.RandomState:
    return np.random.RandomState(0)


def folder(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


# ---------------------------------------------------------------------- bits


def test_bits_from_text_and_from_both_archives_are_the_same(
    config: Config, tmp_path: Path, rng: np.random.RandomState
) -> None:
    rows = {split: rng.randint(2, size=(n, 16)) for split, n in (("train", 30), ("valid", 9), ("test", 11))}
    found = []
    for way in ("text", "blanks", "authors", "ours"):
        root = tmp_path / way
        root.mkdir()
        place = folder(root, "binary_density")
        for split, x in rows.items():
            if way in ("text", "blanks"):
                separator = "," if way == "text" else " "
                text = "\n".join(separator.join(map(str, row)) for row in x) + ("\n" if way == "text" else "")
                (place / f"nltcs.{split}.data").write_text(text)
        if way == "authors":
            np.savez(place / "nltcs.npz", **{f"{s}_data": x.astype(np.float32) for s, x in rows.items()}, inputsize=16)
        if way == "ours":
            np.savez(place / "nltcs.npz", **{f"x_{s}": x.astype(np.uint8) for s, x in rows.items()})
        data = load(config("binary_density", verify=False), root)
        assert data.spec == DataSpec((16,), "binary")
        assert all(np.array_equal(data.splits[split].x, x) for split, x in rows.items())
        found.append(data.content_hash)
    assert len(set(found)) == 1


@pytest.mark.parametrize("content", ["", "0,1\n0\n", "0,2\n1,0\n", "no bits\n"])
def test_texts_that_are_no_bits_are_refused(config: Config, tmp_path: Path, content: str) -> None:
    place = folder(tmp_path, "binary_density")
    for split in ("train", "valid", "test"):
        (place / f"nltcs.{split}.data").write_text(content)
    with pytest.raises(UserError, match=r"train\.data does not consist of lines of 0 and 1"):
        load(config("binary_density", verify=False), tmp_path)


def test_missing_altered_and_unknown_tables(config: Config, tmp_path: Path, rng: np.random.RandomState) -> None:
    with pytest.raises(UserError, match=r"data=dna needs dna\.npz or .* get them from github.com/mgermain"):
        load(config("dna"), tmp_path)
    np.savez(
        folder(tmp_path, "dna") / "dna.npz",
        **{f"x_{s}": rng.randint(2, size=(9, 180)) for s in ("train", "valid", "test")},
    )
    with pytest.raises(UserError, match=r"dna in .* differs from the published rows of uci_binary"):
        load(config("dna"), tmp_path)
    assert len(load(config("dna", verify=False), tmp_path).splits["test"]) == 9
    with pytest.raises(UserError, match="table of binary_density"):
        load(config("binary_density", table="nlts"), tmp_path)


def test_every_published_table(config: Config, shared: Path, tmp_path: Path) -> None:
    """The packed copies of the published rows: what they hash to, their splits, and that both dna differ."""
    for collection, path in (("uci_binary", "uci_binary/uci_binary"), ("binary_density", "binary_density/debd")):
        packed = np.load(shared / "data" / f"{path}.npz")
        for table in BITS[collection]:
            name = table if collection == "uci_binary" else collection
            place = tmp_path / name
            place.mkdir(exist_ok=True)
            d = int(packed[f"{table}_dim"])
            rows = {s: np.unpackbits(packed[f"{table}_{s}"], axis=1, count=d) for s in ("train", "valid", "test")}
            np.savez(place / f"{table}.npz", **{f"x_{s}": x for s, x in rows.items()})
            data = load(config(name) if name == table else config(name, table=table), tmp_path)
            assert data.spec == DataSpec((d,), "binary")
            assert all(np.array_equal(data.splits[s].x, x) for s, x in rows.items())
    assert BITS["uci_binary"]["dna"] != BITS["binary_density"]["dna"]
    assert BITS["uci_binary"]["nips"] == BITS["binary_density"]["nips"]


# ---------------------------------------------------------------------- real numbers


def check_moments(data: Any, splits: tuple[str, ...]) -> None:
    x = np.concatenate([data.splits[split].x for split in splits]).astype(np.float64)
    assert np.abs(x.mean(0)).max() < 1e-5
    assert np.abs(x.std(0) - 1).max() < 1e-5


def test_power_from_text_is_power_from_the_authors_table(
    config: Config, tmp_path: Path, rng: np.random.RandomState
) -> None:
    n = 200
    values = np.round(rng.uniform(0, 9, size=(n, 7)), 3)
    minutes = rng.randint(24 * 60, size=n)
    lines = ["Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;S1;S2;S3"]
    for row, minute in zip(values, minutes, strict=True):
        lines.append(f"16/12/2006;{minute // 60:02}:{minute % 60:02}:00;" + ";".join(f"{v:.3f}" for v in row))
        lines.append("16/12/2006;17:24:00;?;?;?;?;?;?;")
    (tmp_path / "text").mkdir()
    (folder(tmp_path / "text", "power") / "household_power_consumption.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "npy").mkdir()
    np.save(folder(tmp_path / "npy", "power") / "data.npy", np.column_stack([values, minutes]))
    text, npy = load(config("power"), tmp_path / "text"), load(config("power"), tmp_path / "npy")
    assert {s: len(p) for s, p in text.splits.items()} == {"train": 162, "valid": 18, "test": 20}
    assert text.content_hash == npy.content_hash
    check_moments(text, ("train", "valid"))

    # the same numbers as the published preparation: shuffle, columns 1 and 3 out, noise, ends, standardise
    g = np.random.RandomState(42)
    table = np.column_stack([values, minutes])
    g.shuffle(table)
    table = np.delete(table, [1, 3], axis=1)
    voltage, active, meters = 0.01 * g.rand(n, 1), 0.001 * g.rand(n, 1), g.rand(n, 3)
    table = table + np.hstack([active, voltage, meters, np.zeros((n, 1))])
    mean, scale = table[:180].mean(0), table[:180].std(0)
    assert np.allclose(text.splits["test"].x, (table[180:] - mean) / scale, atol=1e-5)


def test_gas_drops_columns_that_repeat_others(config: Config, tmp_path: Path, rng: np.random.RandomState) -> None:
    n = 400
    base = rng.randn(n, 8)
    sensors = np.column_stack([base, base + 1e-3 * rng.randn(n, 8)])  # each twice: the first of a pair goes
    table = np.column_stack([np.arange(n), rng.rand(n, 2), sensors])
    np.save(folder(tmp_path, "gas") / "ethylene_CO.npy", table)
    data = load(config("gas"), tmp_path)
    assert data.spec == DataSpec((8,), "real")
    assert data.meta["remarks"] == {"rows": "the authors' quarter"}
    kept = sensors[:, 8:]
    assert np.allclose(data.splits["test"].x, ((kept - kept.mean(0)) / kept.std(0, ddof=1))[360:], atol=1e-4)

    (tmp_path / "gas" / "ethylene_CO.npy").unlink()
    lines = ["Time (seconds), CO conc (ppm), Ethylene conc (ppm), sensor readings (16 channels)"]
    lines += [" ".join(f"{v:.6f}" for v in row) for row in np.repeat(table, 4, axis=0)]
    (tmp_path / "gas" / "ethylene_CO.txt").write_text("\n".join(lines) + "\n")
    again = load(config("gas"), tmp_path)
    assert again.meta["remarks"] == {"rows": "every fourth"}
    assert np.allclose(again.splits["test"].x, data.splits["test"].x, atol=1e-3)


def test_hepmass_keeps_the_signal_and_continuous_columns(
    config: Config, tmp_path: Path, rng: np.random.RandomState
) -> None:
    def table(n: int, columns: int) -> np.ndarray:
        x = rng.randn(n, columns)
        x[:, [4, 9, 13, 17, 21, 25]] = rng.randint(2, size=(n, 6))  # discrete features
        x[:, 0] = np.arange(n) % 2
        return x

    place, train, test = folder(tmp_path, "hepmass"), table(400, 28), table(100, 29)
    for name, x in (("train", train), ("test", test)):
        text = "# label, f0, f1\n" + "\n".join(",".join(map(repr, map(float, row))) for row in x) + "\n"
        (place / f"1000_{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    data = load(config("hepmass"), tmp_path)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 180, "valid": 20, "test": 50}
    keep = [c for c in range(1, 28) if c not in (4, 9, 13, 17, 21, 25)]
    signal = train[1::2][:, keep]
    wanted = (test[1::2][:, keep] - signal.mean(0)) / signal.std(0, ddof=1)
    assert np.allclose(data.splits["test"].x, wanted, atol=1e-5)


def test_miniboone_keeps_the_signal_without_outliers(
    config: Config, tmp_path: Path, rng: np.random.RandomState
) -> None:
    x = rng.randn(300, 50)
    x[:, [3, 8, 15, 22, 29, 36, 43]] = rng.randint(3, size=(300, 7))
    x[[5, 17]] = -999
    lines = [" 200 100", *(" ".join(f"{v: .5e}" for v in row) for row in x)]
    (folder(tmp_path, "miniboone") / "MiniBooNE_PID.txt").write_text("\n".join(lines) + "\n")
    data = load(config("miniboone"), tmp_path)
    assert data.spec == DataSpec((43,), "real")
    assert sum(len(p) for p in data.splits.values()) == 198
    check_moments(data, ("train", "valid"))


def test_hdf5_tables(config: Config, tmp_path: Path, rng: np.random.RandomState) -> None:
    import h5py

    x = {"train": rng.randn(40, 63), "validation": rng.randn(5, 63), "test": rng.randn(7, 63)}
    with h5py.File(folder(tmp_path, "bsds300") / "BSDS300.hdf5", "w") as file:
        for key, rows in x.items():
            file[key] = rows
    data = load(config("bsds300"), tmp_path)
    assert np.allclose(data.splits["valid"].x, x["validation"], atol=1e-6)
    (folder(tmp_path, "red_wine") / "red_wine.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"red_wine\.hdf5 is no complete HDF5 file"):
        load(config("red_wine"), tmp_path)


def test_the_ten_folds_of_red_wine(config: Config, shared: Path, tmp_path: Path) -> None:
    (folder(tmp_path, "red_wine") / "red_wine.hdf5").symlink_to(shared / "data" / "red_wine" / "red_wine.hdf5")
    folds = [load(config("red_wine", fold=fold), tmp_path) for fold in range(1, 11)]
    assert sum(len(data.splits["test"]) for data in folds) == 1599
    for data in folds:
        assert data.spec == DataSpec((11,), "real")
        assert sum(len(p) for p in data.splits.values()) == 1599
        check_moments(data, ("train",))
    with pytest.raises(UserError, match=r"data\.fold=11 must be one of the ten folds"):
        load(config("red_wine", fold=11), tmp_path)


@pytest.mark.parametrize("name", ["power", "gas", "hepmass", "miniboone", "bsds300", "red_wine"])
def test_missing_tables_say_where_they_come_from(config: Config, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"data={name} needs .* in .*; get "):
        load(config(name), tmp_path)


@pytest.mark.parametrize(
    ("name", "file"), [("power", "data.npy"), ("hepmass", "1000_train.csv"), ("gas", "ethylene_CO.txt")]
)
def test_damaged_tables_are_refused(config: Config, tmp_path: Path, name: str, file: str) -> None:
    place = folder(tmp_path, name)
    (place / file).write_text("not\na table\n")
    (place / "1000_test.csv").write_text("not\na table\n")
    with pytest.raises(UserError, match=file.replace(".", r"\.")):
        load(config(name), tmp_path)
