"""The digits in two domains, as they are and as their negatives, unpaired: for translators and models of domains.

Every image is in one domain alone, so no pair of an image and its counterpart can be learned from; the counterpart is
known all the same, levels - 1 - x, as is what should stay, the digit. (A turn by 180 degrees would make 9 of 6.)
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from dgmbench.data.digits import Digits
from dgmbench.data.reader import Decoded, Part

FACTORS = {"domain": 2, "digit": 10}


class DigitsTwoDomains(Digits):
    """``Digits``, half of each split, drawn by ``draw``, as negatives; ``y`` numbers the pair (domain, digit).

    Domain 0 are the digits, bright on dark; domain 1 the negatives.
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
        """The digits, half of them turned into their negatives."""
        decoded = super().read(folder)
        assert decoded.spec.levels is not None
        parts = {
            split: half_negative(part, decoded.spec.levels, np.random.RandomState(self.draw))
            for split, part in decoded.parts.items()
        }
        spec = replace(decoded.spec, num_classes=20, factors=tuple(FACTORS.items()))
        return replace(decoded, spec=spec, parts=parts, remarks={"draw": self.draw})


def half_negative(part: Part, levels: int, random: np.random.RandomState) -> Part:
    """A part of which a random half of each digit's images, the larger if it is odd, is in domain 0, the rest in 1.

    ``RandomState`` because its stream is frozen across numpy versions, as a recorded choice must be.
    """
    assert part.y is not None
    assert isinstance(part.x, np.ndarray)
    domain = np.zeros(len(part.y), np.int64)
    for digit in range(FACTORS["digit"]):
        own = random.permutation(np.flatnonzero(part.y == digit))
        domain[own[(len(own) + 1) // 2 :]] = 1
    x = np.where(domain[:, None, None, None] == 1, levels - 1 - part.x, part.x).astype(np.uint8)
    return replace(part, x=x, y=domain * FACTORS["digit"] + part.y)
