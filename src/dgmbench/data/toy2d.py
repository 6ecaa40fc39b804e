"""Densities in the plane that are easy to look at; every point carries the component that it was drawn from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest

Sampler = Callable[[RandomState, int], tuple[np.ndarray, np.ndarray]]


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def moons(rng: RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two interleaved half circles of radius 2, with noise 0.2."""
    y = rng.randint(2, size=n)
    angle = np.pi * (rng.uniform(size=n) + y)
    x = _polar(np.full(n, 2.0), angle) + np.where(y[:, None] == 0, [-1.0, -0.5], [1.0, 0.5])
    return x + 0.2 * rng.normal(size=(n, 2)), y


def rings(rng: RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Four concentric circles of radius 0.75, 1.5, 2.25 and 3, with noise 0.08."""
    y = rng.randint(4, size=n)
    x = _polar(0.75 * (y + 1), rng.uniform(0, 2 * np.pi, size=n))
    return x + 0.08 * rng.normal(size=(n, 2)), y


def eight_gaussians(rng: RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight Gaussians of standard deviation 0.35 on a circle of radius 2.8."""
    y = rng.randint(8, size=n)
    return _polar(np.full(n, 2.8), y * np.pi / 4) + 0.35 * rng.normal(size=(n, 2)), y


def checkerboard(rng: RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform on the eight dark 2x2 squares of a board on [-4, 4]^2: density 1/32 there and 0 elsewhere."""
    y = rng.randint(8, size=n)
    row, column = y // 2, 2 * (y % 2) + (y // 2) % 2
    return 2 * (np.stack([column, row], axis=1) + rng.uniform(size=(n, 2))) - 4, y


def pinwheel(rng: RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Five Gaussian arms, bent by an angle that grows with the radius."""
    y = rng.randint(5, size=n)
    along, across = 1 + 0.3 * rng.normal(size=n), 0.1 * rng.normal(size=n)
    angle = y * 2 * np.pi / 5 + 0.25 * np.exp(along)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2 * np.stack([along * cos - across * sin, along * sin + across * cos], axis=1), y


def spirals(rng: RandomState, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two spiral arms of one and a half turns out to radius 3, with noise 0.1."""
    y = rng.randint(2, size=n)
    angle = 3 * np.pi * np.sqrt(rng.uniform(size=n))
    return _polar(angle / np.pi, angle + np.pi * y) + 0.1 * rng.normal(size=(n, 2)), y


DENSITIES: dict[str, tuple[Sampler, int]] = {
    "moons": (moons, 2),
    "rings": (rings, 4),
    "eight_gaussians": (eight_gaussians, 8),
    "checkerboard": (checkerboard, 8),
    "pinwheel": (pinwheel, 5),
    "spirals": (spirals, 2),
}


class Toy2d(Reader):
    """Independent draws of one ``density`` for each split; ``seed`` is the data's own, not the run's."""

    prepared = False

    def __init__(
        self,
        *,
        density: str = "moons",
        train: int = 10_000,
        valid: int = 2_000,
        test: int = 2_000,
        seed: int = 0,
    ) -> None:
        if density not in DENSITIES:
            raise UserError(nearest(density, DENSITIES, what="toy density"))
        self.sizes = {"train": train, "valid": valid, "test": test}
        for split, size in self.sizes.items():
            if not isinstance(size, int) or size < 1:
                raise UserError(f"data.{split} is {size!r}; give a number of points of at least 1.")
        self.density, self.seed = density, seed

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        sampler, components = DENSITIES[self.density]
        parts = {}
        for split in SPLITS:
            rng = RandomState(keyed_seed("toy2d", self.density, split, self.seed) % 2**32)
            x, y = sampler(rng, self.sizes[split])
            origin = f"toy2d {self.density} {split} seed {self.seed}"
            parts[split] = Part(x.astype(np.float32), y.astype(np.int64), origin, np.arange(len(x)))
        return Decoded(DataSpec((2,), "real", num_classes=components), parts)
