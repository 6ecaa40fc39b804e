"""A user's arrays that are larger than what one would like to hold in memory: mapped from their file, looked at and
converted some rows at a time.
"""

import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from dgmbench.data.reader import Chunks
from dgmbench.system import forget_pages

LARGE = 2**25  # bytes from which on an array stays in its file
BLOCK = 2**23  # bytes of it that are looked at together
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip archive's member, up to the lengths of its name and extra field


def map_npy(file: IO[bytes], start: int = 0) -> np.ndarray:
    """The array of an .npy file, or of one that begins at ``start`` in another file; its header has been checked."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(file)
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if columns_first else "C")


def map_member(path: Path, member: zipfile.ZipInfo, scratch: Path) -> np.ndarray:
    """The array that is one member of an .npz file, compared with its checksum; a compressed one is expanded into a
    file in ``scratch`` that has no name and goes with the array.
    """
    stored = member.compress_type == zipfile.ZIP_STORED
    with zipfile.ZipFile(path) as archive, archive.open(member) as content, path.open("rb") as file:
        if stored:
            while content.read(BLOCK):  # compares the checksum at its end
                pass
            file.seek(member.header_offset)
            name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            return map_npy(file, member.header_offset + LOCAL_HEADER.size + name + extra)
        with tempfile.TemporaryFile(dir=next(each for each in (scratch, *scratch.parents) if each.is_dir())) as room:
            while part := content.read(BLOCK):
                room.write(part)
            room.flush()
            return map_npy(room)


def blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array, some at a time; what has been looked at of a file is not held in memory."""
    size = max(1, BLOCK // max(1, x[:1].nbytes))
    for start in range(0, len(x), size):
        yield x[start : start + size]
        if isinstance(x, np.memmap):
            forget_pages(x)


def every(x: np.ndarray, holds: Callable[[np.ndarray], Any]) -> bool:
    """Whether something holds of all values."""
    return all(bool(np.all(holds(rows))) for rows in blocks(x))


def extremes(x: np.ndarray) -> tuple[Any, Any]:
    """The smallest and the largest value."""
    found = [(rows.min(), rows.max()) for rows in blocks(x)]
    return min(low for low, _ in found), max(high for _, high in found)


def first_rows(x: np.ndarray, rows: int) -> np.ndarray:
    """So many of the first rows as are a sample worth looking at, in memory."""
    few = x[: min(rows, max(1000, BLOCK // max(1, x[:1].nbytes)))]
    return np.array(few) if isinstance(x, np.memmap) else few


def converted(x: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | Chunks:
    """The rows converted, all at once, or as they are asked for where they stay in a file: then looked at now, so that
    what is refused is refused here.
    """
    if not isinstance(x, np.memmap):
        return convert(x)
    dtype = {convert(rows).dtype for rows in blocks(x)}.pop()
    return Chunks(x.shape, dtype, lambda: (convert(rows) for rows in blocks(x)))
