"""Videos of balls that bounce in a box: the simulation of the recurrent temporal RBM's paper, with frames of bits.

I. Sutskever, G. E. Hinton, G. W. Taylor: The recurrent temporal restricted Boltzmann machine (2009). Balls of one mass
and radius move in straight lines, and collide with the walls and each other without loss of energy. A frame follows
from the two before it (but for what falls between pixels), and from one alone it does not.
"""

from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

BOX, RADIUS = 10.0, 1.2  # the paper's
SUBSTEPS = 4  # of a frame, so that no collision is passed over


class BouncingBalls(Reader):
    """Binary (length, side * side): frames in rows of pixels. Independent draws for each split.

    ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(
        self,
        *,
        length: int = 50,
        side: int = 15,
        balls: int = 3,
        speed: float = 1.0,
        train: int = 1000,
        valid: int = 100,
        test: int = 200,
        seed: int = 0,
    ) -> None:
        require("data", least=2, train=train, valid=valid, test=test, length=length)
        require("data", least=5, side=side)
        if not 1 <= balls <= 4:
            raise UserError(f"data.balls={balls} must be 1 to 4: more have no room to move in the box.")
        require("data", least=0, most=RADIUS * SUBSTEPS, speed=speed)
        self.length, self.side, self.balls, self.speed, self.seed = length, side, balls, speed, seed
        self.sizes = {"train": train, "valid": valid, "test": test}

    def read(self, folder: Path) -> Decoded:
        """Simulate and draw the three splits."""
        parts = {}
        for split in SPLITS:
            n, rng = self.sizes[split], RandomState(keyed_seed("bouncing_balls", split, self.seed) % 2**32)
            places, _ = simulate(n, self.balls, self.length, rng, speed=self.speed)
            x = draw_balls(places, self.side).reshape(n, self.length, -1)
            parts[split] = Part(x, None, f"bouncing_balls {split} seed {self.seed}", np.arange(n))
        spec = DataSpec((self.length, self.side**2), "binary", frame=(self.side, self.side))
        return Decoded(spec, parts, {"balls": self.balls, "speed": self.speed})


def simulate(n: int, balls: int, length: int, rng: RandomState, *, speed: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Places and velocities (n, length, balls, 2) of n videos; velocities are ways in a frame."""
    places = np.empty((n, balls, 2))
    for ball in range(balls):
        left = np.arange(n)
        while len(left):  # until no two balls of a video overlap
            places[left, ball] = RADIUS + (BOX - 2 * RADIUS) * rng.rand(len(left), 2)
            apart = np.linalg.norm(places[left, ball, None] - places[left, :ball], axis=2)
            left = left[(apart < 2 * RADIUS).any(1)]
    angle = 2 * np.pi * rng.rand(n, balls)
    speeds = speed * np.stack([np.cos(angle), np.sin(angle)], 2)
    found = [(places.copy(), speeds.copy())]
    for _ in range(length - 1):
        for _ in range(SUBSTEPS):
            places += speeds / SUBSTEPS
            speeds = np.where(places < RADIUS, abs(speeds), np.where(places > BOX - RADIUS, -abs(speeds), speeds))
            for i in range(balls):
                for j in range(i):
                    collide(places[:, i], places[:, j], speeds[:, i], speeds[:, j])
        found.append((places.copy(), speeds.copy()))
    both = np.array(found)
    return both[:, 0].swapaxes(0, 1), both[:, 1].swapaxes(0, 1)


def collide(place: np.ndarray, other: np.ndarray, speed: np.ndarray, others: np.ndarray) -> None:
    """Exchange, in place, the velocities along the line between two balls (n, 2) where these touch and approach."""
    between = place - other
    distance = np.linalg.norm(between, axis=1, keepdims=True)
    line = between / np.maximum(distance, 1e-9)
    along = ((speed - others) * line).sum(1, keepdims=True)
    change = np.where((distance < 2 * RADIUS) & (along < 0), along, 0.0) * line
    speed -= change
    others += change


def draw_balls(places: np.ndarray, side: int) -> np.ndarray:
    """Frames (n, length, side, side) uint8: 1 where a pixel's middle lies in a ball."""
    middle = (np.arange(side) + 0.5) * BOX / side
    frames = np.zeros((*places.shape[:2], side, side), np.uint8)
    for ball in range(places.shape[2]):
        across, down = ((middle - places[:, :, ball, axis, None]) ** 2 for axis in (0, 1))
        frames |= down[..., None] + across[:, :, None] < RADIUS**2
    return frames
