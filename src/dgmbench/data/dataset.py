"""A loaded data set, and ``load``: from the configuration of the data group to one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgmbench.config.signatures import build, check_arguments
from dgmbench.config.targets import TARGET, locate
from dgmbench.data import prepared
from dgmbench.data.checks import check_conditions, check_labels, check_values
from dgmbench.data.pairs import Binarise, binarise_mode, binarised_spec, spec_from_card
from dgmbench.data.reader import SPLITS, Chunks, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.data.verified import settled
from dgmbench.errors import RunFailed, UserError, explain, in_hand

SplitName = Literal["train", "valid", "test"]

GROUP_KEYS = {
    "name",
    "_target_",
    "card",
    "binarise",
}  # of a data config; all others are the reader's arguments
NO_CONTENT = {
    "path",
    "download",
    "verify",
}  # arguments that say where the data come from, not what they are


@dataclass(frozen=True)
class Split:
    """Stored values ``x`` (n, *shape) and labels ``y`` (n,) int64 of one split, in memory or memory-mapped; conditions
    ``given`` (n, *spec.given.shape) and ``length`` (n,) int64 where the spec has them.
    """

    x: np.ndarray
    y: np.ndarray | None
    given: np.ndarray | None = None
    length: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class DataSet:
    """A data set: its three splits, what one example is, and the record of where it came from.

    ``spec`` describes the values that batches carry. They are the stored values, except under dynamic binarisation:
    then grey levels 0 ... ``grey_levels`` - 1 are stored, and each access draws Bernoulli(x / (grey_levels - 1)).
    ``content_hash`` covers values, labels, split and binarisation.
    """

    name: str
    spec: DataSpec
    splits: dict[str, Split]
    content_hash: str
    binarise: Binarise = "none"
    grey_levels: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    oracle: Callable[..., np.ndarray | None] = field(default=lambda x, given=None: None, repr=False)
    """The exact log-probability of raw values (n, *shape) under the set's own distribution, and under conditions if it
    has any, (n,), or None.
    """
    factors_of: Callable[[np.ndarray], np.ndarray | None] = field(default=lambda x: None, repr=False)
    """The values (n, factors) of the factors that raw values (n, *shape) show, or None."""
    verify: Callable[[], None] = field(default=settled, repr=False)
    """Returns when the values are known to be those of the content hash, and raises a UserError if they are not: to be
    called before anything is kept that was made from them.
    """

    def size(self, split: SplitName) -> int:
        """Number of examples of a split."""
        return len(self.splits[split])

    def unlabelled(self, split: SplitName) -> int:
        """Number of examples of a split whose label is not known although the set has labels; of steps likewise."""
        part = self.splits[split]
        if part.y is None:
            return 0
        return int((part.y < 0).sum()) - (0 if part.length is None or part.y.ndim < 2 else _padding(part))

    def binarised(self, grey: Tensor, noise: Tensor) -> Tensor:
        """Binary values from grey levels and uniform ``noise`` in [0, 1) of the same shape."""
        if self.grey_levels is None:
            raise ValueError(f"{self.name} is not binarised dynamically")
        return (noise * (self.grey_levels - 1) < grey).to(torch.uint8)


def load(data_cfg: Mapping[str, Any], root: Path) -> DataSet:
    """Load the set that a resolved data config names, preparing it first if need be.

    ``root`` is the data root: the set's own files lie in ``root/<name>``, prepared arrays in ``root/prepared``.
    """
    name, mode, announced = str(data_cfg["name"]), binarise_mode(data_cfg), spec_from_card(data_cfg)
    arguments = {key: value for key, value in data_cfg.items() if key not in GROUP_KEYS}
    reader = _reader(str(data_cfg["_target_"]), arguments)
    folder = Path(root).expanduser() / name

    def decode() -> Decoded:
        decoded = _checked(_read(reader, folder, name))
        return _thresholded(decoded, name) if mode == "threshold" else decoded

    if reader.prepared:
        content = {k: v for k, v in arguments.items() if k not in NO_CONTENT}
        key = {
            "reader": data_cfg["_target_"],
            "arguments": content,
            "threshold": mode == "threshold",
            "source": dict(reader.source(folder)),
        }
        arrays, meta, wait = prepared.open_or_prepare(folder.parent, name, key, lambda: reader.fetch(folder), decode)
    else:
        (arrays, meta), wait = prepared.in_memory(decode()), settled

    stored = DataSpec(**meta["spec"])
    spec = stored if mode != "dynamic" else binarised_spec(stored, mode, name)
    if announced is not None and (announced.shape, announced.kind) != (spec.shape, spec.kind):
        raise UserError(
            f"The card of data={name} announces {announced}, but its reader gives {spec}; correct the card."
        )
    content_hash = meta["content_hash"]
    if mode == "dynamic":
        content_hash = prepared.digest([content_hash, mode])
    splits = {
        split: Split(arrays[f"{split}_x"], *(arrays.get(f"{split}_{what}") for what in ("y", "given", "length")))
        for split in SPLITS
    }
    record = {k: meta[k] for k in ("split", "split_hash", "remarks")}
    record |= {
        "notes": meta.get("notes", []),  # sets prepared by earlier versions have none
        "source": meta.get("key", {}).get("source", {}),
        "binarise": mode,
        "content_hash": content_hash,
    }
    return DataSet(
        name,
        spec,
        splits,
        content_hash,
        mode,
        stored.levels if mode == "dynamic" else None,
        record,
        reader.oracle,
        reader.factors_of,
        wait,
    )


def _reader(target: str, arguments: Mapping[str, Any]) -> Reader:
    cls = locate(target, "data")
    if not (isinstance(cls, type) and issubclass(cls, Reader)):
        raise UserError(f"{target} is no data reader; it must derive from dgmbench.data.reader.Reader.")
    checked = check_arguments(arguments, cls, "data", also=GROUP_KEYS - {TARGET, "card"})
    reader: Reader = build({TARGET: target, **checked}, "data")
    return reader


def _read(reader: Reader, folder: Path, name: str) -> Decoded:
    """What a reader gives. Whatever its libraries raise of a damaged file is the file's fault, and names it."""
    file = getattr(reader, "file", None) or getattr(reader, "folder", None) or folder
    try:
        with in_hand(file):
            return reader.read(folder)
    except (UserError, RunFailed):
        raise
    except Exception as error:
        code, sentence = explain(error)
        if code == 2:
            raise UserError(sentence) from error
        kind = type(error).__name__
        raise UserError(f"data={name} cannot be read from {file} ({kind}: {str(error) or 'no message'}).") from error


