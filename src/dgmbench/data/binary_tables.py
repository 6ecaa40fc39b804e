"""Tables of bits on which autoregressive density models are compared, in the splits of the papers.

``uci_binary``: dna, mushrooms and nips as H. Larochelle and I. Murray (*The Neural Autoregressive Distribution
Estimator*, AISTATS 2011) split them and as Germain et al. (*MADE*, ICML 2015) publish them. ``binary_density``: the
benchmark of D. Lowd, J. Davis, J. Van Haaren and others, *Discrete Data sets for Density Estimation*; its dna has
another split. Numbers on tables of the same name but of different collections do not compare.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data.files import state
from dgmbench.data.npz import open_npz
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest

# sha256 of the rows of train, valid and test, each packed by np.packbits, one after another.
BITS = {
    "uci_binary": {
        "dna": "a6dd127edd98ecb2e42590d29b7f0eba6c7d6ff0e9bd74c673a6feed750c8bbd",
        "mushrooms": "fc42625b81431b71884fec4f43a326272dba2e476cd15bd8e990bca5cf21fcb3",
        "nips": "1bdf4cca3a8b2b47feacd09adf9269fbd8967e5116abe72e56572bbe2a0e8e18",
    },
    "binary_density": {
        "accidents": "78735ba0939659fd28eac01fc81d8f13e220c5ddeda0713914a342d083b24e6b",
        "baudio": "bb15038bad83589d40b1485e7cb6cfadbcaa9b3cc4c52c88a65cbe9fa19a9e0b",
        "bbc": "2efec5faa0569e5cda5d05155aee7dfcb5009e45e379278c2ab9e73f62ff075d",
        "bnetflix": "90ffabb1a5ca123b63ada2c5ed7ee1cce72a424efd4a542322ea7f7249ceec2e",
        "dna": "24995bcbb09d67e1f27189ae93c1f7484d7ff3208365dab3ce5075d4c412d6ad",
        "jester": "3aa1cfc9cb5d4534225b686c02916b05bd5ea254623b3aa0f9fe5338c89f1df1",
        "moviereview": "700b8c27da7b4c200590ed24f9caabc4989dffeaac2c5eb1d66bd29822aa9008",
        "mushrooms": "fc42625b81431b71884fec4f43a326272dba2e476cd15bd8e990bca5cf21fcb3",
        "nips": "1bdf4cca3a8b2b47feacd09adf9269fbd8967e5116abe72e56572bbe2a0e8e18",
        "nltcs": "d1a43f92acb57cf19167c25d4d7013eb52935982bb3e226d56fd330e00e10a06",
        "plants": "85b7aec15770d4ddc65446312c02922e0279ab9b3b8372bb458c32c8a9b5ff67",
        "pumsb_star": "c1ab4e99f1f51fc1310eff6f74395e4bde45d6176ee9678179117a8fdd71bb94",
        "voting": "0dff4e504c8257be6049fb33b35e1528f66363e81154ec932c2ac5cbe1eb66a5",
    },
}
WHERE = {"uci_binary": "github.com/mgermain/MADE (datasets)", "binary_density": "github.com/arranger1044/DEBD"}


def read_bits(path: Path) -> np.ndarray:
    """The rows of a text file of 0 and 1 separated by commas or blanks, as (n, d) uint8."""
    text = np.frombuffer(path.read_bytes(), np.uint8)
    rows = int((text == ord("\n")).sum()) + int(text.size > 0 and text[-1] != ord("\n"))
    digits = text[~np.isin(text, np.frombuffer(b", \t\r\n", np.uint8))] - np.uint8(ord("0"))
    if digits.size == 0 or digits.max() > 1 or digits.size % rows:
        raise UserError(f"{path} does not consist of lines of 0 and 1, all of the same length; get it again.")
    return digits.reshape(rows, -1)


class BinaryTable(Reader):
    """One ``table`` of a ``collection`` as binary (d,), no labels, with the official train, valid and test rows.

    Its folder holds ``TABLE.npz``, with ``train_data``, ``valid_data`` and ``test_data`` (or ``x_train``, ``x_valid``
    and ``x_test``) of 0 and 1, or the text files ``TABLE.train.data``, ``TABLE.valid.data`` and ``TABLE.test.data``.
    ``verify`` refuses bits that differ from the published ones.
    """

    def __init__(self, *, table: str, collection: str, verify: bool = True) -> None:
        if collection not in BITS:
            raise UserError(nearest(collection, BITS, what="collection of binary tables"))
        if table not in BITS[collection]:
            raise UserError(nearest(table, BITS[collection], what=f"table of {collection}"))
        self.table, self.collection, self.verify = table, collection, verify

    def _files(self, folder: Path) -> list[Path]:
        """The files that are there: the archive, or else the three texts, or none."""
        archive, texts = folder / f"{self.table}.npz", [folder / f"{self.table}.{split}.data" for split in SPLITS]
        return [archive] if archive.is_file() else texts if all(text.is_file() for text in texts) else []

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The hash of the published bits, or the state of the files if unverified."""
        if self.verify:
            return {"bits": BITS[self.collection][self.table]}
        return {file.name: state(file) for file in self._files(folder)}

    def fetch(self, folder: Path) -> None:
        """The files must be there: their authors publish them in a repository."""
        if not self._files(folder):
            raise UserError(
                f"data={folder.name} needs {self.table}.npz or {self.table}.{{train,valid,test}}.data in {folder}; get "
                f"them from {WHERE[self.collection]}."
            )

    def read(self, folder: Path) -> Decoded:
        """Decode whichever files are there, the archive first."""
        files = self._files(folder)
        if len(files) == 1:
            rows = [self._from_archive(files[0], split) for split in SPLITS]
        else:
            rows = [read_bits(file) for file in files]
        if len({x.shape[1] for x in rows}) > 1:
            raise UserError(f"The rows of {self.table} in {folder} differ in length; get its files again.")
        bits = b"".join(np.packbits(x, axis=1).tobytes() for x in rows)
        if self.verify and hashlib.sha256(bits).hexdigest() != BITS[self.collection][self.table]:
            raise UserError(
                f"{self.table} in {folder} differs from the published rows of {self.collection}; get it again, or "
                "accept it as it is with data.verify=false."
            )
        parts = {
            split: Part(x, None, f"{self.collection}: official {split} set of {self.table}", np.arange(len(x)))
            for split, x in zip(SPLITS, rows, strict=True)
        }
        return Decoded(DataSpec((rows[0].shape[1],), "binary"), parts)

    def _from_archive(self, archive: Path, split: str) -> np.ndarray:
        arrays = open_npz(archive)
        x = arrays.get(f"{split}_data", arrays.get(f"x_{split}"))
        if x is None or x.ndim != 2 or x.size == 0 or not ((x == 0) | (x == 1)).all():
            raise UserError(f"{archive} needs {split}_data or x_{split}, rows of 0 and 1; repair it or get it again.")
        return x.astype(np.uint8)
