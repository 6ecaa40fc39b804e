"""Rendered shapes whose factors of variation are known: for measures of disentanglement.

None of the shapes has a rotational symmetry and no two combinations of factors give the same picture, so all factors
can be told from x. (Squares and ellipses that are turned by all angles, as elsewhere, leave angles undetermined.)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dgmbench.data.reader import Decoded, Reader, split_at_random, take_parts
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

# Corners of each outline around (0, 0), in units of the shape's size.
OUTLINES = {
    "ell": [(-0.9, -0.9), (0.9, -0.9), (0.9, -0.2), (-0.2, -0.2), (-0.2, 0.9), (-0.9, 0.9)],
    "dart": [(0.0, 1.2), (0.8, -0.8), (0.0, -0.3), (-0.8, -0.8)],
    "flag": [(-0.8, -1.0), (-0.4, -1.0), (-0.4, 0.0), (0.9, 0.0), (0.9, 0.9), (-0.8, 0.9)],
}
FACTORS = {"shape": len(OUTLINES), "scale": 3, "angle": 8, "x": 6, "y": 6}
SIZES = (2.4, 3.0, 3.6)  # pixels
RASTER = 5  # points a pixel and axis, of which half have to be inside


class Shapes(Reader):
    """Binary (1, 16, 16): every combination of ``FACTORS`` once, 2,592 pictures; ``y`` numbers the combination.

    ``valid`` and ``test`` are dealt out by ``split_seed``.
    """

    prepared = False

    def __init__(self, *, valid: int | float = 0.1, test: int | float = 0.2, split_seed: int = 0) -> None:
        self.valid, self.test, self.split_seed = valid, test, split_seed

    def read(self, folder: Path) -> Decoded:
        """Render and split."""
        y = np.arange(int(np.prod(list(FACTORS.values()))))
        x = render(np.stack(np.unravel_index(y, tuple(FACTORS.values())), axis=1))
        splits = split_at_random(len(y), seed=self.split_seed, valid=self.valid, test=self.test)
        spec = DataSpec((1, 16, 16), "binary", factors=tuple(FACTORS.items()))
        return Decoded(spec, take_parts(x, y.astype(np.int64), splits, "dgmbench.data.shapes"))


def render(factors: np.ndarray, side: int = 16, sizes: Sequence[float] = SIZES) -> np.ndarray:
    """Pictures (n, 1, side, side) uint8 of factor values (n, 5) in the order of ``FACTORS``; places may lie between."""
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS) or (factors >= list(FACTORS.values())).any():
        raise UserError(f"Factor values {factors.shape} must be rows of {', '.join(FACTORS)}, each below its number.")
    points = (np.arange(side * RASTER) + 0.5) / RASTER
    across, down = np.meshgrid(points, points)
    pictures = np.empty((len(factors), 1, side, side), np.uint8)
    outlines = list(OUTLINES.values())
    for i, (shape, scale, angle, x, y) in enumerate(factors):
        turn, size = 2 * np.pi * angle / FACTORS["angle"], sizes[int(scale)]
        u, v = across - (5.5 + x), down - (5.5 + y)
        inside = _inside(
            np.array(outlines[int(shape)]),
            (np.cos(turn) * u + np.sin(turn) * v) / size,
            (np.cos(turn) * v - np.sin(turn) * u) / size,
        )
        share = inside.reshape(side, RASTER, side, RASTER).mean((1, 3))
        pictures[i, 0] = share >= 0.5
    return pictures


def _inside(outline: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points (u, v) lie inside a polygon: a ray to the right crosses its outline an odd number of times."""
    inside = np.zeros(u.shape, bool)
    for (u1, v1), (u2, v2) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if v1 != v2:
            crosses = (v1 > v) != (v2 > v)
            inside ^= crosses & (u < (u2 - u1) * (v - v1) / (v2 - v1) + u1)
    return inside
