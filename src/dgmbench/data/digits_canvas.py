"""Digits on a larger canvas: at known places, of known sizes, and half hidden behind something."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dgmbench.data.digits import THRESHOLD, Digits
from dgmbench.data.reader import Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

GREY = 255
LEAST_HIDDEN, MOST_HIDDEN = 1 / 10, 2 / 3


def resized(digits: np.ndarray, side: int) -> np.ndarray:
    """8x8 images (n, 8, 8) with values 0 ... 16 as (n, side, side) with values 0 ... 255.

    Every pixel is a mean of those around its place, by a triangle that is as wide as the larger of the two pixels:
    bilinear interpolation where the image grows. In integers, hence the same bytes on every machine.
    """
    new, old = 2 * np.arange(side) + 1, 2 * np.arange(8) + 1
    weights = np.maximum(0, 2 * max(side, 8) - np.abs(old * side - 8 * new[:, None]))
    total, scale = weights.sum(1), 16 * np.outer(weights.sum(1), weights.sum(1))
    assert (total > 0).all()
    values = weights @ digits.astype(np.int64) @ weights.T
    return ((2 * GREY * values + scale) // (2 * scale)).astype(np.uint8)


class DigitsCanvas(Digits):
    """The 8x8 digits, binarised, each at one place of an empty canvas of ``side`` x ``side``.

    Places are drawn by ``draw``, uniform over all where the digit fits. ``y`` numbers the combination of the factors
    digit, row and column (of the digit's upper left corner), so what a window should follow is known.
    """

    def __init__(
        self, *, side: int = 16, draw: int = 0, valid: int | float = 0.1, test: int | float = 0.2, split_seed: int = 0
    ) -> None:
        super().__init__(size=8, valid=valid, test=test, split_seed=split_seed)
        if not 9 <= side <= 128:
            raise UserError(f"data.side={side} must be 9 to 128: the digits have 8 pixels, and need room to move.")
        self.side, self.draw = side, draw

    def read(self, folder: Path) -> Decoded:
        """The digits of ``digits_binary``, each at its place."""
        decoded = super().read(folder)
        places = self.side - 7
        parts = {}
        for number, (split, part) in enumerate(decoded.parts.items()):
            assert isinstance(part.x, np.ndarray)
            assert part.y is not None
            corner = np.random.default_rng([self.draw, number]).integers(places, size=(len(part.x), 2))
            x = np.zeros((len(part.x), 1, self.side, self.side), np.uint8)
            for canvas, digit, (row, column) in zip(x, part.x, corner, strict=True):
                canvas[:, row : row + 8, column : column + 8] = digit >= THRESHOLD
            parts[split] = replace(part, x=x, y=(part.y * places + corner[:, 0]) * places + corner[:, 1])
        factors = (("digit", 10), ("row", places), ("column", places))
        spec = DataSpec((1, self.side, self.side), "binary", factors=factors)
        return Decoded(spec, parts, remarks={"draw": self.draw})


class DigitsCanvasSizes(Digits):
    """Each digit in grey once in every one of ``sizes`` pixels, at a place of its own on a noisy canvas.

    The canvas has ``noise`` times |N(0, 1)| added to all pixels, clipped. ``y`` numbers the combination of the factors
    digit, size (pixels of a side, counted from 0), row and column (of the upper left corner): what is there and the box
    around it.
    """

    def __init__(
        self,
        *,
        side: int = 32,
        sizes: Sequence[int] = (5, 16),
        noise: int = 60,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__(size=8, valid=valid, test=test, split_seed=split_seed)
        sizes = tuple(sizes)
        if not sizes or not all(4 <= size <= side - 2 for size in sizes) or len(set(sizes)) < len(sizes):
            raise UserError(
                f"data.sizes={list(sizes)} must be different numbers from 4 to data.side - 2, which is {side - 2}."
            )
        if not 16 <= side <= 128 or not 0 <= noise <= GREY:
            raise UserError(f"data.side={side} must be 16 to 128, and data.noise={noise} from 0 to {GREY}.")
        self.side, self.sizes, self.noise, self.draw = side, sizes, noise, draw

    def read(self, folder: Path) -> Decoded:
        """The digits of ``digits``, each as often as there are sizes, one size after the other."""
        decoded, parts = super().read(folder), {}
        places = self.side - min(self.sizes) + 1
        for place, (split, part) in enumerate(decoded.parts.items()):
            assert isinstance(part.x, np.ndarray)
            assert part.y is not None
            random = np.random.default_rng([self.draw, place])
            every, labels = [], []
            for size in self.sizes:
                x = np.zeros((len(part.x), self.side, self.side), np.int64)
                corner = random.integers(self.side - size + 1, size=(len(x), 2))
                for canvas, digit, (row, column) in zip(x, resized(part.x[:, 0], size), corner, strict=True):
                    canvas[row : row + size, column : column + size] = digit
                x += np.abs(self.noise * random.standard_normal(x.shape)).round().astype(np.int64)
                every.append(x.clip(0, GREY).astype(np.uint8)[:, None])
                number = part.y * (max(self.sizes) + 1) + size
                labels.append(places * (places * number + corner[:, 0]) + corner[:, 1])
            index = np.tile(part.index, len(self.sizes))
            parts[split] = Part(np.concatenate(every), np.concatenate(labels), part.origin, index)
        factors = (("digit", 10), ("size", max(self.sizes) + 1), ("row", places), ("column", places))
        spec = DataSpec((1, self.side, self.side), "discrete", levels=GREY + 1, factors=factors)
        return Decoded(spec, parts, remarks={"draw": self.draw})


class DigitsCanvasOccluded(Digits):
    """Digits behind an opaque tile, which carries another digit: what is given, and what is behind.

    x (3, side, side) is the digit alone in grey, its mask, and the part of the mask that is hidden. Given (3, side,
    side) are the picture with the tile in front, the visible part of the mask, and zeros: nothing is known of what is
    hidden. The masks are 0 and 255. A tile hides between a tenth and two thirds of the digit's pixels.
    """

    def __init__(
        self,
        *,
        side: int = 32,
        object_side: int = 20,
        tile: int = 10,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__(size=8, valid=valid, test=test, split_seed=split_seed)
        if not (8 <= tile <= object_side <= 2 * tile and object_side <= side <= 128):
            raise UserError(
                f"data.tile={tile}, data.object_side={object_side} and data.side={side} must be from 8 to 128, in this "
                "order, and the tile at least half as wide as the object."
            )
        self.side, self.object_side, self.tile, self.draw = side, object_side, tile, draw

    def read(self, folder: Path) -> Decoded:
        """The digits of ``digits``, each behind another one of its split."""
        decoded, parts = super().read(folder), {}
        for number, (split, part) in enumerate(decoded.parts.items()):
            assert isinstance(part.x, np.ndarray)
            random = np.random.default_rng([self.draw, number])
            large, n = resized(part.x[:, 0], self.object_side), len(part.x)
            tiles = np.full((n, self.tile, self.tile), 96, np.uint8)
            edge = (self.tile - 8) // 2
            tiles[:, edge : edge + 8, edge : edge + 8] += (9 * part.x[random.permutation(n), 0]).astype(np.uint8)
            x, seen = (np.zeros((n, 3, self.side, self.side), np.uint8) for _ in range(2))
            for row in range(n):
                self._placed(x[row], seen[row], large[row], tiles[row], random)
            parts[split] = replace(part, x=x, given=seen)
        shape = (3, self.side, self.side)
        masked = DataSpec(shape, "discrete", levels=GREY + 1)
        spec = replace(masked, num_classes=10, given=masked)
        return Decoded(spec, parts, remarks={"draw": self.draw})

    def _placed(
        self, x: np.ndarray, given: np.ndarray, digit: np.ndarray, tile: np.ndarray, random: np.random.Generator
    ) -> None:
        """Fill one example and what is given of it."""
        row, column = random.integers(self.side - self.object_side + 1, size=2)
        mask = np.zeros((self.side, self.side), bool)
        mask[row : row + self.object_side, column : column + self.object_side] = digit >= (GREY + 1) // 2
        x[0][mask] = digit[digit >= (GREY + 1) // 2]
        places = np.argwhere(mask)
        while True:
            centre = places[random.integers(len(places))]
            top, left = np.clip(centre - random.integers(self.tile, size=2), 0, self.side - self.tile)
            front = np.zeros_like(mask)
            front[top : top + self.tile, left : left + self.tile] = True
            if LEAST_HIDDEN <= (mask & front).sum() / len(places) <= MOST_HIDDEN:
                break
        x[1][mask], x[2][mask & front] = GREY, GREY
        given[0], given[1][mask & ~front] = x[0], GREY
        given[0, top : top + self.tile, left : left + self.tile] = tile
