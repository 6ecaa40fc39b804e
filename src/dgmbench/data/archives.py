"""Archives and arrays of files that may come from anybody: what they announce is compared with what they are, before
memory is asked for, and what they lead to outside themselves is refused.
"""

import gzip
import math
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from dgmbench.errors import UserError

FREE = 2**26  # bytes that anything may expand to
MOST_TIMES = 200  # as many times as large as its file may anything larger be; deflated noise is not, nor are pictures

# What reading a damaged zip archive raises.
ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


def require_plausible(announced: int, held: int, what: str) -> None:
    """Refuse ``announced`` bytes that ``held`` bytes of a file are said to become."""
    if announced > FREE and announced > MOST_TIMES * held:
        raise UserError(
            f"{what} announces {announced:,} bytes, but takes {held:,}: it is damaged, or made to fill the memory; "
            "if it is right, store it uncompressed."
        )


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive all of whose members can be read without surprise; what is wrong with it ends in a sentence."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _require_plain(member, path)
            yield archive
    except UserError:
        raise
    except ZIP_DAMAGE as error:
        raise UserError(
            f"{path} is no complete zip archive, but truncated or altered ({error}); get it again."
        ) from error


def _require_plain(member: zipfile.ZipInfo, path: Path) -> None:
    what = f"{member.filename!r} in {path}"
    require_inside(member.filename, path)
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{what} is a link, which is not followed; get the archive again.")
    if member.flag_bits & 1:
        raise UserError(f"{what} is encrypted; save the archive without a password.")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{what} is compressed by method {member.compress_type}; save it stored or deflated.")
    require_plausible(member.file_size, member.compress_size, what)


def require_inside(name: str, path: Path) -> None:
    """Refuse names in an archive that lead out of it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{path} holds {name!r}, a name that leads out of the archive; get it again.")


def check_header(file: IO[bytes], size: int, what: str) -> None:
    """Refuse an .npy file of ``size`` bytes that holds Python objects, or announces other values than follow."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} is not read")
        shape, _, dtype = read(file)
    except Exception as error:  # headers are parsed as Python, which fails in many ways
        raise UserError(f"{what} has no readable header ({error}); save plain numbers.") from error
    if dtype.hasobject:
        raise UserError(f"{what} is one of Python objects, which are not read; save plain numbers of one dtype.")
    announced, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if announced != held:
        raise UserError(
            f"{what} announces values of shape {shape} ({announced:,} bytes) but holds {held:,} bytes of them."
        )


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array in an .npy file, or one that stays there."""
    try:
        with path.open("rb") as file:
            check_header(file, path.stat().st_size, str(path))
        found: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as an .npy file of numbers ({error}).") from error
    return found


def gunzip(path: Path, most: int | None = None) -> bytes:
    """The content of a gzip file, up to ``most`` bytes; no more than is plausible for its size."""
    size = path.stat().st_size
    limit = max(FREE, MOST_TIMES * size) if most is None else most
    try:
        with gzip.open(path) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no complete gzip file ({error}); get it again.") from error
    if most is None:
        require_plausible(len(content), size, str(path))
    return content


def read_hdf5(path: Path, keys: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
    """The arrays under ``keys`` of an HDF5 file, several of them end to end. Links and whatever else would read another
    file are refused.
    """
    with _open_hdf5(path) as file:
        found = {split: [_dataset(file, name, path) for name in names] for split, names in keys.items()}
        return {split: np.concatenate([each[:] for each in sets]) for split, sets in found.items()}


def hdf5_arrays(path: Path) -> list[str]:
    """The paths of all arrays in an HDF5 file, in alphabetical order; links are not followed."""
    names: list[str] = []
    with _open_hdf5(path) as file:
        file.visititems(lambda name, node: names.append(name) if hasattr(node, "shape") else None)
    return sorted(names)


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path} is an HDF5 file; install h5py to read it (pip install 'dgmbench[hdf5]').") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} is no complete HDF5 file with what is asked for ({error}).") from error


def _dataset(file: Any, name: str, path: Path) -> Any:
    import h5py

    node, what = file, f"{name} in {path}"
    for part in name.split("/"):
        link = node.get(part, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise UserError(f"{what} is a link, which is not followed; get the file again.")
        node = node[part]
    if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "buif":
        raise UserError(f"{what} is no table of numbers; get the file again.")
    if node.external or node.is_virtual:
        raise UserError(f"{what} keeps its values in other files, which are not read; get the file again.")
    require_plausible(node.nbytes, node.id.get_storage_size(), what)
    return node
