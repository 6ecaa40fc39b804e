"""Tables of real numbers on which flows and autoregressive densities are compared, prepared as the papers did.

POWER, GAS, HEPMASS, MINIBOONE (UCI) and BSDS300 as in Papamakarios, Pavlakou, Murray, *Masked Autoregressive Flow for
Density Estimation*, NeurIPS 2017 (appendix D), and the ten folds of red wine of Uria, Murray, Larochelle, *RNADE*,
NeurIPS 2013. Densities are those of the prepared columns, as in the papers.
"""

import io
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dgmbench.data.archives import gunzip, read_hdf5, read_npy
from dgmbench.data.files import state
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

MOST_REPEATS = 5  # a column whose smallest value occurs more often is taken as discrete, as in the authors' code


class DensityTable(Reader):
    """Base of these readers: real (d,), no labels, read from one of the alternative ``layouts`` of file names."""

    layouts: ClassVar[tuple[tuple[str, ...], ...]]
    instead: ClassVar[str]

    def _files(self, folder: Path) -> tuple[Path, ...]:
        """The files of the first layout that is complete, or none."""
        complete = (tuple(folder / name for name in layout) for layout in self.layouts)
        return next((files for files in complete if all(file.is_file() for file in files)), ())

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The state of the files."""
        return {file.name: state(file) for file in self._files(folder)}

    def fetch(self, folder: Path) -> None:
        """The files must be there."""
        if not self._files(folder):
            wanted = " or ".join(" and ".join(layout) for layout in self.layouts)
            raise UserError(f"data={folder.name} needs {wanted} in {folder}; {self.instead}.")

    def read(self, folder: Path) -> Decoded:
        """Read, prepare and check."""
        rows, remarks = self.prepare(self._files(folder))
        with np.errstate(over="ignore"):
            rows = {split: x.astype(np.float32) for split, x in rows.items()}  # beyond it is infinite
        bad = next((split for split, x in rows.items() if x.ndim != 2 or x.size == 0 or not np.isfinite(x).all()), None)
        if bad is not None:
            raise UserError(f"The {bad} rows of {folder.name} in {folder} are empty or not finite; get them again.")
        parts = {split: Part(rows[split], None, f"{folder.name}: {split} rows of the paper's split",
                             np.arange(len(rows[split]))) for split in SPLITS}  # fmt: skip
        return Decoded(DataSpec((rows["train"].shape[1],), "real"), parts, remarks)

    @abstractmethod
    def prepare(self, files: tuple[Path, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The prepared rows (n, d) of each split, and remarks for the record."""


