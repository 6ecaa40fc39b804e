"""CelebA, aligned and cropped, from its published files.

Z. Liu, P. Luo, X. Wang, X. Tang: Deep learning face attributes in the wild (2015), https://arxiv.org/abs/1411.7766
"""

import zipfile
from pathlib import Path

import numpy as np

from dgmbench.data.archives import ZIP_DAMAGE, open_zip
from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.pictures import Decoder
from dgmbench.data.reader import SPLITS, Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest

ARCHIVE, ATTRIBUTES, PARTITION = "img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt"


class Celeba(PublishedReader):
    """Colour (3, size, size) with 256 levels, in the official splits: the central ``crop`` x ``crop`` pixels of the
    178x218 pictures, resized.

    The label is one of the 40 attributes (``attribute=Smiling``: 1 yes, 0 no), or none. The crop of 148 is that of
    Larsen et al. 2016 and most work since.
    """

    files = (
        PublishedFile(ARCHIVE, "md5:00d2c5bc6d35e252742224ab0c1e8fcb"),
        PublishedFile(ATTRIBUTES, "md5:75e246fa4810816ffd6ee81facbd244c"),
        PublishedFile(PARTITION, "md5:d32c9cbf5e040fd4025c592c306e6668"),
    )
    instead = (
        "its authors give these files on Google Drive, which no program can rely on: get them by hand from "
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (align&cropped images) and put them there"
    )

    def __init__(
        self,
        *,
        size: int = 64,
        crop: int = 148,
        attribute: str | None = None,
        download: bool = False,
        verify: bool = True,
    ) -> None:
        super().__init__(download=download, verify=verify)
        if not 1 <= crop <= 178:
            raise UserError(f"data.crop is {crop}; the pictures are 178 pixels wide.")
        self.decoder, self.size, self.attribute = Decoder(size, 3, crop), size, attribute

    def read(self, folder: Path) -> Decoded:
        """Read the two lists; the pictures are decoded out of the archive as they are written."""
        path = self.path(folder, ARCHIVE)
        partition = _table(self.path(folder, PARTITION), header=0)
        names = list(partition)
        numbers = {str(number) for number in range(len(SPLITS))}
        if strange := [name for name, row in partition.items() if row[0] not in numbers]:
            raise UserError(
                f"{folder / PARTITION} puts {strange[0]} in the split {partition[strange[0]][0]}, not 0, 1 or 2."
            )
        split_of = np.array([int(row[0]) for row in partition.values()])
        labels = None
        if self.attribute is not None:
            labels = self._labels(self.path(folder, ATTRIBUTES), names)
        with open_zip(path) as checked:
            members = {Path(member).name: member for member in checked.namelist() if member.endswith(".jpg")}
        if absent := [name for name in names if name not in members]:
            raise UserError(f"{path} lacks {len(absent)} of the pictures in {PARTITION}, such as {absent[0]}.")

        archive = zipfile.ZipFile(path)

        def picture(name: str) -> bytes:
            try:
                return archive.read(members[name])
            except ZIP_DAMAGE as error:
                raise UserError(f"{name} in {path} is damaged ({error}); get the archive again.") from error

        parts = {}
        for number, split in enumerate(SPLITS):
            index = np.flatnonzero(split_of == number)
            pixels = self.decoder.decode_all([names[i] for i in index], picture, every=names)
            parts[split] = Part(pixels, None if labels is None else labels[index], PARTITION, index)
        spec = DataSpec((3, self.size, self.size), "discrete", levels=256, num_classes=None if labels is None else 2)
        return Decoded(spec, parts, {"attribute": self.attribute}, self.decoder.notes)

    def _labels(self, path: Path, names: list[str]) -> np.ndarray:
        with path.open() as file:
            attributes = [line.split() for line in (file.readline(), file.readline())][1]
        if self.attribute not in attributes:
            raise UserError(nearest(str(self.attribute), attributes, what="CelebA attribute"))
        column, table = attributes.index(self.attribute), _table(path, header=2)
        if absent := [name for name in names if name not in table]:
            raise UserError(f"{path} says nothing about {len(absent)} pictures, such as {absent[0]}.")
        values = [table[name][column] if column < len(table[name]) else "nothing" for name in names]
        if strange := set(values) - {"1", "-1"}:
            raise UserError(f"{path} says {min(strange)} of {self.attribute}, not 1 or -1; get it again.")
        return np.array([value == "1" for value in values], np.int64)


def _table(path: Path, *, header: int) -> dict[str, list[str]]:
    """Lines ``picture value ...`` after some header lines, as a dictionary in the file's order."""
    rows = [line.split() for line in path.read_text().splitlines()[header:] if line.strip()]
    if not rows or any(len(row) != len(rows[0]) or len(row) < 2 for row in rows):
        raise UserError(f"{path} is truncated or altered: its lines are not a picture's name and values.")
    return {row[0]: row[1:] for row in rows}
