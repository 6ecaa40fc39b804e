"""Features of data, computed once: kept in memory, and in the data folder if there is one.

A set of features is known by the data's content, the split, how many examples of it under which seed, and the net.
"""

import os
import uuid
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgmbench.data.prepared import digest
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.features.net import FeatureNet

KEPT = 8  # sets in memory
_memory: OrderedDict[str, Tensor] = OrderedDict()


@torch.no_grad()
def data_features(net: FeatureNet, chunks: Chunks, folder: Path | None = None) -> Tensor:
    """Features (n, d) float32 of the examples in ``chunks``, on their device."""
    data, split = chunks.data, chunks.split
    n = data.size(split) if chunks.limit is None else min(chunks.limit, data.size(split))
    drawn = n < data.size(split) or data.binarise == "dynamic"
    key = digest([data.content_hash, split, n, chunks.seed if drawn else None, net.hash])[:16]
    features = _memory.pop(key, None)
    if features is None:
        file = None if folder is None else folder / f"{net.name}-{data.name}-{split}-{key}.npy"
        features = _read(file, n)
        if features is None:
            features = torch.cat([net(x).float().cpu() for x in chunks])
            if file is not None:
                _write(file, features)
    _memory[key] = features
    while len(_memory) > KEPT:
        _memory.popitem(last=False)
    return features.to(chunks.device)


def _read(file: Path | None, n: int) -> Tensor | None:
    """The features in the file, or None if they must be computed."""
    if file is None:
        return None
    try:
        found = torch.from_numpy(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return found if len(found) == n and found.dtype == torch.float32 else None


def _write(file: Path, features: Tensor) -> None:
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.save(stream, features.numpy())
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise UserError(
            f"Features cannot be kept in {file.parent} ({error.strerror or error}); make it writable or choose another "
            "data root with paths.data=DIR or DGM_DATA_DIR."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