class Power(DensityTable):
    """POWER: electric power consumption of one household, minute by minute; 6 columns.

    ``data.npy`` holds the authors' table: active power, reactive power, voltage, intensity, three sub-meters, minute of
    the day; ``household_power_consumption.txt`` is UCI's file, from which the same columns are taken and rows with
    missing values dropped. Reactive power and intensity are left out, and uniform noise of each column's resolution is
    added to all but the time.
    """

    layouts = (("data.npy",), ("household_power_consumption.txt",))
    instead = "get 'Individual household electric power consumption' from the UCI repository"

    def prepare(self, files: tuple[Path, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Shuffle, drop, add noise, split off the ends, standardise."""
        table = _load_npy(files[0], 8) if files[0].suffix == ".npy" else _household(files[0])
        rng = np.random.RandomState(42)
        table = table.copy()
        rng.shuffle(table)
        n = len(table)
        x = table[:, [0, 2, 4, 5, 6, 7]].astype(np.float64)
        voltage, active = 0.01 * rng.rand(n, 1), 0.001 * rng.rand(n, 1)  # drawn in the authors' order
        x += np.hstack([active, voltage, rng.rand(n, 3), np.zeros((n, 1))])
        return _standardised(_ends(x)), {"columns": "active power, voltage, three sub-meters, minute of the day"}


class Gas(DensityTable):
    """GAS: readings of chemical sensors in a mixture of ethylene and carbon monoxide; 8 columns.

    The authors' table is a quarter of the rows, ``ethylene_CO.npy`` (n, 19), saved from their pickle by numpy. From
    UCI's ``ethylene_CO.txt`` every fourth row is taken instead, another sample of the data, and the record says so.
    Time and concentrations are left out, then, one by one, columns correlated above 0.98 with another.
    """

    layouts = (("ethylene_CO.npy",), ("ethylene_CO.txt",))
    instead = "get 'Gas sensor array under dynamic gas mixtures' from the UCI repository"

    def prepare(self, files: tuple[Path, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Drop, standardise, split off the ends."""
        if files[0].suffix == ".npy":
            table, rows = _load_npy(files[0], 19), "the authors' quarter"
        else:
            table, rows = _load_text(files[0], 19, skiprows=1)[::4], "every fourth"
        x = table[:, 3:].astype(np.float64)
        while True:
            close = (np.corrcoef(x.T) > 0.98).sum(1)
            if close.max() == 1:
                break
            x = np.delete(x, int(np.argmax(close > 1)), axis=1)
        x = (x - x.mean(0)) / x.std(0, ddof=1)
        return _ends(x), {"rows": rows}


class Hepmass(DensityTable):
    """HEPMASS: collisions that produce new particles of mass 1000; 21 columns, the signal only."""

    layouts = (("1000_train.csv.gz", "1000_test.csv.gz"), ("1000_train.csv", "1000_test.csv"))
    instead = "get 'HEPMASS' from the UCI repository"

    def prepare(self, files: tuple[Path, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Keep the signal, standardise by the training rows, drop discrete columns."""
        # a row is the label and 27 features; the published test file has one more column, which has no name
        train, test = (_load_text(file, None, skiprows=1, delimiter=",") for file in files)
        train, test = train[train[:, 0] == 1, 1:28], test[test[:, 0] == 1, 1:28]
        mean, scale = train.mean(0), train.std(0, ddof=1)
        train, test = (train - mean) / scale, (test - mean) / scale
        keep = _continuous(train)
        n_valid = int(0.1 * len(train))
        rows = {"train": train[:-n_valid, keep], "valid": train[-n_valid:, keep], "test": test[:, keep]}
        return rows, {"dropped": np.flatnonzero(~keep).tolist()}


class Miniboone(DensityTable):
    """MINIBOONE: events of a neutrino experiment, the signal (electron neutrinos) only; 43 columns.

    ``data.npy`` holds the authors' table; from UCI's ``MiniBooNE_PID.txt`` the signal's rows are taken, without those
    that are filled with -999, and without discrete columns.
    """

    layouts = (("data.npy",), ("MiniBooNE_PID.txt",))
    instead = "get 'MiniBooNE particle identification' from the UCI repository"

    def prepare(self, files: tuple[Path, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Clean, split off the ends, standardise."""
        if files[0].suffix == ".npy":
            return _standardised(_ends(_load_npy(files[0], None).astype(np.float64))), {}
        with files[0].open() as file:
            signal = int(file.readline().split()[0])
        x = _load_text(files[0], 50, skiprows=1)[:signal]
        x = x[x[:, 0] >= -100]
        return _standardised(_ends(x[:, _continuous(x)])), {}


class Bsds300(DensityTable):
    """BSDS300: 8x8 grey patches of natural images, mean removed, the last pixel left out; 63 columns."""

    layouts = (("BSDS300.hdf5",),)
    instead = "get the prepared patches of Zoran and Weiss (BSDS300.hdf5) that the MAF paper's data archive holds"

    def prepare(self, files: tuple[Path, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As it stands."""
        found = read_hdf5(files[0], {"train": ["train"], "valid": ["validation"], "test": ["test"]})
        return found, {}


class RedWine(DensityTable):
    """Red wine (UCI wine quality), 11 columns, in the ten folds of the RNADE paper.

    Fold ``fold`` of 1 ... 10 tests on its tenth; of its nine training parts the last validates. Columns are
    standardised by the training rows, and the density is that of the standardised columns.
    """

    layouts = (("red_wine.hdf5",),)
    instead = "get it from github.com/MarcCote/NADE (rnade/red_wine.hdf5)"

    def __init__(self, *, fold: int = 1) -> None:
        if fold not in range(1, 11):
            raise UserError(f"data.fold={fold} must be one of the ten folds, 1 to 10.")
        self.fold = fold

    def prepare(self, files: tuple[Path, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Take the fold and standardise by its training rows."""
        training = [f"folds/{self.fold}/training/{part}/data" for part in range(1, 10)]
        keys = {"train": training[:-1], "valid": training[-1:], "test": [f"folds/{self.fold}/tests/1/data"]}
        rows = {split: x.astype(np.float64) for split, x in read_hdf5(files[0], keys).items()}
        mean, scale = rows["train"].mean(0), rows["train"].std(0)
        remarks = {"mean": mean.tolist(), "scale": scale.tolist()}
        return {split: (x - mean) / scale for split, x in rows.items()}, remarks


def _load_npy(path: Path, columns: int | None) -> np.ndarray:
    table = read_npy(path)
    if table.ndim != 2 or columns not in (None, table.shape[1]):
        raise UserError(f"{path} must hold a table of {columns or 'several'} columns.")
    return table


def _load_text(path: Path, columns: int | None, **options: Any) -> np.ndarray:
    try:
        with io.StringIO(gunzip(path).decode()) if path.suffix == ".gz" else path.open() as file:
            table = np.loadtxt(file, ndmin=2, **options)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is not the published table of numbers ({error}).") from error
    if columns not in (None, table.shape[1]):
        raise UserError(f"{path} has {table.shape[1]} columns, the published table {columns}.")
    return table


def _household(path: Path) -> np.ndarray:
    """UCI's file as the authors' table (n, 8), rows with missing values (marked ?) dropped."""
    rows = []
    with path.open() as file:
        header = file.readline().strip().split(";")
        if header[:3] != ["Date", "Time", "Global_active_power"] or len(header) != 9:
            raise UserError(f"{path} is not UCI's table of household power consumption; get it again.")
        for line in file:
            if "?" not in line and not line.rstrip().endswith(";"):
                _, time, *values = line.split(";")
                hours, minutes, _ = time.split(":")
                rows.append([*map(float, values), 60.0 * int(hours) + int(minutes)])
    return np.array(rows, ndmin=2)


def _continuous(x: np.ndarray) -> np.ndarray:
    """Which columns of x (n, d) are continuous: their smallest value occurs at most five times."""
    return (x == x.min(0)).sum(0) <= MOST_REPEATS


def _ends(x: np.ndarray) -> dict[str, np.ndarray]:
    """The last tenth tests, the last tenth of the rest validates."""
    rest, test = x[: -int(0.1 * len(x))], x[-int(0.1 * len(x)) :]
    n_valid = int(0.1 * len(rest))
    return {"train": rest[:-n_valid], "valid": rest[-n_valid:], "test": test}


def _standardised(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns standardised by the training and validation rows together, as the authors did."""
    seen = np.vstack((rows["train"], rows["valid"]))
    return {split: (x - seen.mean(0)) / seen.std(0) for split, x in rows.items()}
