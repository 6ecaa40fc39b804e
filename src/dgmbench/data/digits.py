"""scikit-learn's handwritten digits: 1,797 real 8x8 images in 17 grey levels, bundled, so that nothing is downloaded.

Origin: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), CC BY 4.0; the test part.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from dgmbench.data.labels import few_labels
from dgmbench.data.reader import Decoded, Reader, split_at_random, take_parts
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

THRESHOLD = 8
"""The grey level, of 0 ... 16, from which a pixel is one."""


def enlarge(x: np.ndarray) -> np.ndarray:
    """8x8 images with values 0 ... 16 -> 32x32 images with values 0 ... 255, by bilinear interpolation.

    In integers, hence the same bytes on every machine: at a factor of 4 the weights are eighths.
    """
    position = 2 * np.arange(32) - 3  # in eighths of a source pixel, measured from the centre of the first
    low = np.clip(position // 8, 0, 7)
    high = np.clip(position // 8 + 1, 0, 7)
    weights = np.zeros((32, 8), np.int64)
    np.add.at(weights, (np.arange(32), low), 8 - position % 8)
    np.add.at(weights, (np.arange(32), high), position % 8)
    total = weights @ x.astype(np.int64) @ weights.T  # 64 * value, value <= 16
    scale = 64 * 16
    return ((2 * 255 * total + scale) // (2 * scale)).astype(np.uint8)


class Digits(Reader):
    """The digits as (1, 8, 8) with 17 levels, or enlarged to (1, 32, 32) with 256.

    Enlarging is for architectures that need several scales; it adds no information, so ``digits32`` does not belong
    in likelihood tables. scikit-learn gives no split: ``valid`` and ``test`` are dealt out by ``split_seed``.
    """

    prepared = False

    def __init__(
        self,
        *,
        size: Literal[8, 32] = 8,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        if size not in (8, 32):
            raise UserError(f"The digits come in size 8 or 32, not {size}; choose data=digits or data=digits32.")
        self.size, self.valid, self.test, self.split_seed = (
            size,
            valid,
            test,
            split_seed,
        )

    def read(self, folder: Path) -> Decoded:
        """The images of ``sklearn.datasets.load_digits`` in their order."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = bunch.images.astype(np.uint8)[:, None]
        if self.size == 32:
            x = enlarge(x)
        splits = split_at_random(len(x), seed=self.split_seed, valid=self.valid, test=self.test)
        spec = DataSpec(
            (1, self.size, self.size),
            "discrete",
            levels=17 if self.size == 8 else 256,
            num_classes=10,
        )
        return Decoded(
            spec,
            take_parts(x, bunch.target.astype(np.int64), splits, "sklearn.datasets.load_digits"),
        )


class DigitsFewLabels(Digits):
    """The digits with the labels of ``labels_per_class`` training images of each class; all others are -1.

    Which labels are kept is drawn by ``draw``: methods that learn from few labels are compared over several draws. The
    validation and test splits keep all labels, and the images are those of ``Digits``.
    """

    def __init__(
        self,
        *,
        size: Literal[8, 32] = 8,
        labels_per_class: int = 10,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__(size=size, valid=valid, test=test, split_seed=split_seed)
        self.labels_per_class, self.draw = labels_per_class, draw

    def read(self, folder: Path) -> Decoded:
        """The digits, most of their training labels forgotten."""
        decoded = super().read(folder)
        train = decoded.parts["train"]
        assert train.y is not None
        kept = few_labels(train.y, per_class=self.labels_per_class, draw=self.draw)
        remarks = {"labels_per_class": self.labels_per_class, "draw": self.draw}
        return replace(decoded, parts={**decoded.parts, "train": replace(train, y=kept)}, remarks=remarks)


class DigitsQuadrants(Digits):
    """Binary 8x8 digits cut in two: some quadrants are given, and x is the rest.

    Both are pictures of the whole size, zero where the other one is, so that their sum is the digit. ``quadrants`` are
    given: 1 is the lower left one, 2 the left half, 3 all but the upper right one (the tasks of Sohn, Lee, Yan 2015).
    The zeros of x are certain: a model loses next to no nats on them once it knows the biases of its outputs.
    """

    def __init__(
        self, *, quadrants: Literal[1, 2, 3] = 1, valid: int | float = 0.1, test: int | float = 0.2, split_seed: int = 0
    ) -> None:
        super().__init__(size=8, valid=valid, test=test, split_seed=split_seed)
        if quadrants not in (1, 2, 3):
            raise UserError(f"data.quadrants={quadrants} must be 1, 2 or 3 of the four that a picture has.")
        self.quadrants = quadrants

    def read(self, folder: Path) -> Decoded:
        """The digits of ``digits_binary``, each in its two parts."""
        decoded = super().read(folder)
        seen = np.zeros((8, 8), np.uint8)
        for top, left in ((4, 0), (0, 0), (4, 4))[: self.quadrants]:
            seen[top : top + 4, left : left + 4] = 1
        parts = {}
        for split, part in decoded.parts.items():
            assert isinstance(part.x, np.ndarray)
            x = (part.x >= THRESHOLD).astype(np.uint8)
            parts[split] = replace(part, x=x * (1 - seen), given=x * seen)
        spec = DataSpec((1, 8, 8), "binary", num_classes=10, given=DataSpec((1, 8, 8), "binary"))
        return Decoded(spec, parts, remarks={"quadrants": self.quadrants})
