from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import DataSet, DataSpec, load
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
Open = Callable[..., DataSet]
RNG = np.random.RandomState(0)
VALUES = RNG.normal(size=(20, 2)).round(4)
NAMES = ["iris" if i % 3 else "aster" for i in range(20)]


@pytest.fixture
def open_table(config: Config, tmp_path: Path) -> Open:
    """Write the lines of a table and load it as data=csv."""

    def run(*lines: str, name: str = "table.csv", encoding: str = "utf-8", **options: Any) -> DataSet:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return load(config("csv", path=str(path), **{"valid": 2, "test": 3, **options}), tmp_path / "root")

    return run


def rows(separator: str = ",") -> list[str]:
    return [separator.join([f"{a}", f"{b}", name]) for (a, b), name in zip(VALUES, NAMES, strict=True)]


def everything(data: DataSet) -> np.ndarray:
    found = np.concatenate([part.x for part in data.splits.values()])
    return found[np.lexsort(found.T)]


@pytest.mark.parametrize(
    ("separator", "name", "encoding"),
    [(",", "t.csv", "utf-8"), (";", "t.csv", "utf-8-sig"), ("\t", "t.tsv", "utf-8"), ("\t", "t.csv", "utf-8")],
)
def test_columns_and_labels_are_read_as_they_are_written(
    open_table: Open, separator: str, name: str, encoding: str
) -> None:
    head = separator.join(["height", '"the width"', "flower"])
    data = open_table(head, *rows(separator), name=name, encoding=encoding, label="flower")
    assert data.spec == DataSpec((2,), "real", num_classes=2)
    assert data.spec.class_names == ("aster", "iris")
    assert data.meta["remarks"]["columns"] == ["height", "the width"]
    expected = VALUES.astype(np.float32)
    assert np.array_equal(everything(data), expected[np.lexsort(expected.T)])
    of_value = {float(np.float32(a)): label for (a, _), label in zip(VALUES, NAMES, strict=True)}
    for part in data.splits.values():
        assert [data.spec.class_names[y] for y in part.y] == [of_value[float(x[0])] for x in part.x]


def test_without_a_header_columns_have_numbers(open_table: Open) -> None:
    lines = [f"{a},{b},{int(name == 'iris') * 7}" for (a, b), name in zip(VALUES, NAMES, strict=True)]
    data = open_table(*lines, label="2")
    assert sum(len(part) for part in data.splits.values()) == 20
    assert data.spec.class_names == ("0", "7")
    assert open_table(*lines, columns=["1"]).spec.shape == (1,)
    assert sum(len(part) for part in open_table(*lines, header=True, label="0").splits.values() if part) == 19


def test_whole_numbers_are_counts_and_bits_binary(open_table: Open) -> None:
    assert open_table("a,b", *(f"{i},{2 * i}" for i in range(20))).spec == DataSpec((2,), "counts")
    assert open_table("a,b", *(f"{i % 2},{i // 2 % 2}" for i in range(20))).spec == DataSpec((2,), "binary")


def test_missing_values_are_refused_by_row_and_column_or_left_out(open_table: Open) -> None:
    lines = ["a,b,flower", *rows()]
    lines[4], lines[9] = "1.5,,iris", "NA,?,iris"
    with pytest.raises(UserError, match=r"2 rows \(line 5, b, line 10, a and b\); .*data\.drop_missing=true"):
        open_table(*lines, label="flower")
    data = open_table(*lines, label="flower", drop_missing=True)
    assert sum(len(part) for part in data.splits.values()) == 18
    assert data.meta["notes"][0] == "left out for missing values: 2 rows (line 5, b, line 10, a and b)"
    data = open_table(*lines, drop=["a", "flower"], drop_missing=True, name="other.csv")
    assert data.spec.shape == (1,)


def test_labels_that_are_missing_are_not_known(open_table: Open) -> None:
    lines = ["a,b,flower", *rows()]
    lines[3] = lines[3].rpartition(",")[0] + ","
    data = open_table(*lines, label="flower")
    assert sum(int((part.y == -1).sum()) for part in data.splits.values() if part.y is not None) == 1
    assert data.spec.num_classes == 2


@pytest.mark.parametrize(
    ("lines", "options", "sentence"),
    [
        (["a,b,c", *rows()], {}, r"Column c of .* holds text, such as 'aster' in line 2; make it the label"),
        (["a,b,c", *rows()], {"label": "d"}, r"There is no column in .* called 'd'; choose one of: a, b, c"),
        (["a,b,c", *rows()], {"label": "c", "drop": ["a", "b"]}, "No column of .* is left for x"),
        (["a,b,c", *rows(), "1,2"], {}, r"Line 22 of .* has 2 cells, the first one 3"),
        (["a,a,c", *rows()], {}, "has several columns called a"),
        ([""], {}, r"table\.csv is empty"),
        (["a", "", "NA"], {}, r"1 row \(line 3, a\)"),
        (["a,b,c", *rows()], {"delimiter": ";;"}, "data.delimiter=;; must be one sign"),
    ],
)
def test_tables_that_cannot_be_read(open_table: Open, lines: list[str], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_table(*lines, **options)


def test_a_table_must_be_there(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=csv needs data\.path=FILE, a \.csv or \.tsv file"):
        load(config("csv"), tmp_path)
    with pytest.raises(UserError, match=r"There is no file .*no\.csv; data\.path must name a \.csv or \.tsv file"):
        load(config("csv", path=str(tmp_path / "no.csv")), tmp_path)
