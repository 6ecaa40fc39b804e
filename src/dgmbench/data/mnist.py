"""MNIST and Fashion-MNIST from their published gzipped idx files.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition (1998).
H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, a novel image dataset (2017), https://arxiv.org/abs/1708.07747
"""

import math
from pathlib import Path

import numpy as np

from dgmbench.data.archives import gunzip
from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.reader import Decoded, Part, split_off_the_end, take_parts
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped idx file: two zero bytes, type 8, number of dimensions, sizes, values."""
    content = gunzip(path)
    if content[:3] != b"\0\0\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path} is no idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}.")
    start = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    if len(content) - start != math.prod(shape):
        raise UserError(f"{path} announces values of shape {shape} but holds {len(content) - start} bytes of them.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


class Mnist(PublishedReader):
    """Grey (1, 28, 28) with 256 levels, ten classes; the last ``valid`` official training images validate."""

    files = tuple(
        PublishedFile(name, f"sha256:{sha256}", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}")
        for name, sha256 in (
            ("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            ("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            ("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            ("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        )
    )

    def __init__(self, *, valid: float = 10_000, download: bool = False, verify: bool = True) -> None:
        super().__init__(download=download, verify=verify)
        self.valid = valid

    def read(self, folder: Path) -> Decoded:
        """Decode the four files."""
        train_x, train_y, test_x, test_y = (read_idx(self.path(folder, file.name)) for file in self.files)
        for x, y in ((train_x, train_y), (test_x, test_y)):
            if x.shape[1:] != (28, 28) or y.shape != x.shape[:1] or y.max(initial=0) > 9:
                raise UserError(
                    f"The files in {folder} hold images {x.shape} and labels {y.shape} up to {y.max(initial=0)}; "
                    "expected (n, 28, 28) and (n,) up to 9."
                )
        splits = split_off_the_end(len(train_x), valid=self.valid)
        parts = take_parts(train_x[:, None], train_y.astype(np.int64), splits, "official training set")
        index = np.arange(len(test_x))
        parts["test"] = Part(test_x[:, None], test_y.astype(np.int64), "official test set", index)
        return Decoded(DataSpec((1, 28, 28), "discrete", levels=256, num_classes=10), parts)


class FashionMnist(Mnist):
    """The same format and split: ten classes of clothing."""

    files = tuple(
        PublishedFile(name, f"sha256:{sha256}", f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}")
        for name, sha256 in (
            ("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            ("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            ("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            ("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        )
    )
