"""The digits in four colours and styles, unpaired: for translators between many domains.

Every image is in one domain alone. A picture of another domain shows the same digit in other colours, which are known:
each channel of a pixel is the grey level, its complement, nothing or the top level.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from dgmbench.data.digits import Digits
from dgmbench.data.reader import Decoded, Part

STYLES = {
    "red on black": ((1, 0, 0), (0, 0, 0)),
    "green on black": ((0, 1, 0), (0, 0, 0)),
    "blue on white": ((0, 0, 1), (1, 1, 1)),
    "black on yellow": ((0, 0, 0), (1, 1, 0)),
}
"""Ink and ground of each domain, red, green and blue, from 0 to 1."""
FACTORS = {"domain": len(STYLES), "digit": 10}


class DigitsManyDomains(Digits):
    """``Digits`` in colour (3, size, size), a quarter of each digit's images, drawn by ``draw``, in each style.

    ``y`` numbers the pair (domain, digit).
    """

    def __init__(
        self,
        *,
        size: Literal[8, 32] = 8,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__(size=size, valid=valid, test=test, split_seed=split_seed)
        self.draw = draw

    def read(self, folder: Path) -> Decoded:
        """The digits, coloured."""
        decoded = super().read(folder)
        levels = decoded.spec.levels
        assert levels is not None
        parts = {
            split: coloured_part(part, levels, np.random.RandomState(self.draw))
            for split, part in decoded.parts.items()
        }
        names = tuple(f"{digit}, {style}" for style in STYLES for digit in range(10))
        spec = replace(
            decoded.spec,
            shape=(3, self.size, self.size),
            num_classes=len(names),
            factors=tuple(FACTORS.items()),
            class_names=names,
        )
        return replace(decoded, spec=spec, parts=parts, remarks={"draw": self.draw})


def coloured(x: np.ndarray, domain: np.ndarray, levels: int) -> np.ndarray:
    """Grey images (n, 1, h, w) in the styles ``domain`` (n,), (n, 3, h, w)."""
    ink, ground = (np.array([style[k] for style in STYLES.values()])[domain][:, :, None, None] for k in (0, 1))
    return (ink * x.astype(np.int64) + ground * (levels - 1 - x.astype(np.int64))).astype(np.uint8)


def coloured_part(part: Part, levels: int, random: np.random.RandomState) -> Part:
    """A part of which a random quarter of each digit's images is in each domain, the first domains' larger by one.

    ``RandomState`` because its stream is frozen across numpy versions, as a recorded choice must be.
    """
    assert part.y is not None
    assert isinstance(part.x, np.ndarray)
    domain = np.zeros(len(part.y), np.int64)
    for digit in range(FACTORS["digit"]):
        own = random.permutation(np.flatnonzero(part.y == digit))
        domain[own] = np.arange(len(own)) % len(STYLES)
    return replace(part, x=coloured(part.x, domain, levels), y=domain * FACTORS["digit"] + part.y)
