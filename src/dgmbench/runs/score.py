"""Scoring samples that others made, from a folder of pictures or a file of arrays, against data or against others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgmbench.data import DataSet, DataSpec, load
from dgmbench.data.images import find
from dgmbench.data.npz import kind_of, open_npz
from dgmbench.data.pictures import Decoder
from dgmbench.data.values import as_values, from_bytes
from dgmbench.errors import UserError
from dgmbench.evaluation.features.build import require_nets
from dgmbench.evaluation.quality.others import reference, score
from dgmbench.runs.build import find_device
from dgmbench.runs.progress import spinner
from dgmbench.versions import evaluation_versions


def score_samples(
    samples: Path,
    protocol: Mapping[str, Any],
    *,
    data: Mapping[str, Any] | None = None,
    against: Path | None = None,
    hardware: Mapping[str, Any],
    data_root: Path,
) -> dict[str, Any]:
    """Metrics and protocols, in the form of ``result.json``, of the samples at a path: against the ``protocol.splits``
    of a data set (its completed configuration), or against all that lies ``against`` them at another path.

    A path is a folder of pictures of one size, or an .npz or .npy file of raw values.
    """
    if (data is None) == (against is None):
        raise UserError("Samples are scored against one thing: add data=NAME, or against=PATH for other samples.")
    notes: list[str] = []
    if data is not None:
        dataset, splits = load(data, data_root), list(protocol["splits"])
        if dataset.spec.given is not None:
            raise UserError(
                f"data={dataset.name} gives a condition with every example, and nobody knows those of your samples."
            )
    else:
        assert against is not None
        dataset, splits = _reference(against, notes), ["train"]
    require_nets(protocol["quality"]["features"] or [], dataset, data_root / "features")
    values = read_samples(samples, dataset.spec, notes)
    device, metrics, protocols = find_device(hardware), {}, {}
    with spinner(enabled=True) as note:
        for split in splits:
            found = score(
                values, dataset, protocol, split=split, device=device, folder=data_root / "features", note=note
            )
            mark = "" if split == "test" or data is None else f"@{split}"
            for name, (metric, about) in found.items():
                metrics[f"{name}{mark}"] = metric.as_dict()
                protocols[metric.protocol_id] = about
    return {
        "samples": str(samples.resolve()),
        "against": dataset.name,
        "data_hash": dataset.content_hash,
        "n": len(values),
        "notes": notes,
        "metrics": metrics,
        "protocols": protocols,
        "versions": evaluation_versions(),
    }


def read_samples(path: Path, spec: DataSpec, notes: list[str] | None = None) -> Tensor:
    """The samples at a path as raw values (n, *shape) of the spec; refused where they are none, never made to fit.

    To ``notes`` is added what was done with pictures, and what else is in their folder.
    """
    if not path.is_dir():
        return as_values(_fitted(_array(path), spec), spec, f"{path}")
    if not spec.is_image or spec.kind not in ("binary", "discrete") or spec.shape[0] not in (1, 3):
        raise UserError(f"{path} is a folder of pictures, but the data are {spec}; give an .npz file of raw values.")
    pixels = torch.from_numpy(_pictures(path, notes))
    if tuple(pixels.shape[2:]) != spec.shape[1:]:
        sizes = ["x".join(map(str, size)) for size in (pixels.shape[2:], spec.shape[1:])]
        raise UserError(
            f"The pictures in {path} are {sizes[0]} (height x width), the data {sizes[1]}; give samples of that size, "
            f"or data of the samples' (data.size={pixels.shape[2]}, where the set has one)."
        )
    if spec.shape[0] == 1:
        if (pixels != pixels[:, :1]).any():
            raise UserError(f"The pictures in {path} have colours, but the data are grey.")
        pixels = pixels[:, :1]
    return from_bytes(pixels, spec)


def _reference(path: Path, notes: list[str]) -> DataSet:
    """The samples at a path as the data that others are compared with; pictures in colour, arrays as they are."""
    if path.is_dir():
        pixels = torch.from_numpy(_pictures(path, notes))
        return reference(path.name, pixels, DataSpec(tuple(pixels.shape[1:]), "discrete", levels=256))
    x = _array(path)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    kind = kind_of({"train": x})
    spec = DataSpec(x.shape[1:], kind, 256 if kind == "discrete" else None)
    return reference(path.stem, as_values(np.ascontiguousarray(x), spec, str(path)), spec)


def _pictures(folder: Path, notes: list[str] | None) -> np.ndarray:
    """All pictures below a folder in colour, (n, 3, height, width)."""
    found, decoder = find(folder), Decoder(None, 3)
    if not found.pictures:
        raise UserError(f"{folder} holds no pictures.")
    pixels = decoder.as_they_are(found.pictures, lambda name: (folder / name).read_bytes())
    if notes is not None:
        notes += [f"{folder}: {note}" for note in (*found.passed_over(), *decoder.notes())]
    return pixels


def _array(path: Path) -> np.ndarray:
    """The array of samples in a file: ``x`` of an .npz, or its only one; an .npy as it is."""
    if not path.is_file():
        raise UserError(f"There is no {path}; samples are a folder of pictures, or an .npz or .npy file.")
    arrays = open_npz(path, single="x")
    if "x" in arrays:
        return arrays["x"]
    if len(arrays) != 1:
        raise UserError(f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'}; name that of the samples x.")
    return next(iter(arrays.values()))


def _fitted(x: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Images (n, h, w) of one channel, and those with channels last, in the order of the data."""
    if spec.is_image and x.shape[1:] == (*spec.shape[1:], spec.shape[0]):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x[:, None] if spec.is_image and spec.shape[0] == 1 and x.shape[1:] == spec.shape[1:] else x
