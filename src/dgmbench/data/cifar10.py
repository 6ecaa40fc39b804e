"""CIFAR-10 from its published archive.

A. Krizhevsky: Learning multiple layers of features from tiny images (2009).
"""

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data.archives import require_inside, require_plausible
from dgmbench.data.checks import exactly
from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.reader import Decoded, Part, split_off_the_end, take_parts
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


class ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, strings, lists and numpy arrays; every other global is refused, for a pickle may name any
    function and have it called.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The few globals that a pickled array needs."""
        import codecs

        from numpy._core.multiarray import _reconstruct  # its home in the old files was numpy.core

        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return allowed[module, name]


class Cifar10(PublishedReader):
    """Colour (3, 32, 32) with 256 levels, ten classes; the last ``valid`` official training images validate."""

    files = (
        PublishedFile(
            "cifar-10-python.tar.gz",
            "md5:c58f30108f718f92721af3b95e74349a",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    )

    def __init__(self, *, valid: float = 5_000, download: bool = False, verify: bool = True) -> None:
        super().__init__(download=download, verify=verify)
        self.valid = valid

    def read(self, folder: Path) -> Decoded:
        """Decode the six batches without unpacking the archive to disk."""
        path = self.path(folder, self.files[0].name)
        batches: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        try:
            with tarfile.open(path, "r:gz") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name not in (*TRAIN_BATCHES, "test_batch"):
                        continue
                    require_inside(member.name, path)
                    if not member.isfile() or member.issparse():
                        raise UserError(f"{member.name} in {path} is a link or no plain file; get the archive again.")
                    require_plausible(member.size, path.stat().st_size, f"{member.name} in {path}")
                    file = archive.extractfile(member)
                    assert file is not None, "of a plain file there is one"
                    batches[name] = _batch(path, name, file.read())
        except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
            raise UserError(f"{path} is no complete tar.gz archive ({error}); get it again.") from error
        if missing := [name for name in (*TRAIN_BATCHES, "test_batch") if name not in batches]:
            raise UserError(f"{path} lacks {', '.join(missing)}; get it again.")
        x = np.concatenate([batches[name][0] for name in TRAIN_BATCHES])
        y = np.concatenate([batches[name][1] for name in TRAIN_BATCHES])
        parts = take_parts(x, y, split_off_the_end(len(x), valid=self.valid), "official training set")
        test_x, test_y = batches["test_batch"]
        parts["test"] = Part(test_x, test_y, "official test set", np.arange(len(test_x)))
        return Decoded(DataSpec((3, 32, 32), "discrete", levels=256, num_classes=10), parts)


def _batch(path: Path, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) and labels (n,) of one pickled batch."""
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        x, y = batch[b"data"], exactly(np.asarray(batch[b"labels"]), np.int64, "labels")
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{name} in {path} is no batch of CIFAR-10: {error}.") from error
    is_bytes = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape == (len(y), 3072)
    if not is_bytes or not set(y.tolist()) <= set(range(10)):
        raise UserError(f"{name} in {path} does not hold (n, 3072) bytes and n labels 0 to 9.")
    return x.reshape(-1, 3, 32, 32), y
