"""MATLAB files that hold something else than cell arrays of matrices, of every reader that takes such files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from dgmbench.data.dataset import _read
from dgmbench.data.mat import read_cells
from dgmbench.data.motion_capture import FILE, MotionCapture
from dgmbench.data.polyphonic_music import PARTS, PolyphonicMusic
from dgmbench.data.reader import Reader
from dgmbench.errors import UserError


def cell(*values: Any) -> np.ndarray:
    found = np.empty((1, len(values)), object)
    for i, value in enumerate(values):
        found[0, i] = value
    return found


GOOD = np.zeros((4, 88), np.uint8)
BAD = {
    "a cell within a cell": cell(GOOD, cell(GOOD)),
    "a structure": cell(GOOD, {"x": GOOD}),
    "a text": cell(np.array(["01" * 44] * 4)),
    "complex numbers": cell(GOOD + 1j),
    "a sparse matrix": cell(csc_matrix(GOOD)),
    "no cells": GOOD,
    "a structure of matrices": {"x": GOOD},
    "a structure array": np.array([(GOOD,)], dtype=[("x", object)]),
    "no matrix": np.empty((0, 0), object),
}
READERS: dict[str, tuple[Reader, str, list[str]]] = {
    "motion_capture": (MotionCapture(verify=False), FILE, ["Motion"]),
    "polyphonic_music": (PolyphonicMusic(verify=False), "JSB_Chorales.mat", list(PARTS.values())),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_cell_of_matrices_is_refused_by_name(name: str, what: str, tmp_path: Path) -> None:
    reader, file, keys = READERS[name]
    savemat(tmp_path / file, {key: BAD[what] for key in keys})
    with pytest.raises(UserError, match=rf"{keys[0]} of .*{file} (is no cell array|holds .* in a cell)"):
        _read(reader, tmp_path, name)


@pytest.mark.parametrize("name", READERS)
def test_hdf5_cut_and_empty_files(name: str, tmp_path: Path) -> None:
    reader, file, keys = READERS[name]
    for content in (b"\x89HDF\r\n\x1a\n" + bytes(50), b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UserError, match=rf"{file} is a MATLAB file of version 7\.3"):
            _read(reader, tmp_path, name)
    savemat(tmp_path / file, {key: cell(GOOD, GOOD) for key in keys})
    whole = (tmp_path / file).read_bytes()
    for length in (0, 4, 100, 127, 128, 130, 300, len(whole) - 9):
        (tmp_path / file).write_bytes(whole[:length])
        with pytest.raises(UserError, match=file):
            _read(reader, tmp_path, name)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"a": cell(GOOD, GOOD + 1), "other": cell({"f": cell(1j)})})
    found = read_cells(tmp_path / "x.mat", ["a"])
    assert list(found) == ["a"]
    assert [one.tolist() for one in found["a"]] == [GOOD.tolist(), (GOOD + 1).tolist()]
    with pytest.raises(UserError, match="has no b, c; it must hold a, b, c"):
        read_cells(tmp_path / "x.mat", ["a", "b", "c"])
