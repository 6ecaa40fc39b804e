"""Colour patches of scikit-learn's two photographs: one trains, the other tests.

Origin: the photographs "china" and "flower" of ``sklearn.datasets.load_sample_images``, CC BY (Wikimedia Commons).
"""

from pathlib import Path

import numpy as np

from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

VALID = 0.2  # the share of the first photograph's columns, at its right edge, whose patches validate


class PhotoPatches(Reader):
    """Squares (3, size, size) of two photographs, 427 x 640 pixels each, 256 levels.

    Training patches overlap: they stand every half side on the left four fifths of "china". Patches of the last fifth
    validate and those of "flower" test; these tile. All are in a random order, always the same, in which the first few
    show something of everything; ``index`` is where they stand, row by row.
    """

    prepared = False

    def __init__(self, *, size: int = 32) -> None:
        if not 8 <= size <= 128:
            raise UserError(f"data.size={size} must be from 8 to 128 pixels: the photographs are 427 x 640.")
        self.size = size

    def read(self, folder: Path) -> Decoded:
        """Cut the patches and shuffle them."""
        from sklearn.datasets import load_sample_images

        china, flower = (np.asarray(image, np.uint8) for image in load_sample_images().images)
        cut = round(china.shape[1] * (1 - VALID))
        pictures = {
            "train": ("china, left", patches(china[:, :cut], self.size, max(1, self.size // 2))),
            "valid": ("china, right", patches(china[:, cut:], self.size, self.size)),
            "test": ("flower", patches(flower, self.size, self.size)),
        }
        parts = {}
        for split in SPLITS:
            name, x = pictures[split]
            order = np.random.RandomState(0).permutation(len(x))
            parts[split] = Part(x[order], None, f"sklearn.datasets.load_sample_images {name}", order)
        return Decoded(DataSpec((3, self.size, self.size), "discrete", levels=256), parts)


def patches(picture: np.ndarray, size: int, step: int) -> np.ndarray:
    """All squares (n, c, size, size) of a picture (h, w, c) that stand every ``step`` pixels, row by row."""
    views = np.lib.stride_tricks.sliding_window_view(picture, (size, size), (0, 1))[::step, ::step]
    return np.ascontiguousarray(views.reshape(-1, picture.shape[2], size, size))
