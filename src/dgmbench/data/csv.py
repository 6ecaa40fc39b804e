"""A user's own table: a CSV or TSV file, one example a row."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dgmbench.data.labels import UNLABELLED
from dgmbench.data.npz import Arrays, Npz
from dgmbench.errors import UserError, nearest, some_of

MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}
DELIMITERS = (",", "\t", ";")


class Csv(Npz):
    """The numeric columns of a table as vectors (d,), one example a row; their kind follows from the values as for
    arrays.

    The first line names the columns if one of its cells is no number (``header`` overrides that); else they are 0, 1,
    .... ``label`` is the column of labels, numbers or words, which become classes in alphabetical (numeric) order; an
    empty one is not known. ``columns`` keeps these columns alone, ``drop`` leaves some out: whatever is left must be
    numbers. Rows with missing values are refused by line and column, or left out by ``drop_missing``.
    """

    door = "csv"
    wanted = "a .csv or .tsv file"

    def __init__(
        self,
        *,
        path: str | None = None,
        label: str | None = None,
        columns: list[str] | None = None,
        drop: list[str] | None = None,
        drop_missing: bool = False,
        header: bool | None = None,
        delimiter: str | None = None,
        kind: str | None = None,
        levels: int | None = None,
        valid: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        super().__init__(path=path, kind=kind, levels=levels, valid=valid, test=test, split_seed=split_seed)
        if delimiter is not None and len(delimiter) != 1:
            raise UserError(f"data.delimiter={delimiter} must be one sign, such as ';'.")
        self.label, self.columns, self.drop = label, columns, drop or []
        self.drop_missing, self.header, self.delimiter = drop_missing, header, delimiter

    def arrays(self, scratch: Path) -> tuple[Arrays, list[str]]:
        """The table as ``x_train`` and ``y_train``, and the names of its columns."""
        names, lines = self._table()
        for name in (*(self.columns or []), *self.drop, *([] if self.label is None else [self.label])):
            if name not in names:
                raise UserError(nearest(name, names, what=f"column in {self.file} called"))
        kept = [n for n in names if n not in (*self.drop, self.label) and (self.columns is None or n in self.columns)]
        if not kept:
            raise UserError(f"No column of {self.file} is left for x; its columns are: {', '.join(names)}.")
        places = [names.index(name) for name in kept]
        whole = self._without_missing(lines, kept, places)
        cells = np.array([[row[place] for place in places] for _, row in whole])
        x = np.stack([self._numbers(cells[:, i], name, whole) for i, name in enumerate(kept)], 1)
        if self.label is None:
            return {"x_train": x}, kept
        return {"x_train": x, "y_train": self._classes([row[names.index(self.label)] for _, row in whole])}, kept

    def _table(self) -> tuple[list[str], list[tuple[int, list[str]]]]:
        """The columns' names, and every row with the number of its line."""
        try:
            with self.file.open(newline="", encoding="utf-8-sig") as file:
                first = file.readline()
                file.seek(0)
                tabs = self.file.suffix.lower() in (".tsv", ".tab")
                sign = self.delimiter or ("\t" if tabs else max(DELIMITERS, key=first.count))
                reader = csv.reader(file, delimiter=sign, skipinitialspace=True)
                lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self.file} cannot be read as a table ({error}).") from error
        if not lines:
            raise UserError(f"{self.file} is empty.")
        width = len(lines[0][1])
        for line, row in lines:
            if len(row) != width:
                raise UserError(f"Line {line} of {self.file} has {len(row)} cells, the first one {width}.")
        header = self.header if self.header is not None else not all(_is_number(c) or _missing(c) for c in lines[0][1])
        names = lines[0][1] if header else [str(i) for i in range(width)]
        if len(set(names)) < width:
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(f"{self.file} has several columns called {', '.join(twice)}; rename them.")
        return names, lines[1:] if header else lines

    def _without_missing(
        self, lines: list[tuple[int, list[str]]], names: Sequence[str], places: Sequence[int]
    ) -> list[tuple[int, list[str]]]:
        holes = {
            line: [name for name, place in zip(names, places, strict=True) if _missing(row[place])]
            for line, row in lines
        }
        holes = {line: found for line, found in holes.items() if found}
        where = [f"line {line}, {' and '.join(found)}" for line, found in holes.items()]
        if holes and not self.drop_missing:
            raise UserError(
                f"{self.file} has missing values in {some_of(where, 'row', most=5)}; fill them in, leave columns out "
                "(data.drop=[...]) or those rows (data.drop_missing=true)."
            )
        if holes:
            self.notes.append(f"left out for missing values: {some_of(where, 'row')}")
        kept = [(line, row) for line, row in lines if line not in holes]
        if not kept:
            raise UserError(f"{self.file} has no row without missing values.")
        return kept

    def _numbers(self, cells: np.ndarray, name: str, lines: Sequence[tuple[int, list[str]]]) -> np.ndarray:
        """A column as numbers: integers if all of them are written so."""
        wrong = [(line, cell) for (line, _), cell in zip(lines, cells, strict=True) if not _is_number(cell)]
        if wrong:
            line, cell = wrong[0]
            raise UserError(
                f"Column {name} of {self.file} holds text, such as '{cell}' in line {line}; make it the label "
                f"(data.label={name}), or leave it out (data.drop=[{name}])."
            )
        try:
            return cells.astype(np.int64)
        except (ValueError, OverflowError):
            return cells.astype(np.float64)

    def _classes(self, cells: list[str]) -> np.ndarray:
        """Labels as 0 ... K-1 in the order of their names, or of their numbers; unknown ones as -1."""
        known = {cell for cell in cells if not _missing(cell)}
        numeric = all(_is_number(cell) for cell in known)
        names = sorted(known, key=lambda cell: (float(cell), cell) if numeric else (0.0, cell))
        self.class_names = tuple(names)
        places = {name: i for i, name in enumerate(names)}
        return np.array([UNLABELLED if _missing(cell) else places[cell] for cell in cells], np.int64)


def _missing(cell: str) -> bool:
    return cell.lower() in MISSING


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return not _missing(cell)
