"""Rendered shapes in the middle of the picture, turned: what it is and its angle are told, where exactly it is is not.

``Shapes`` shows every combination of its factors once, at places all over the picture. Here are many pictures of each
shape, scale and angle, larger and at most half a pixel away from the middle, so that a small network can tell all three
from pictures that it has not seen.
"""

from pathlib import Path

import numpy as np

from dgmbench.data.reader import Decoded, Reader, split_at_random, take_parts
from dgmbench.data.shapes import FACTORS, render
from dgmbench.data.spec import DataSpec
from dgmbench.errors import require

SIZES = (2.8, 3.8, 4.8)  # pixels
MIDDLE = 2.5  # the place x and y of ``Shapes`` that is the middle of the picture
APART = 0.5  # pixels, the most


class ShapesTurned(Reader):
    """Binary (1, 16, 16): ``each`` pictures of every shape, scale and angle; ``y`` numbers these combinations.

    The place is uniform within half a pixel of the middle, drawn by ``draw``; ``valid`` and ``test`` are dealt out by
    ``split_seed``.
    """

    prepared = False

    def __init__(
        self,
        *,
        each: int = 50,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        require("data", least=1, each=each)
        self.each, self.draw, self.valid, self.test, self.split_seed = each, draw, valid, test, split_seed

    def read(self, folder: Path) -> Decoded:
        """Render and split. ``RandomState`` because its stream is frozen across numpy versions."""
        factors = tuple(FACTORS.items())[:3]
        sizes = tuple(size for _, size in factors)
        y = np.repeat(np.arange(int(np.prod(sizes))), self.each)
        places = MIDDLE + np.random.RandomState(self.draw).uniform(-APART, APART, (len(y), 2))
        values = np.concatenate([np.stack(np.unravel_index(y, sizes), axis=1), places], axis=1)
        splits = split_at_random(len(y), seed=self.split_seed, valid=self.valid, test=self.test)
        parts = take_parts(render(values, sizes=SIZES), y.astype(np.int64), splits, "dgmbench.data.shapes_turned")
        return Decoded(DataSpec((1, 16, 16), "binary", factors=factors), parts, remarks={"draw": self.draw})
