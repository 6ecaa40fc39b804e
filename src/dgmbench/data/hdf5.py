"""A user's own HDF5 file with the arrays of an .npz file: ``x_train`` and, where there are any, ``x_valid``, ``y_*``
and so on.
"""

from collections.abc import Mapping
from pathlib import Path

from dgmbench.data.archives import hdf5_arrays, read_hdf5
from dgmbench.data.npz import Arrays, Npz
from dgmbench.data.reader import SPLITS
from dgmbench.errors import UserError, nearest

KEYS = tuple(f"{what}_{split}" for what in ("x", "y", "given", "length") for split in SPLITS)


class Hdf5(Npz):
    """The arrays of an HDF5 file, as those of :class:`Npz`.

    ``keys`` names them where the file calls them otherwise, by their paths in it:
    ``data.keys={x_train: train/images, y_train: train/labels}``; then these are all that is read.
    """

    door = "hdf5"
    wanted = "an HDF5 file with x_train"

    def __init__(
        self,
        *,
        path: str | None = None,
        keys: Mapping[str, str] | None = None,
        kind: str | None = None,
        levels: int | None = None,
        valid: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        super().__init__(path=path, kind=kind, levels=levels, valid=valid, test=test, split_seed=split_seed)
        for key in keys or {}:
            if key not in KEYS:
                raise UserError(nearest(key, KEYS, what="key of data.keys"))
        self.keys = dict(keys or {})

    def arrays(self, scratch: Path) -> tuple[Arrays, list[str]]:
        """The arrays that are named, or those whose names are known."""
        there = hdf5_arrays(self.file)
        wanted = self.keys or {key: key for key in KEYS if key in there}
        for key, name in wanted.items():
            if name not in there:
                raise UserError(f"data.keys.{key}={name}: {nearest(name, there, what=f'array in {self.file} called')}")
        if "x_train" not in wanted:
            raise UserError(
                f"{self.file} has no x_train; its arrays are: {', '.join(there) or 'none'}. Name the one to train on "
                "by data.keys={x_train: NAME}."
            )
        return read_hdf5(self.file, {key: [name] for key, name in wanted.items()}), []
