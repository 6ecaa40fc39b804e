"""Digits at known places on a larger canvas: for models that look and draw through a window."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dgmbench.data.digits import THRESHOLD, Digits
from dgmbench.data.reader import Decoded
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError


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
