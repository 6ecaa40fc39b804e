"""A user's own arrays: an .npz file with ``x_train`` and, where there are any, ``x_valid``, ``x_test``, ``y_*``,
``given_*`` and ``length_*``; or an .npy file, a single array that is ``x_train``.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import numpy as np

from dgmbench.data.archives import ZIP_DAMAGE, check_header, open_zip, read_npy
from dgmbench.data.checks import exactly
from dgmbench.data.files import state
from dgmbench.data.labels import numbered
from dgmbench.data.large import LARGE, converted, every, extremes, first_rows, map_member
from dgmbench.data.reader import SPLITS, Chunks, Decoded, Part, Reader, split_at_random, take_parts
from dgmbench.data.spec import DataSpec, Kind
from dgmbench.data.taken_for import ROWS, taken_for, unbounded
from dgmbench.errors import UserError, nearest

Arrays = dict[str, np.ndarray]
Lazy = dict[str, np.ndarray | Chunks]
"""One array for each split."""


def open_npz(path: Path, *, single: str | None = None, scratch: Path | None = None) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; pickled objects are refused. ``single`` is what a single array (.npy) is called.

    With a folder ``scratch``, large arrays stay in their file, and compressed ones are expanded there.
    """
    arrays: dict[str, np.ndarray] = {}
    key = ""
    try:
        with path.open("rb") as stream:
            alone = stream.read(6) == np.lib.format.MAGIC_PREFIX
        if alone and single is not None:
            return {single: read_npy(path, mapped=scratch is not None and path.stat().st_size >= LARGE)}
        if alone:
            raise UserError(f"{path} is a single array; save it with np.savez(FILE, x_train=...).")
        large = _check_members(path) if zipfile.is_zipfile(path) else {}
        # opened here, because np.load leaves a file open that it cannot read
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            with content as file:
                for key in file.files:
                    if scratch is not None and key in large:
                        arrays[key] = map_member(path, large[key], scratch)
                    else:
                        arrays[key] = file[key]
    except ValueError as error:
        if "allow_pickle" in str(error) or "pickle" in str(error):
            what = f"the array {key!r} of Python objects" if key else "pickled objects or is no .npz file at all"
            raise UserError(f"{path} holds {what}, which is not read; save plain numbers of one dtype.") from error
        raise UserError(f"{path} cannot be read as an .npz file ({error}).") from error
    except (*ZIP_DAMAGE, KeyError, TypeError, SyntaxError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is no readable .npz file; it may be truncated ({error}).") from error
    return arrays


def _check_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Refuse arrays that announce what they do not hold; those that are large are returned."""
    large = {}
    with open_zip(path) as archive:
        for member in archive.infolist():
            what = f"The array {member.filename.removesuffix('.npy')!r} in {path}"
            with archive.open(member) as file:
                is_array = file.read(6) == np.lib.format.MAGIC_PREFIX
                file.seek(0)
                if is_array:
                    check_header(file, member.file_size, what)
                    if member.file_size >= LARGE:
                        large[member.filename.removesuffix(".npy")] = member
    return large


class Npz(Reader):
    """Arrays ``x_<split>`` of shape (n, d), (n, h, w) for grey images or (n, c, h, w); integer labels ``y_<split>``.

    The kind follows from the values: all 0 or 1 is binary; other bytes are discrete with 256 levels, as are integers
    of images up to 255; other non-negative integers are counts; the rest is real. ``kind`` and ``levels`` override
    that.

    Labels are non-negative integers, or -1 where one is not known; those with gaps are renumbered, and their old
    numbers are the names of the classes. Of sequences they may be (n, t), one for each step, and ``length_<split>``
    (n,) may say how many steps of each count. ``given_<split>`` are conditions, one for each example, in any of the
    shapes of x; their kind follows from their values.

    Arrays of 32 MiB and more are never in memory as a whole, and compressed ones are expanded on the disk.

    A missing validation or test set is split off the training set by ``split_seed``: shares or numbers
    ``valid`` and ``test``.
    """

    door: ClassVar[str] = "npz"
    wanted: ClassVar[str] = "an .npz file with x_train, or an .npy file"

    def __init__(
        self,
        *,
        path: str | None = None,
        kind: str | None = None,
        levels: int | None = None,
        valid: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        if not path:
            raise UserError(f"data={self.door} needs data.path=FILE, {self.wanted}.")
        if kind is not None and kind not in get_args(Kind):
            raise UserError(nearest(kind, get_args(Kind), what="kind of data"))
        if kind == "tokens" and levels is None:
            raise UserError("data.kind=tokens needs data.levels, the size of the vocabulary.")
        if levels is not None and (levels < 2 or (levels > 256 and kind != "tokens")):
            raise UserError(f"data.levels is {levels}; discrete data have 2 to 256 levels.")
        self.file, self.kind, self.levels = Path(path).expanduser(), cast(Kind | None, kind), levels
        self.valid, self.test, self.split_seed = valid, test, split_seed
        self.class_names: tuple[str, ...] | None = None
        self.notes: list[str] = []

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The state of the file."""
        return state(self.file) if self.file.is_file() else {}

    def fetch(self, folder: Path) -> None:
        """The file must exist."""
        if not self.file.is_file():
            raise UserError(f"There is no file {self.file}; data.path must name {self.wanted}.")

    def read(self, folder: Path) -> Decoded:
        """Read, check, cast and split."""
        arrays, columns = self.arrays(folder)
        xs = {split: arrays[f"x_{split}"] for split in SPLITS if f"x_{split}" in arrays}
        ys = {split: arrays[f"y_{split}"] for split in SPLITS if f"y_{split}" in arrays}
        if "train" not in xs:
            raise UserError(f"{self.file} has no x_train; its keys are: {', '.join(sorted(arrays)) or 'none'}.")
        if ys and set(ys) != set(xs):
            missing = ", ".join(f"y_{s}" for s in SPLITS if s in xs and s not in ys)
            extra = ", ".join(f"x_{s}" for s in SPLITS if s in ys and s not in xs)
            raise UserError(f"{self.file} has labels for some splits only: {missing or extra} is missing.")
        xs = {split: self._values(x, f"x_{split}") for split, x in xs.items()}
        for split, x in xs.items():
            if x.shape[1:] != xs["train"].shape[1:]:
                raise UserError(
                    f"In {self.file}, x_{split} has examples of shape {x.shape[1:]}, but x_train has "
                    f"{xs['train'].shape[1:]}; all splits must agree."
                )
        kind = self.kind or kind_of(xs)
        levels = self.levels or (256 if kind == "discrete" else None)
        classes = names = None
        if ys:
            ys = {split: self._labels(y, f"y_{split}", xs[split]) for split, y in ys.items()}
            ys, classes, names = numbered(ys)
            names = self.class_names or names
            self._require_repeated(ys["train"], classes)
        given, about = self._given(arrays, xs)
        lengths = self._lengths(arrays, xs)
        steps = bool(ys) and ys["train"].ndim == 2
        spec = DataSpec(
            xs["train"].shape[1:], kind, levels, classes, class_names=names, given=about, step_labels=steps,
            lengths=bool(lengths),
        )  # fmt: skip
        notes = [*([] if self.kind else taken_for(xs, spec)), *self.notes]
        parts = {split: self._cast(x, f"x_{split}", spec) for split, x in xs.items()}
        if spec.kind == "real":
            notes += unbounded(first_rows(xs["train"], ROWS).astype(np.float32, copy=False), spec, columns)
        remarks = {"kind": "given" if self.kind else "inferred", **({"columns": columns} if columns else {})}
        return Decoded(spec, self._parts(parts, ys, given, lengths), remarks, lambda: notes)

    def arrays(self, scratch: Path) -> tuple[Arrays, list[str]]:
        """The arrays by their names, and the names of the columns of x where they have any; ``scratch`` is a folder
        for what is expanded.
        """
        return open_npz(self.file, single="x_train", scratch=scratch), []

    def _beside(self, arrays: Mapping[str, np.ndarray], xs: Arrays, what: str) -> Arrays:
        """The arrays ``<what>_<split>`` of all splits, or none at all; one row for each example."""
        found = {split: arrays[f"{what}_{split}"] for split in SPLITS if f"{what}_{split}" in arrays}
        if found and set(found) != set(xs):
            wrong = ", ".join(f"{what}_{split}" for split in SPLITS if (split in xs) != (split in found))
            raise UserError(f"{self.file} has {what}_* for other splits than x_*: look at {wrong}.")
        for split, values in found.items():
            if len(values) != len(xs[split]):
                raise UserError(
                    f"{what}_{split} in {self.file} has {len(values)} rows, but there are {len(xs[split])} examples."
                )
        return found

    def _given(self, arrays: Mapping[str, np.ndarray], xs: Arrays) -> tuple[Lazy, DataSpec | None]:
        found = {s: self._values(c, f"given_{s}") for s, c in self._beside(arrays, xs, "given").items()}
        if not found:
            return {}, None
        kind = kind_of(found)
        spec = DataSpec(found["train"].shape[1:], kind, 256 if kind == "discrete" else None)
        return {split: self._cast(c, f"given_{split}", spec) for split, c in found.items()}, spec

    def _lengths(self, arrays: Mapping[str, np.ndarray], xs: Arrays) -> Arrays:
        found = self._beside(arrays, xs, "length")
        for split, length in found.items():
            if length.ndim != 1 or length.dtype.kind not in "ui":
                raise UserError(f"length_{split} in {self.file} is {length.dtype} {length.shape}; give integers (n,).")
        return {s: exactly(length, np.int64, f"length_{s} in {self.file}") for s, length in found.items()}

    def _values(self, x: np.ndarray, key: str) -> np.ndarray:
        """Check one array as it stands; (n, h, w) becomes (n, 1, h, w)."""
        if x.dtype.kind not in "buif":
            raise UserError(f"{key} in {self.file} has dtype {x.dtype}; give integers, bytes or floats.")
        if x.ndim not in (2, 3, 4) or x.size == 0:
            raise UserError(
                f"{key} in {self.file} has shape {x.shape}; give at least one example, as (n, d), (n, h, w) or "
                "(n, c, h, w)."
            )
        if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
            raise UserError(
                f"{key} in {self.file} has shape {x.shape}, which looks like channels last; save "
                f"{key}.transpose(0, 3, 1, 2) instead."
            )
        if x.dtype.kind == "f" and not every(x, np.isfinite):
            finite = np.isfinite(x)
            first = int(np.argmin(finite.reshape(len(x), -1).all(1)))
            raise UserError(
                f"{key} in {self.file} holds {int((~finite).sum())} values that are NaN or infinite, the first in "
                f"example {first}; replace them or drop those examples."
            )
        return x[:, None] if x.ndim == 3 else x

    def _require_repeated(self, y: np.ndarray, classes: int) -> None:
        """Labels of which hardly two are the same are no classes."""
        if classes > max(2, y.size / 2):
            raise UserError(
                f"y_train in {self.file} holds {classes} different labels for {y.size} examples, which are no classes; "
                "leave it out, or group them."
            )

    def _labels(self, y: np.ndarray, key: str, x: np.ndarray) -> np.ndarray:
        known = y.dtype.kind in "bui" and y.size > 0 and y.min() >= -1 and (y.max() >= 0 or not key.endswith("train"))
        if y.shape not in ((len(x),), x.shape[:2]) or not known:
            raise UserError(
                f"{key} in {self.file} is {y.dtype} of shape {y.shape}; labels are integers from 0, or -1 where one is "
                f"not known, one for each of the {len(x)} examples, and training examples need some."
            )
        return exactly(y, np.int64, f"{key} in {self.file}")

    def _cast(self, x: np.ndarray, key: str, spec: DataSpec) -> np.ndarray | Chunks:
        """The values in the kind's dtype, refused if that would change them (beyond float32's rounding)."""
        if spec.kind == "real":

            def to_float32(rows: np.ndarray) -> np.ndarray:
                with np.errstate(over="ignore"):
                    cast = np.ascontiguousarray(rows, np.float32)
                if not np.isfinite(cast).all():
                    most = np.abs(rows).max()
                    raise UserError(f"{key} in {self.file} holds values beyond float32, up to {most:.3g}.")
                return cast

            return converted(x, to_float32)
        top = spec.levels - 1 if spec.levels is not None else np.iinfo(np.int64).max
        low, high = extremes(x)
        if low < 0 or high > top or (x.dtype.kind == "f" and not every(x, lambda rows: rows == np.round(rows))):
            wanted = f"the integers 0 ... {top}" if spec.levels is not None else "non-negative integers"
            raise UserError(
                f"{key} in {self.file} has {x.dtype} values from {low:.6g} to {high:.6g}, but {spec.kind} data are "
                f"{wanted}; change the values, data.kind or data.levels."
            )
        dtype = np.int64 if spec.kind in ("counts", "tokens") else np.uint8
        return converted(x, lambda rows: np.ascontiguousarray(exactly(rows, dtype, f"{key} in {self.file}")))

    def _parts(self, xs: Lazy, ys: Arrays, given: Lazy, lengths: Arrays) -> dict[str, Part]:
        sizes = {"valid": self.valid, "test": self.test}
        missing = {split: size for split, size in sizes.items() if split not in xs}
        for split, size in missing.items():
            if size == 0 or round(size * xs["train"].shape[0]) == 0:
                raise UserError(
                    f"{self.file} has no x_{split}, and data.{split}={size} of {xs['train'].shape[0]} training "
                    "examples holds out none; raise it or provide the split."
                )
        splits = split_at_random(xs["train"].shape[0], seed=self.split_seed, **missing)
        dealt = {split: index for split, index in splits.items() if split == "train" or split in missing}
        parts = take_parts(
            xs["train"], ys.get("train"), dealt, "x_train", given=given.get("train"), length=lengths.get("train")
        )
        for split in sizes:
            if split not in parts:
                rows = np.arange(xs[split].shape[0])
                parts[split] = Part(xs[split], ys.get(split), f"x_{split}", rows, given.get(split), lengths.get(split))
        return parts


def kind_of(xs: Mapping[str, np.ndarray]) -> Kind:
    """What the values of all splits are taken for if nobody says."""
    x = xs["train"]
    if all(every(a, lambda rows: (rows == 0) | (rows == 1)) for a in xs.values()):
        return "binary"
    if x.dtype == np.uint8:
        return "discrete"
    if x.dtype.kind in "ui" and all(extremes(a)[0] >= 0 for a in xs.values()):
        return "discrete" if x.ndim == 4 and all(extremes(a)[1] <= 255 for a in xs.values()) else "counts"
    return "real"
