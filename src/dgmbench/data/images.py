"""A user's own folder of pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data.pictures import check_size, decode_all
from dgmbench.data.prepared import digest
from dgmbench.data.reader import Decoded, Part, Reader, split_at_random
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
FOLDERS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


def find_pictures(folder: Path) -> list[str]:
    """Paths of the pictures below ``folder``, relative to it and in sorted order; hidden ones are passed over, and what
    is no file, which :func:`irregular` names.
    """
    return [name for name in _named_like_pictures(folder) if (folder / name).is_file()]


def irregular(folder: Path) -> str | None:
    """The first that is named like a picture but is a pipe, a device, a socket, or a link to nothing or to itself."""
    names = (name for name in _named_like_pictures(folder) if not (folder / name).is_file())
    return next((name for name in names if not (folder / name).is_dir()), None)


def _named_like_pictures(folder: Path) -> list[str]:
    relative = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))


def folder_state(folder: Path) -> dict[str, Any]:
    """What tells one state of a folder of pictures from the next without reading them."""
    states = []
    for name in find_pictures(folder):
        status = (folder / name).stat()
        states.append([name, status.st_size, status.st_mtime_ns])
    return {"path": str(folder.resolve()), "pictures": len(states), "state": digest(states)}


class Images(Reader):
    """All pictures below ``path``: central square, resized to ``size``, in colour (``channels=3``) or grey (1).

    Sub-folders ``train``, ``valid`` (``val``) and ``test`` are the splits if there is a ``train``; what is missing is
    split off the training pictures by ``split_seed``. If every picture lies in a folder of its class, that is its
    label, numbered in alphabetical order.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        size: int = 64,
        channels: int = 3,
        valid: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        if not path:
            raise UserError("data=images needs data.path=DIR, a folder of pictures.")
        check_size(size, channels)
        self.folder, self.size, self.channels = Path(path).expanduser(), size, channels
        self.valid, self.test, self.split_seed = valid, test, split_seed

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The folder, and a hash over its pictures' names, sizes and times of change."""
        return folder_state(self.folder)

    def fetch(self, folder: Path) -> None:
        """There must be at least one picture."""
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {self.folder}; data.path must name a folder of pictures.")
        if (strange := irregular(self.folder)) is not None:
            raise UserError(
                f"{self.folder / strange} is no file, but a pipe, a device or a link to nothing; remove it."
            )
        if not find_pictures(self.folder):
            raise UserError(f"{self.folder} holds no pictures ({', '.join(sorted(SUFFIXES))}).")

    def read(self, folder: Path) -> Decoded:
        """Find, split and label; the pictures are decoded as they are written."""
        names = self._by_split()
        classes = self._classes(names)
        parts = {split: self._part(below, index, classes) for split, (below, index) in names.items()}
        spec = DataSpec((self.channels, self.size, self.size), "discrete", levels=256, num_classes=len(classes) or None)
        return Decoded(spec, parts, {"classes": classes})

    def _by_split(self) -> dict[str, tuple[list[str], np.ndarray]]:
        """For each split its pictures, relative to ``path``, and their positions in the list they were dealt from."""
        found: dict[str, list[str]] = {}
        for split, folders in FOLDERS.items():
            for name in folders:
                if (self.folder / name).is_dir() and (pictures := find_pictures(self.folder / name)):
                    found.setdefault(split, []).extend(f"{name}/{picture}" for picture in pictures)
        if "train" not in found:
            found = {"train": find_pictures(self.folder)}
        train = found["train"]
        missing = {s: size for s, size in (("valid", self.valid), ("test", self.test)) if s not in found}
        for split, size in missing.items():
            if round(size if size >= 1 else size * len(train)) == 0:
                raise UserError(
                    f"{self.folder} has no {split} folder, and data.{split}={size} of {len(train)} training pictures "
                    "holds out none; raise it or provide the folder."
                )
        dealt = split_at_random(len(train), seed=self.split_seed, **missing)
        result = {split: (found[split], np.arange(len(found[split]))) for split in found if split != "train"}
        for split in ("train", *missing):
            result[split] = [train[i] for i in dealt[split]], dealt[split]
        return result

    def _classes(self, names: Mapping[str, tuple[list[str], np.ndarray]]) -> list[str]:
        labels = {self._label(name) for below, _ in names.values() for name in below}
        return [] if None in labels else sorted(str(label) for label in labels)

    def _label(self, name: str) -> str | None:
        """The class folder of a picture: the last folder above it that names no split."""
        folders = name.split("/")[:-1]
        if folders and any(folders[0] in names for names in FOLDERS.values()) and (self.folder / "train").is_dir():
            folders = folders[1:]
        return folders[-1] if folders else None

    def _part(self, names: list[str], index: np.ndarray, classes: list[str]) -> Part:
        pixels = decode_all(
            names, lambda name: (self.folder / name).read_bytes(), size=self.size, channels=self.channels
        )
        y = np.array([classes.index(str(self._label(name))) for name in names], np.int64) if classes else None
        return Part(pixels, y, f"pictures {digest(names)[:12]}", index)
