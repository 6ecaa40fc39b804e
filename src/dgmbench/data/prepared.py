"""The prepared cache: a set is decoded once into memory maps, and never again until its source or preparation changes.

    <data root>/prepared/<name>-<key>/{train,valid,test}_x.npy, *_y.npy, *_given.npy, *_length.npy, meta.json

Arrays are written to a folder of their own, synced, and renamed into place, so that a folder of the final name is
always complete. A lock lets the second of two processes wait for the first instead of decoding as well; it is an
economy, and nothing depends on it. What is opened is compared with its hash (:mod:`dgmbench.data.verified`).
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data.large import LARGE
from dgmbench.data.reader import SPLITS, Chunks, Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.data.verified import Wait, compared
from dgmbench.errors import FULL, UserError, say
from dgmbench.system import forget_pages, locked

FORMAT = 1  # of the folder; part of the key
RECORD_HASH = "record_hash"  # over all else in meta.json
NEEDED = {"spec", "split", "split_hash", "content_hash", "remarks"}  # what is read of meta.json without asking
DAY = 24 * 3600.0  # nobody decodes for longer


def digest(value: Any) -> str:
    """sha256 of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class ContentHash:
    """sha256 over named arrays: name, dtype, shape and bytes, fed row block by row block."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Announce the array whose rows follow."""
        self._hash.update(f"{name} {dtype.newbyteorder('<').str} {'x'.join(map(str, shape))}\n".encode())

    def rows(self, rows: np.ndarray) -> None:
        """Feed rows of the announced array."""
        rows = np.ascontiguousarray(rows)
        self._hash.update(rows.astype(rows.dtype.newbyteorder("<"), copy=False).data)

    def hexdigest(self) -> str:
        """The hash of everything fed so far."""
        return self._hash.hexdigest()


def _blocks(x: np.ndarray | Chunks) -> Iterator[np.ndarray]:
    if isinstance(x, Chunks):
        yield from x.rows()
    else:
        for i in range(0, len(x), 8192):
            yield x[i : i + 8192]
            if isinstance(x, np.memmap) and x.nbytes >= LARGE:
                forget_pages(x)


def _array_names(
    parts: Mapping[str, Part],
) -> Iterator[tuple[str, np.ndarray | Chunks]]:
    for split in SPLITS:
        yield f"{split}_x", parts[split].x
        for what in ("y", "given", "length"):
            if (values := getattr(parts[split], what)) is not None:
                yield f"{split}_{what}", values


def describe(decoded: Decoded, content_hash: str) -> dict[str, Any]:
    """The record of a set: spec, splits with the hash of where their examples came from, content hash, remarks."""
    splits = {
        name: {
            "count": int(part.x.shape[0]),
            "origin": part.origin,
            "hash": hashlib.sha256(part.origin.encode() + part.index.astype("<i8").tobytes()).hexdigest(),
        }
        for name, part in decoded.parts.items()
    }
    return {
        "format": FORMAT,
        "spec": decoded.spec.as_dict(),
        "split": splits,
        "split_hash": digest({name: split["hash"] for name, split in splits.items()}),
        "content_hash": content_hash,
        "remarks": dict(decoded.remarks),
        "notes": list(decoded.notes()),
    }


def hash_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """The content hash of arrays in their order."""
    content = ContentHash()
    for name, x in arrays.items():
        content.begin(name, x.shape, x.dtype)
        for rows in _blocks(x):
            content.rows(rows)
    return content.hexdigest()


