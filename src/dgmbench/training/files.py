"""Writing that survives a crash: whole files appear at once or not at all, and logs are only appended to."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dgmbench.config.bounded import read_bytes
from dgmbench.errors import FULL, UserError
from dgmbench.system import sync_folder

UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence (UserError)."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"The disk is full: {path} could not be written. What was saved before is intact; free some space "
                "and give the same command again to go on from there."
            ) from error
        if error.errno in UNWRITABLE:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); choose another folder with paths.outputs=DIR or "
                "DGM_OUTPUTS."
            ) from error
        raise


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write to a temporary file beside ``path``, flush it to the disk and rename it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON atomically; a NaN or infinity is an error, never a silent token."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


SEAL, SEAL_BYTES = b"sha256:", 71
"""The comment of a checkpoint's zip archive, before 64 hex digits: the hash of all bytes before it. torch.load never
compares the checksums in its archives, so that a flipped bit would be another weight.
"""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin, but a checkpoint is replaced in one step and carries the hash of its bytes, and
    errors speak plainly.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Serialise in memory, then write atomically, so that the previous checkpoint survives anything."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        seal(buffer)
        write_atomically(Path(path), buffer.getbuffer())


def seal(archive: io.BytesIO) -> None:
    """Write the hash of a zip archive behind it, as its comment; what reads zip files reads it as before."""
    archive.seek(-2, os.SEEK_END)  # an archive without a comment ends with the comment's length
    archive.write(SEAL_BYTES.to_bytes(2, "little"))
    digest = hashlib.sha256(archive.getbuffer()).hexdigest()
    archive.write(SEAL + digest.encode())


def is_whole(path: Path) -> bool:
    """Whether a checkpoint holds what was written; one from before there were seals by the checksums of its parts."""
    if not path.is_file() and path.exists():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        length = max(0, file.seek(0, os.SEEK_END) - SEAL_BYTES)
        file.seek(length)
        end = file.read()
        if end.startswith(SEAL):
            file.seek(0)
            digest = hashlib.sha256()
            while length > 0 and (block := file.read(min(length, 2**20))):
                digest.update(block)
                length -= len(block)
            return end == SEAL + digest.hexdigest().encode()
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError):
        return False


# What torch.load raises on a cut, altered or foreign file: each kind of damage has its own type.
DAMAGE = (
    RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError,
    MemoryError, OverflowError, AssertionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU with ``weights_only=True``; a damaged file ends in one sentence."""
    try:
        if not is_whole(path):
            raise ValueError("its contents are not those that were written")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}")
        return found
    except FileNotFoundError as error:
        raise UserError(
            f"There is no checkpoint {path}: the run has not got that far, or the file was removed. Remove the folder "
            f"{path.parent} as well to train the run again from the beginning."
        ) from error
    except OSError as error:
        raise UserError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    except DAMAGE as error:
        reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
        raise UserError(
            f"The checkpoint {path} is damaged ({type(error).__name__}: {reason}); "
            "move it away to start this run again from the beginning, or put a good copy in its place."
        ) from error


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, CUDA, NumPy and Python, for models that draw from them behind our back."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """The states of the global generators of torch, CUDA, NumPy and Python, as tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, cached = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), cached],
    }


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what ``rng_state`` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, cached = state["python"]
    random.setstate((version, tuple(internal), cached))


class RowWriter:
    """Append-only JSON lines; a resume truncates to the length that the checkpoint recorded."""

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self.path = path
        with disk_errors(path):
            self._file = open(path, "ab")  # noqa: SIM115, it stays open for the whole run
            length = min(length, self._file.seek(0, os.SEEK_END))  # the file may have been cut by hand
            self._file.truncate(length)
            self._file.seek(length)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; values that are not finite are written as null."""
        clean = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        with disk_errors(self.path):
            self._file.write((json.dumps(clean, allow_nan=False) + "\n").encode())
            self._file.flush()

    def length(self) -> int:
        """Bytes on disk, after a flush to the disk itself."""
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a JSON-lines file; a torn last line (a kill while writing) is left out."""
    rows = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no row of named values")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged in line {number} ({error}); put a good copy in its place.") from error
        rows.append(row)
    return rows
