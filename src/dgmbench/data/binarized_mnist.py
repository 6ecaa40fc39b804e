"""The statically binarised MNIST of the likelihood literature, in its own order and with its own validation set.

R. Salakhutdinov, I. Murray: On the quantitative analysis of deep belief networks (2008); files by H. Larochelle.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data.files import PublishedFile, PublishedReader, state
from dgmbench.data.npz import open_npz
from dgmbench.data.reader import SPLITS, Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

COUNTS = {"train": 50_000, "valid": 10_000, "test": 10_000}
BITS = {  # sha256 of the rows packed by np.packbits
    "train": "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906",
    "valid": "a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d",
    "test": "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2",
}
ARCHIVE = "binarized_mnist.npz"


def read_amat(path: Path) -> np.ndarray:
    """The 0/1 rows of a text file, 784 values a line separated by blanks, as (n, 784) uint8."""
    text = np.frombuffer(path.read_bytes(), np.uint8)
    digits = text[(text != ord(" ")) & (text != ord("\n")) & (text != ord("\r"))] - np.uint8(ord("0"))
    if digits.size == 0 or digits.size % 784 or digits.max() > 1:
        raise UserError(f"{path} does not consist of lines of 784 values 0 or 1; get it again.")
    return digits.reshape(-1, 784)


class BinarizedMnist(PublishedReader):
    """Binary (1, 28, 28), no labels: 50,000 train, 10,000 validate, 10,000 test.

    From the three published text files, or from ``binarized_mnist.npz`` with ``x_train``, ``x_valid`` and ``x_test``
    of 0/1 in the same order, which is a hundredth of the size and verified by its bits.
    """

    files = tuple(
        PublishedFile(
            f"binarized_mnist_{split}.amat",
            f"sha256:{sha256}",
            f"http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{split}.amat",
        )
        for split, sha256 in (
            ("train", "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
            ("valid", "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
            ("test", "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
        )
    )

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The contents' hashes, which are the same by either way, or the state of the files if unverified."""
        if self.verify:
            return BITS
        archive = folder / ARCHIVE
        return {ARCHIVE: state(archive)} if archive.is_file() else super().source(folder)

    def fetch(self, folder: Path) -> None:
        """Make sure of the archive or else of the three text files."""
        if not (folder / ARCHIVE).is_file():
            super().fetch(folder)

    def read(self, folder: Path) -> Decoded:
        """Decode whichever files are there, the archive first."""
        archive = folder / ARCHIVE
        if archive.is_file():
            arrays = open_npz(archive)
            rows = {split: self._from_archive(archive, arrays, split) for split in SPLITS}
        else:
            rows = {s: read_amat(self.path(folder, f"binarized_mnist_{s}.amat")) for s in SPLITS}
        parts = {
            split: Part(x.reshape(-1, 1, 28, 28), None, f"official {split} set", np.arange(len(x)))
            for split, x in rows.items()
        }
        return Decoded(DataSpec((1, 28, 28), "binary"), parts)

    def _from_archive(self, archive: Path, arrays: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        x = arrays.get(f"x_{split}")
        if x is None or x.ndim < 2 or x[:1].size != 784 or not ((x == 0) | (x == 1)).all():
            raise UserError(f"{archive} needs x_{split} of 784 values 0 or 1 a row; repair it or use the .amat files.")
        rows = x.reshape(-1, 784).astype(np.uint8)
        if self.verify and hashlib.sha256(np.packbits(rows, axis=1).tobytes()).hexdigest() != BITS[split]:
            raise UserError(
                f"x_{split} in {archive} differs from the published {COUNTS[split]:,} rows; get it again, or accept it "
                "as it is with data.verify=false."
            )
        return rows