def _checked(decoded: Decoded) -> Decoded:
    """A reader's promise: three splits of the spec's shape and dtype with values of its space, and enough in each to
    measure something. Values that are decoded as they are written are looked at then.
    """
    parts: dict[str, Part] = {}
    dtype = np.dtype(str(decoded.spec.dtype).removeprefix("torch."))
    for split in SPLITS:
        part = decoded.parts[split]
        n, *shape = part.x.shape
        if n == 0:
            raise UserError(f"The {split} split is empty; every split needs examples.")
        if n < 2 and split != "train" and not decoded.alone:
            raise UserError(
                f"The {split} split has a single example, but what is measured on it needs at least 2 for a standard "
                f"error; hold out more (data.{split}=...) or provide more data."
            )
        if tuple(shape) != decoded.spec.shape or part.x.dtype != dtype:
            raise UserError(
                f"The {split} split holds {part.x.dtype} values of shape {tuple(shape)}, but the set is described as "
                f"{decoded.spec} ({dtype})."
            )
        check_labels(part, decoded.spec, split)
        check_conditions(part, decoded.spec, split)
        look = partial(check_values, spec=decoded.spec, split=split)
        parts[split] = replace(part, x=part.x.map(look) if isinstance(part.x, Chunks) else look(part.x))
    return replace(decoded, parts=parts)


def _thresholded(decoded: Decoded, name: str) -> Decoded:
    """Grey levels at or above half the number of levels become 1, the others 0."""
    spec = binarised_spec(decoded.spec, "threshold", name)
    middle = (decoded.spec.levels or 2) // 2

    def threshold(x: np.ndarray) -> np.ndarray:
        return (x >= middle).astype(np.uint8)

    def convert(part: Part) -> Part:
        return replace(
            part,
            x=part.x.map(threshold) if isinstance(part.x, Chunks) else threshold(part.x),
        )

    return replace(
        decoded,
        spec=spec,
        parts={split: convert(part) for split, part in decoded.parts.items()},
    )


def _padding(part: Split) -> int:
    """Number of places of step labels behind the ends of their sequences."""
    assert part.y is not None
    assert part.length is not None
    return int(part.y.size - part.length.sum())