def in_memory(decoded: Decoded) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays of a small set by name, and its record."""
    arrays = {name: x.array() if isinstance(x, Chunks) else x for name, x in _array_names(decoded.parts)}
    return arrays, describe(decoded, hash_of_arrays(arrays))


def open_or_prepare(
    root: Path, name: str, key: Mapping[str, Any], fetch: Callable[[], None], decode: Callable[[], Decoded]
) -> tuple[dict[str, np.ndarray], dict[str, Any], Wait]:
    """The arrays of a prepared set as read-only memory maps, its record, and what waits until they are known to be what
    was written. If there is none, ``fetch`` makes sure of the source before anything is written, ``decode`` reads it.

    ``key`` holds all that the arrays depend on, in plain JSON values. A damaged folder is prepared again.
    """
    folder = root / "prepared"
    target = folder / f"{name}-{digest([FORMAT, key])[:12]}"
    if (found := _verified(target)) is not None:
        return found
    fetch()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{target.name}.lock"):
            if (found := _verified(target)) is None:
                for left in folder.glob(f".{target.name}.*.partial"):
                    if left.stat().st_mtime < time.time() - DAY:  # of a process that was killed
                        shutil.rmtree(left, ignore_errors=True)
                _write(target, decode(), key)
                found = _verified(target)
    except OSError as error:
        if error.filename and folder not in Path(error.filename).parents and Path(error.filename) != folder:
            raise UserError(f"{error.filename} cannot be read ({error.strerror or error}).") from error
        full = error.errno in FULL
        advice = "free some space" if full else "make it writable"
        raise UserError(
            f"The prepared cache {folder} cannot be written ({error.strerror or error}); {advice} or choose another "
            "data root with paths.data=DIR or DGM_DATA_DIR."
        ) from error
    if found is None:
        raise UserError(f"The prepared set {target} cannot be read back; delete this folder and try again.")
    return found


def _verified(target: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], Wait] | None:
    """The maps, the record and the wait for their comparison; None, and a word about it, if they have been altered."""
    if (found := _open(target)) is None:
        return None
    arrays, meta = found
    wait = compared(target, arrays, meta["content_hash"], hash_of_arrays)
    if wait is not None:
        return arrays, meta, wait
    say(f"dgm: note: the prepared set {target} is not what was written, and is prepared again.", error=True)
    shutil.rmtree(target, ignore_errors=True)
    return None


def _open(target: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The maps and the record, or None if the folder is missing or does not agree with its own record."""
    try:
        meta = json.loads((target / "meta.json").read_text())
        if meta.get(RECORD_HASH, found := _record_hash(meta)) != found:  # records of before have none
            return None
        if digest([FORMAT, meta["key"]])[:12] != target.name[-12:]:
            return None
        if not meta.keys() >= NEEDED:
            return None
        DataSpec(**meta["spec"])  # another version's may lack something, or have more
        if not {f"{split}_x" for split in SPLITS} <= set(meta["arrays"]):
            return None
        arrays = {}
        for name, expected in meta["arrays"].items():
            path = target / f"{name}.npy"
            if path.stat().st_size != expected["bytes"]:
                return None
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            if list(arrays[name].shape) != expected["shape"] or arrays[name].dtype.str != expected["dtype"]:
                return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, RecursionError):
        return None
    return arrays, meta


def _record_hash(meta: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in meta.items() if key != RECORD_HASH})


def _write(target: Path, decoded: Decoded, key: Mapping[str, Any]) -> None:
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        content, arrays = ContentHash(), {}
        for name, x in _array_names(decoded.parts):
            path = partial / f"{name}.npy"
            dtype = np.dtype(x.dtype).newbyteorder("<")
            content.begin(name, x.shape, dtype)
            with path.open("wb") as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": x.shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
                written = 0
                for rows in _blocks(x):
                    content.rows(rows)
                    file.write(np.ascontiguousarray(rows, dtype).data)
                    written += len(rows)
                if written != x.shape[0]:
                    raise RuntimeError(f"{name} has {written} rows, {x.shape[0]} were announced")
                _sync(file)
            arrays[name] = {
                "shape": list(x.shape),
                "dtype": dtype.str,
                "bytes": path.stat().st_size,
            }
        meta = {
            **describe(decoded, content.hexdigest()),
            "arrays": arrays,
            "key": dict(key),
        }
        meta[RECORD_HASH] = _record_hash(meta)
        with (partial / "meta.json").open("w") as text:
            json.dump(meta, text, indent=1)
            _sync(text)
        if _open(target) is not None:  # where locks do not work, another process may have been faster
            return
        if target.exists():  # damaged
            shutil.rmtree(target, ignore_errors=True)
        try:
            partial.rename(target)
        except OSError:
            if _open(target) is None:
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
