"""Any map-style ``torch.utils.data.Dataset`` of the user's own: its items are read once, and kept as arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from dgmbench.data.npz import Arrays, Npz
from dgmbench.data.prepared import hash_of_arrays
from dgmbench.data.reader import SPLITS
from dgmbench.errors import UserError
from dgmbench.source import source_hash

MOST_CHECKED = 3  # items that tell one state of a set from the next


class TorchDataset(Npz):
    """The items of ``train`` and, where they are given, ``valid`` and ``test``: x, or (x, y) with an integer label y;
    x is a tensor or an array (or what ``numpy.asarray`` makes one of), of one shape for all items, labels are integers.

    The kind follows from the values as for arrays. The sets are read again when their arguments, the code of their
    class, their length or one of their first items has changed; what came out of them has a hash of its own, as all
    data have. A set that gives another item at the same place is refused: every start would be one of other data.
    """

    door = "torch_dataset"
    wanted = "the node of a Dataset"

    def __init__(
        self,
        *,
        train: Dataset[Any] | None = None,
        valid: Dataset[Any] | float = 0.1,
        test: Dataset[Any] | float = 0.1,
        kind: str | None = None,
        levels: int | None = None,
        split_seed: int = 0,
    ) -> None:
        if train is None:
            raise UserError(
                "data=torch_dataset needs data.train={_target_: my_package.MySet, ...}, a torch.utils.data.Dataset."
            )
        shares = [0.1 if isinstance(each, Dataset) else each for each in (valid, test)]
        name = type(train).__qualname__
        super().__init__(path=name, kind=kind, levels=levels, valid=shares[0], test=shares[1], split_seed=split_seed)
        given = {"train": train, "valid": valid, "test": test}
        self.sets: dict[str, Any] = {split: each for split, each in given.items() if isinstance(each, Dataset)}

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The class's code, and length and first items of each set; arguments are part of every reader's key."""
        return {split: self._state(split) for split in self.sets}

    def _state(self, split: str) -> dict[str, Any]:
        places = range(min(MOST_CHECKED, self._length(split)))
        once, again = ([_hash(self._item(split, place)) for place in places] for _ in range(2))
        if once != again:
            raise UserError(
                f"data.{split}: {self._name(split)} gives another item at the same place when it is asked again; "
                "switch its random augmentation off."
            )
        try:
            code = source_hash(type(self.sets[split]))
        except (OSError, TypeError):  # of a class that was typed in
            code = None
        return {"code": code, "length": self._length(split), "items": once}

    def fetch(self, folder: Path) -> None:
        """Every set must have items that can be asked for by their place."""
        for split in self.sets:
            if self._length(split) == 0:
                raise UserError(f"data.{split}: the Dataset {self._name(split)} is empty.")

    def arrays(self, scratch: Path) -> tuple[Arrays, list[str]]:
        """All items, stacked."""
        found: Arrays = {}
        for split in (split for split in SPLITS if split in self.sets):
            items = [self._item(split, place) for place in range(self._length(split))]
            for what, place in (("x", 0), ("y", 1)):
                values = [item[place] for item in items if len(item) > place]
                if values and len(values) != len(items):
                    raise UserError(f"data.{split}: some items of {self._name(split)} have a label and others none.")
                if values:
                    found[f"{what}_{split}"] = self._stacked(values, split)
        return found, []

    def _stacked(self, values: list[np.ndarray], split: str) -> np.ndarray:
        for place, each in enumerate(values):
            if each.shape != values[0].shape:
                raise UserError(
                    f"data.{split}: item {place} of {self._name(split)} has shape {each.shape} and item 0 "
                    f"{values[0].shape}; all items must have one shape."
                )
        return np.stack(values)

    def _item(self, split: str, place: int) -> tuple[np.ndarray, ...]:
        item = self.sets[split][place]
        both = tuple(item) if isinstance(item, tuple | list) else (item,)
        if len(both) not in (1, 2):
            raise UserError(
                f"data.{split}: items of {self._name(split)} have {len(both)} parts; give x, or (x, y) with a label."
            )
        return tuple(each.detach().cpu().numpy() if isinstance(each, Tensor) else np.asarray(each) for each in both)

    def _length(self, split: str) -> int:
        try:
            return len(self.sets[split])
        except TypeError as error:
            raise UserError(
                f"data.{split}: {self._name(split)} has no length; give a Dataset whose items are asked for by their "
                "place, with __len__ and __getitem__."
            ) from error

    def _name(self, split: str) -> str:
        return type(self.sets[split]).__qualname__


def _hash(item: tuple[np.ndarray, ...]) -> str:
    return hash_of_arrays({str(n): np.atleast_1d(each) for n, each in enumerate(item)})
