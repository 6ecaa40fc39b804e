"""MATLAB files: cell arrays of matrices of numbers, and nothing else of all that such a file can hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.errors import UserError

HDF5 = b"\x89HDF\r\n\x1a\n"


def read_cells(path: Path, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """The matrices (rows, columns) of the cell arrays ``names``; only those are read.

    Structures, texts, functions, complex and sparse matrices and cells within cells are refused by name: numpy would
    make numbers of some of them.
    """
    from scipy.io import loadmat

    with path.open("rb") as file:
        begin = file.read(1024)
    if HDF5 in (begin[:8], begin[512:520]):
        raise UserError(f"{path} is a MATLAB file of version 7.3 (HDF5); save it with -v7, or get the published file.")
    try:
        found: dict[str, Any] = loadmat(path, variable_names=list(names))
    except MemoryError:
        raise
    except Exception as error:  # scipy has no word of its own for damage
        raise UserError(f"{path} cannot be read as a MATLAB file ({error or type(error).__name__}).") from error
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} has no {', '.join(missing)}; it must hold {', '.join(names)}.")
    return {name: _matrices(found[name], f"{name} of {path}") for name in names}


def _matrices(cells: Any, what: str) -> list[np.ndarray]:
    if not isinstance(cells, np.ndarray) or cells.dtype != object or not cells.size:
        raise UserError(f"{what} is no cell array of matrices; get the published file.")
    for cell in cells.ravel():
        if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "buif" or cell.ndim != 2:
            held = f"{cell.dtype} {cell.shape}" if isinstance(cell, np.ndarray) else type(cell).__name__
            raise UserError(f"{what} holds {held} in a cell, where matrices of real numbers belong.")
    return list(cells.ravel())
