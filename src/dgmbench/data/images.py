"""A user's own folder of pictures, or a single one."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dgmbench.data.pictures import Decoder, Size, sides
from dgmbench.data.prepared import digest
from dgmbench.data.reader import ALONE, Decoded, Part, Reader, alone, held_out_size, split_at_random
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, some_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
FOLDERS = {"train": ("train",), "valid": ("valid", "val", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Found:
    """The pictures below a folder, and what else is there, as paths relative to it in sorted order."""

    pictures: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def passed_over(self) -> list[str]:
        """What is there and was not taken, in words."""
        reasons = {
            "hidden": (self.hidden, "name"),
            "links into a folder that they lie in": (self.loops, "name"),
            "no files (pipes, devices, links to nothing)": (self.broken, "name"),
            "no pictures by their ending": (self.others, "file"),
        }
        return [f"passed over as {why}: {some_of(names, what)}" for why, (names, what) in reasons.items() if names]


def find(folder: Path) -> Found:
    """Look below ``folder`` for pictures; links are followed, but not into a folder that they lie in."""
    found = Found()
    _look(folder, "", (_identity(folder),), found)
    for names in vars(found).values():
        names.sort()
    return found


def _look(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], found: Found) -> None:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}); make it readable.") from error
    for entry in entries:
        name, path = prefix + entry.name, Path(entry.path)  # a path says no of a link to itself, an entry raises
        picture = Path(entry.name).suffix.lower() in SUFFIXES
        if entry.name.startswith("."):
            found.hidden.extend([name] if picture or path.is_dir() else [])
        elif path.is_dir():
            own = _identity(path)
            if own in above:
                found.loops.append(name)
            else:
                _look(path, f"{name}/", (*above, own), found)
        elif not path.is_file():
            found.broken.append(name)
        else:
            (found.pictures if picture else found.others).append(name)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def folder_state(folder: Path) -> dict[str, Any]:
    """What tells one state of a folder of pictures from the next without reading them."""
    return _state(folder, find(folder).pictures)


def _state(folder: Path, names: list[str]) -> dict[str, Any]:
    statuses = [(folder / name).stat() for name in names]
    states = [[name, each.st_size, each.st_mtime_ns] for name, each in zip(names, statuses, strict=True)]
    return {"path": str(folder.resolve()), "pictures": len(states), "state": digest(states)}


class Images(Reader):
    """All pictures below ``path``, or the one that it names, cropped to the form of ``size`` (a side, or [height,
    width]) and resized to it, in colour (``channels=3``) or grey (1).

    Sub-folders ``train``, ``valid`` (``val``) and ``test`` are the splits if there is a ``train``; what is missing is
    split off the training pictures by ``split_seed``. A single picture is all three splits. If the pictures lie in
    folders, the first folder of each, below its split, is its class, numbered in alphabetical order; ``labels=none``
    takes them all as they are.

    Transparent parts are laid on the colour ``background``. ``value_range=[black, white]`` is for pictures of more than
    8 bits: 32-bit integers and floats need it, 16 bits have 0 and 65535 without it. ``skip_damaged`` leaves out
    pictures that cannot be decoded, and records which, where otherwise they end the run before it begins.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        size: Size = 64,
        channels: int = 3,
        background: str = "white",
        value_range: tuple[float, float] | None = None,
        labels: Literal["folders", "none"] = "folders",
        skip_damaged: bool = False,
        valid: float = 0.1,
        test: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        if not path:
            raise UserError("data=images needs data.path=DIR, a folder of pictures, or FILE, a single one.")
        named = Path(path).expanduser()
        self.only = named.name if named.is_file() else None
        self.folder, self.size, self.channels = named.parent if self.only else named, size, channels
        limits = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        advice = "repair or remove what is damaged, or leave it out with data.skip_damaged=true"
        self.decoder = Decoder(size, channels, background=background, value_range=limits, advice=advice)
        self.labels, self.skip_damaged = labels, skip_damaged
        self.valid, self.test, self.split_seed = valid, test, split_seed

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The folder, and a hash over its pictures' names, sizes and times of change."""
        return _state(self.folder, self._found.pictures) if self.folder.is_dir() else {}

    def fetch(self, folder: Path) -> None:
        """There must be at least one picture."""
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {self.folder}; data.path must name a folder of pictures, or one.")
        if not self._found.pictures:
            what = f"{self.folder / self.only} is no picture" if self.only else f"{self.folder} holds no pictures"
            raise UserError(f"{what} ({', '.join(sorted(SUFFIXES))}).")

    def read(self, folder: Path) -> Decoded:
        """Find, split and label; the pictures are decoded as they are written."""
        by_split, outside = self._by_folder()
        every = [name for names in by_split.values() for name in names]
        damaged = self.decoder.damaged(every, self._bytes) if self.skip_damaged else {}
        by_split = {split: [name for name in names if name not in damaged] for split, names in by_split.items()}
        classes = self._classes([name for names in by_split.values() for name in names])
        every = [name for name in every if name not in damaged]
        if single := len(every) == 1:
            parts = alone(self._part(every, np.arange(1), classes, every))
        else:
            dealt = self._dealt(by_split)
            parts = {split: self._part(names, index, classes, every) for split, (names, index) in dealt.items()}
        spec = DataSpec(
            (self.channels, *sides(self.size)), "discrete", levels=256, num_classes=len(classes) or None,
            class_names=tuple(classes) or None,
        )  # fmt: skip
        remarks = {"classes": classes, **({"skipped": damaged} if damaged else {})}

        def notes() -> list[str]:
            return [*([ALONE] if single else []), *self._passed_over(outside, damaged), *self.decoder.notes()]

        return Decoded(spec, parts, remarks, notes, single)

    @cached_property
    def _found(self) -> Found:
        if self.only is None:
            return find(self.folder)
        taken = Path(self.only).suffix.lower() in SUFFIXES
        return Found(pictures=[self.only]) if taken else Found(others=[self.only])

    def _bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def _by_folder(self) -> tuple[dict[str, list[str]], list[str]]:
        """The pictures of each split that has a folder, all as ``train`` if none is called so, and those outside."""
        split_of = {name: split for split, names in FOLDERS.items() for name in names}
        found: dict[str, list[str]] = {}
        for name in self._found.pictures:
            top, below, _ = name.partition("/")
            found.setdefault(split_of.get(top, "outside") if below else "outside", []).append(name)
        if "train" not in found:
            return {"train": self._found.pictures}, []
        return {split: found[split] for split in FOLDERS if split in found}, found.get("outside", [])

    def _dealt(self, found: Mapping[str, list[str]]) -> dict[str, tuple[list[str], np.ndarray]]:
        """For each split its pictures, relative to ``path``, and their positions in the list they were dealt from."""
        train = found["train"]
        missing = {s: size for s, size in (("valid", self.valid), ("test", self.test)) if s not in found}
        for split, size in missing.items():
            if held_out_size(size, len(train), split) == 0:
                raise UserError(
                    f"{self.folder} has no {split} folder, and data.{split}={size} of {len(train)} training pictures "
                    "holds out none; raise it or provide the folder."
                )
        dealt = split_at_random(len(train), seed=self.split_seed, **missing)
        result = {split: (found[split], np.arange(len(found[split]))) for split in found if split != "train"}
        for split in ("train", *missing):
            result[split] = [train[i] for i in dealt[split]], dealt[split]
        return result

    def _classes(self, names: Collection[str]) -> list[str]:
        """The names of the classes, in order; none if no picture lies in a folder. All must, or none."""
        if self.labels == "none":
            return []
        labels = {name: self._label(name) for name in names}
        classes = sorted({label for label in labels.values() if label is not None})
        loose = [name for name, label in labels.items() if label is None]
        if classes and loose:
            raise UserError(
                f"{self.folder} has {some_of(loose, 'picture')} beside its {some_of(classes, 'class folder')}; move "
                "them into the folder of their class, or take all pictures without labels by data.labels=none."
            )
        return classes

    def _label(self, name: str) -> str | None:
        """The class folder of a picture: the first folder above it that names no split."""
        folders = name.split("/")[:-1]
        if folders and self._splits and any(folders[0] in names for names in FOLDERS.values()):
            folders = folders[1:]
        return folders[0] if folders else None

    @cached_property
    def _splits(self) -> bool:
        return any(name.startswith("train/") for name in self._found.pictures)

    def _part(self, names: list[str], index: np.ndarray, classes: list[str], every: list[str]) -> Part:
        pixels = self.decoder.decode_all(names, self._bytes, every)
        y = np.array([classes.index(str(self._label(name))) for name in names], np.int64) if classes else None
        return Part(pixels, y, f"pictures {digest(names)[:12]}", index)

    def _passed_over(self, outside: list[str], damaged: Mapping[str, str]) -> list[str]:
        """What is in the folder and not in the set, in words."""
        reasons = {"outside of the folders train, valid and test": outside, "damaged": list(damaged)}
        own = [f"passed over as {why}: {some_of(names, 'picture')}" for why, names in reasons.items() if names]
        return own + self._found.passed_over()
