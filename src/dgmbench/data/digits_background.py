"""The binary digits over backgrounds of noise or stripes: for models that tell what is relevant from what is not.

A pixel is on where the digit or the background is. Which pixels are the digit's is known, for checks: the mask of a
picture is the picture of ``digits_binary`` at the same place of the same split (with the same ``split_seed``).
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from dgmbench.data.digits import THRESHOLD, Digits
from dgmbench.data.reader import Decoded
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

SIDE = 8


class DigitsBackground(Digits):
    """Binary (1, 8, 8) digits over a background of its own for each, drawn by ``draw``.

    ``noise`` turns every pixel on by itself, ``stripes`` has straight stripes of a random direction, width and phase;
    a share ``density`` of the background is on.
    """

    def __init__(
        self,
        *,
        background: Literal["noise", "stripes"] = "noise",
        density: float = 0.3,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__(size=8, valid=valid, test=test, split_seed=split_seed)
        if background not in ("noise", "stripes"):
            raise UserError(f"data.background={background} must be noise or stripes.")
        if not 0 <= density <= 1:
            raise UserError(f"data.density={density} must be from 0 to 1, the share of the background that is on.")
        self.background, self.density, self.draw = background, density, draw

    def read(self, folder: Path) -> Decoded:
        """The digits of ``digits_binary``, each with its background.

        ``RandomState`` because its stream is frozen across numpy versions, as recorded pictures must be.
        """
        decoded, random = super().read(folder), np.random.RandomState(self.draw)
        count = sum(len(part.index) for part in decoded.parts.values())
        behind = noise(count, self.density, random)
        if self.background == "stripes":
            behind = stripes(count, self.density, random)
        parts = {}
        for split, part in decoded.parts.items():  # a picture has its background whichever split it is in
            assert isinstance(part.x, np.ndarray)
            digit = (part.x >= THRESHOLD).astype(np.uint8)
            parts[split] = replace(part, x=np.maximum(digit, behind[part.index]))
        spec = DataSpec((1, SIDE, SIDE), "binary", num_classes=10)
        return Decoded(spec, parts, remarks={"background": self.background, "density": self.density, "draw": self.draw})


def noise(n: int, density: float, random: np.random.RandomState) -> np.ndarray:
    """Pictures (n, 1, 8, 8) of pixels that are on with probability ``density``, each by itself."""
    return (random.random_sample((n, 1, SIDE, SIDE)) < density).astype(np.uint8)


def stripes(n: int, density: float, random: np.random.RandomState) -> np.ndarray:
    """Pictures (n, 1, 8, 8) of parallel stripes, 3 to 6 pixels from one to the next, a share ``density`` of each on."""
    angle, period, phase = (random.random_sample((n, 1, 1)) for _ in range(3))
    down, across = np.mgrid[:SIDE, :SIDE]
    along = down * np.sin(np.pi * angle) + across * np.cos(np.pi * angle)
    return ((along / (3 + 3 * period) + phase) % 1 < density).astype(np.uint8)[:, None]
