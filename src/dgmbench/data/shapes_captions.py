"""Rendered coloured shapes with English captions: for models of pictures given a text.

A caption says all four factors (shape, colour, size, place) in one of several wordings; what it leaves open, the exact
place, the shade and the grey behind, is what pictures of one caption differ in. The renderer is known, so that the
factors of any picture can be read off: those of the sprite that explains most of its variance.
"""

from itertools import product
from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import build_vocabulary, encode_sentences
from dgmbench.errors import require

SIDE = 32
RASTER = 4  # points a pixel and axis
RADII = {"small": 4.0, "large": 7.0}  # pixels
COLOURS = {
    "red": (225, 45, 40), "green": (45, 200, 70), "blue": (60, 95, 240), "yellow": (240, 220, 50),
    "purple": (170, 60, 205),
}  # fmt: skip
PLACES = {
    "middle": (16, 16), "upper left": (9, 9), "upper right": (9, 23), "lower left": (23, 9), "lower right": (23, 23),
}  # fmt: skip
JITTER = (-1, 0, 1)  # pixels, down and across
SHADES, GREYS = (0.75, 1.0), (20, 80)  # of the colour, and behind the shape

# What stands for each value of a factor, and how sentences are built.
WORDS: dict[str, list[tuple[str, ...]]] = {
    "shape": [("circle", "disc"), ("square", "box"), ("triangle",), ("cross", "plus")],
    "colour": [("red",), ("green",), ("blue",), ("yellow",), ("purple", "violet")],
    "size": [("small", "little"), ("large", "big")],
    "place": [
        ("in the middle", "in the centre"),
        ("in the upper left", "at the top left"),
        ("in the upper right", "at the top right"),
        ("in the lower left", "at the bottom left"),
        ("in the lower right", "at the bottom right"),
    ],
}
SENTENCES = (
    "a {size} {colour} {shape} {place}",
    "there is a {size} {colour} {shape} {place}",
    "{place} there is a {colour} {shape} and it is {size}",
    "a {size} {shape} {place} and it is {colour}",
)
FACTORS = {name: len(values) for name, values in WORDS.items()}
LENGTH = 16  # places for a caption's words and its end
VOCABULARY = build_vocabulary(
    [
        *(sentence.format(**dict.fromkeys(WORDS, "")).split() for sentence in SENTENCES),
        *(words.split() for values in WORDS.values() for value in values for words in value),
    ]
)


class ShapesCaptions(Reader):
    """RGB (3, 32, 32) with 256 levels, given a caption, tokens (16,). ``y`` numbers the combination of factors.

    Independent draws for each split; ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(self, *, train: int = 2000, valid: int = 200, test: int = 400, seed: int = 0) -> None:
        require("data", least=2, train=train, valid=valid, test=test)
        self.sizes, self.seed = {"train": train, "valid": valid, "test": test}, seed

    def read(self, folder: Path) -> Decoded:
        """Draw factors, pictures and captions of the three splits."""
        parts = {}
        for split in SPLITS:
            n, random = self.sizes[split], RandomState(keyed_seed("shapes_captions", split, self.seed) % 2**32)
            y = random.randint(int(np.prod(list(FACTORS.values()))), size=n)
            factors = np.stack(np.unravel_index(y, tuple(FACTORS.values())), 1)
            captions = encode_sentences([caption(row, random).split() for row in factors], VOCABULARY, LENGTH)
            x = render(factors, random)
            parts[split] = Part(
                x, y.astype(np.int64), f"shapes_captions {split} seed {self.seed}", np.arange(n), captions
            )
        given = DataSpec((LENGTH,), "tokens", len(VOCABULARY), end=0, vocabulary=VOCABULARY)
        spec = DataSpec((3, SIDE, SIDE), "discrete", levels=256, factors=tuple(FACTORS.items()), given=given)
        return Decoded(spec, parts)

    def factors_of(self, x: np.ndarray) -> np.ndarray:
        """The factors (n, 4) of the sprite that explains most of the variance of each picture x (n, 3, 32, 32)."""
        return read_off(x)


def caption(factors: np.ndarray, random: RandomState) -> str:
    """One of the sentences that say these factors (4,)."""
    said = {}
    for (name, values), value in zip(WORDS.items(), factors, strict=True):
        said[name] = values[value][random.randint(len(values[value]))]
    return SENTENCES[random.randint(len(SENTENCES))].format(**said)


def render(factors: np.ndarray, random: RandomState) -> np.ndarray:
    """Pictures (n, 3, 32, 32) uint8 of factors (n, 4), with a place, a shade and a grey of their own."""
    n = len(factors)
    jitter = random.randint(len(JITTER) ** 2, size=n)
    shade, grey = random.uniform(*SHADES, size=n), random.uniform(*GREYS, size=n)
    colours, every = np.array(list(COLOURS.values()), float), sprites()
    share = every[factors[:, 0], factors[:, 2], factors[:, 3], jitter][:, None]  # (n, 1, h, w)
    front = (colours[factors[:, 1]] * shade[:, None])[:, :, None, None]
    back = grey[:, None, None, None]
    return np.rint(back + share * (front - back)).astype(np.uint8)


def sprites() -> np.ndarray:
    """The share of each pixel that a shape covers: (shapes, sizes, places, jitters, 32, 32)."""
    points = (np.arange(SIDE * RASTER) + 0.5) / RASTER
    across, down = np.meshgrid(points, points)
    found = []
    for shape, radius, (row, column), move in product(
        range(len(WORDS["shape"])), RADII.values(), PLACES.values(), product(JITTER, JITTER)
    ):
        inside = covered(shape, (down - row - move[0]) / radius, (across - column - move[1]) / radius)
        found.append(inside.reshape(SIDE, RASTER, SIDE, RASTER).mean((1, 3)))
    return np.array(found).reshape(len(WORDS["shape"]), len(RADII), len(PLACES), len(JITTER) ** 2, SIDE, SIDE)


def covered(shape: int, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Which points (v down, u across) lie in a shape of size 1 around (0, 0): circle, square, triangle or cross."""
    if shape == 0:
        return u**2 + v**2 < 1
    if shape == 1:
        return np.maximum(abs(u), abs(v)) < 0.9
    if shape == 2:
        return (abs(u) < (v + 1) / 1.8) & (v < 0.8)
    return (np.minimum(abs(u), abs(v)) < 0.33) & (np.maximum(abs(u), abs(v)) < 1)


def read_off(x: np.ndarray) -> np.ndarray:
    """The factors (n, 4) of pictures x (n, 3, 32, 32), those of the sprite s with the best x = back + s (front - back).

    Front and back are fitted by least squares in each channel. The colour is the one whose direction is nearest to that
    of front, which a shade does not change.
    """
    every = sprites()
    kinds = every.reshape(-1, SIDE * SIDE)
    masks = kinds - kinds.mean(1, keepdims=True)
    power = (masks**2).sum(1)
    pixels = x.reshape(len(x), 3, -1).astype(float)
    covariance = pixels @ masks.T  # (n, 3, kinds)
    best = (covariance**2 / power).sum(1).argmax(1)
    slope = np.take_along_axis(covariance, best[:, None, None], 2)[:, :, 0] / power[best, None]  # front - back
    back = pixels.mean(2) - slope * kinds.mean(1)[best, None]
    front = back + slope
    colours = np.array(list(COLOURS.values()), float)
    alike = front @ (colours / np.linalg.norm(colours, axis=1, keepdims=True)).T
    shape, size, place, _ = np.unravel_index(best, every.shape[:4])
    return np.stack([shape, alike.argmax(1), size, place], 1)
