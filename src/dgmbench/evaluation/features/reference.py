"""Features of data, computed once: kept in memory, and in the data folder if there is one.

A set of features is known by the data's content, the split, how many examples of it under which seed, and the hash of
the net. What is kept is not believed blindly: a file carries a checksum over its key and its values, and the features
of the first examples are computed again and compared, whatever they come from. What does not agree is computed again
and replaced; where nothing can be written, nothing is kept.
"""

import contextlib
import hashlib
import os
import uuid
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmbench.data.prepared import digest
from dgmbench.errors import UserError, say
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.features.net import SAME, FeatureNet

FORMAT = 2  # of the file
KEPT = 8  # sets in memory
COMPARED = 10  # examples
_memory: OrderedDict[str, Tensor] = OrderedDict()
_told: set[Path] = set()


@torch.no_grad()
def data_features(net: FeatureNet, chunks: Chunks, folder: Path | None = None) -> Tensor:
    """Features (n, d) float32 of the examples in ``chunks``, on their device."""
    data, split = chunks.data, chunks.split
    n = data.size(split) if chunks.limit is None else min(chunks.limit, data.size(split))
    drawn = n < data.size(split) or data.binarise == "dynamic"
    key = digest([FORMAT, data.content_hash, split, n, chunks.seed if drawn else None, net.hash])
    file = None if folder is None else folder / f"{net.name}-{data.name}-{split}-{key[:16]}.npz"
    features = _memory.pop(key, None)
    if features is None and file is not None:
        features = _read(file, key)
    try:
        if features is None or not _agrees(net, chunks, features, n):
            features = torch.cat([net(x).float().cpu() for x in chunks])
            data.verify()
            if file is not None:
                _write(file, key, features)
    except UserError as error:
        raise UserError(f"The {split} split of {data.name} has no features: {error}") from error
    _memory[key] = features
    while len(_memory) > KEPT:
        _memory.popitem(last=False)
    return features.to(chunks.device)


def _agrees(net: FeatureNet, chunks: Chunks, features: Tensor, n: int) -> bool:
    """Whether the first features are those of this net and these data, up to the rounding of another device."""
    fresh = net(next(iter(chunks))[:COMPARED]).float().cpu()
    if features.shape != (n, fresh.shape[1]):
        return False
    apart = (features[: len(fresh)] - fresh).abs().max()
    return bool(apart <= SAME * fresh.abs().max())


def _checksum(key: str, values: np.ndarray) -> str:
    content = hashlib.sha256(f"{key} {values.dtype.str} {values.shape}\n".encode())
    content.update(np.ascontiguousarray(values).data)
    return content.hexdigest()


def _read(file: Path, key: str) -> Tensor | None:
    """The features in the file, or None if they must be computed."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            values, checksum = found["features"], str(found["sha256"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return None
    return torch.from_numpy(values) if checksum == _checksum(key, values) else None


def _write(file: Path, key: str, features: Tensor) -> None:
    """Keep the features if that is possible; they are as good if it is not, only slower to have."""
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    values = features.numpy()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez(stream, features=values, sha256=np.array(_checksum(key, values)))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        cannot_keep(file.parent, error)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def cannot_keep(folder: Path, error: OSError) -> None:
    """Say once on the standard error that a folder keeps nothing."""
    if folder not in _told:
        _told.add(folder)
        say(
            f"Nothing can be kept in {folder} ({error.strerror or error}): features are computed anew each time; make "
            "it writable or choose another data root with paths.data=DIR or DGM_DATA_DIR.",
            error=True,
        )
