"""Rendered shapes in pairs: a picture of a shape, and the same shape in another pose.

The identity is the shape and its scale, the pose its angle and place. A pose is told by joints, as a person's is: three
points on the shape (an end, a corner, another end) whose places follow from the factors exactly, each as a heat map.
"""

from pathlib import Path

import numpy as np

from dgmbench.data.reader import Decoded, Part, split_at_random
from dgmbench.data.shapes import FACTORS, SIZES, Shapes, render
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

# Joints of each outline in units of the shape's size: the one in the middle first.
JOINTS = {
    "ell": [(-0.55, -0.55), (0.75, -0.55), (-0.55, 0.75)],
    "dart": [(0.0, 0.9), (0.6, -0.6), (-0.6, -0.6)],
    "flag": [(-0.6, 0.45), (-0.6, -0.85), (0.75, 0.45)],
}
BONES = ((0, 1), (0, 2))
SIDE = 16
SIGMA = 1.0  # of a heat map, pixels
FRONT = (0, 2.5, 2.5)  # angle and place of the frontal view: upright, in the middle of the picture


class ShapesPoses(Shapes):
    """``Shapes`` in pairs: x (1, 16, 16) is the target, given are seven planes (7, 16, 16) of numbers from 0 to 1.

    The planes are the source's picture, a heat map of each of its three joints, and those of the target's joints. The
    source has the target's shape and scale in another pose; it is drawn by ``draw`` from the target's own split, so no
    picture of one split is seen in another. With ``frontal``, every picture of another angle than 0 is the source of
    the frontal view of its shape and scale, in the middle of the picture; ``y`` numbers these nine.
    """

    def __init__(
        self,
        *,
        frontal: bool = False,
        draw: int = 0,
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        super().__init__(valid=valid, test=test, split_seed=split_seed)
        self.frontal, self.draw = frontal, draw

    def read(self, folder: Path) -> Decoded:
        """Render, split and pair."""
        every = np.stack(np.unravel_index(np.arange(np.prod(list(FACTORS.values()))), tuple(FACTORS.values())), axis=1)
        if self.frontal:
            every = every[every[:, 2] != FRONT[0]]
        splits = split_at_random(len(every), seed=self.split_seed, valid=self.valid, test=self.test)
        parts = {name: self._paired(name, every[index], index) for name, index in splits.items()}
        factors = tuple(FACTORS.items())[: 2 if self.frontal else 5]
        given = DataSpec((1 + 2 * len(JOINTS["ell"]), SIDE, SIDE), "real", bones=BONES)
        classes = len(JOINTS) * len(SIZES) if self.frontal else None
        spec = DataSpec((1, SIDE, SIDE), "binary", num_classes=classes, factors=factors, given=given)
        return Decoded(spec, parts, remarks={"frontal": self.frontal, "draw": self.draw})

    def _paired(self, split: str, values: np.ndarray, index: np.ndarray) -> Part:
        """A split whose pictures have these factor values (n, 5)."""
        if self.frontal:
            sources, targets = values, np.concatenate([values[:, :2], np.tile(FRONT, (len(values), 1))], axis=1)
            y = values[:, 0] * len(SIZES) + values[:, 1]
        else:
            sources, targets = values[others(values[:, :2], self.draw, split)], values
            y = np.ravel_multi_index(tuple(values.T), tuple(FACTORS.values()))
        poses = [heat_maps(joints(each), SIDE) for each in (sources, targets)]
        given = np.concatenate([render(sources).astype(np.float32), *poses], axis=1)
        return Part(render(targets), y.astype(np.int64), "dgmbench.data.shapes", index, given)


def others(identity: np.ndarray, draw: int, split: str) -> np.ndarray:
    """For each row of identities (n, k) the position of another row with the same one, drawn uniformly.

    ``RandomState`` because its stream is frozen across numpy versions, as a recorded choice must be.
    """
    random, chosen = np.random.RandomState(draw), np.empty(len(identity), np.int64)
    for one in np.unique(identity, axis=0):
        own = np.flatnonzero((identity == one).all(axis=1))
        if len(own) < 2:
            raise UserError(
                f"The {split} split has a shape in one pose alone, which makes no pair; leave it more examples by "
                "data.valid and data.test."
            )
        step = random.randint(1, len(own), len(own))
        chosen[own] = own[(np.arange(len(own)) + step) % len(own)]
    return chosen


def joints(factors: np.ndarray) -> np.ndarray:
    """Where the joints (n, 3, 2) are, across and down in pixels from the corner, of factor values (n, 5)."""
    own = np.array(list(JOINTS.values()))[factors[:, 0].astype(int)]
    own = own * np.array(SIZES)[factors[:, 1].astype(int), None, None]
    turn = 2 * np.pi * factors[:, 2] / FACTORS["angle"]
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    across, down = cos * own[..., 0] - sin * own[..., 1], sin * own[..., 0] + cos * own[..., 1]
    return np.stack([across, down], axis=2) + 5.5 + factors[:, None, 3:]


def heat_maps(points: np.ndarray, side: int) -> np.ndarray:
    """exp(-d^2 / 2 sigma^2) at the middle of every pixel, d from each point (n, k, 2): float32 (n, k, side, side)."""
    middle = np.arange(side) + 0.5
    across, down = (np.square(middle - points[..., axis, None]) for axis in (0, 1))
    return np.exp(-(down[..., :, None] + across[..., None, :]) / (2 * SIGMA**2)).astype(np.float32)
