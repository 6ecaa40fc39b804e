"""Piano rolls of chord progressions in all major keys, whose exact probability is known.

A piece is in one of twelve keys. It begins on the first degree and goes on by ``NEXT``; every chord sounds for two
steps, as its root in the bass and the triad above in one of three inversions. So notes that sound together depend on
each other, the next chord on the one before and on the key, and whether it changes on how long it has lasted.
"""

from itertools import pairwise, product
from math import log
from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

KEYS = 12
LOWEST, NOTES = 21, 88  # of a piano: MIDI numbers
BASS, MIDDLE = 36, 55  # octaves that the root and the lowest note of the triad lie in begin here
STEPS = 2  # that a chord lasts
DEGREES = ((0, 4), (2, 3), (4, 3), (5, 4), (7, 4), (9, 3))  # I, ii, iii, IV, V, vi: semitones of the root, the third
NEXT = np.array(
    [
        [0.0, 0.2, 0.0, 0.3, 0.3, 0.2],
        [0.0, 0.0, 0.0, 0.2, 0.8, 0.0],
        [0.0, 0.0, 0.0, 0.4, 0.0, 0.6],
        [0.3, 0.2, 0.1, 0.0, 0.4, 0.0],
        [0.6, 0.0, 0.0, 0.1, 0.0, 0.3],
        [0.0, 0.4, 0.2, 0.4, 0.0, 0.0],
    ]
)


class Chords(Reader):
    """Binary (length, 88), with lengths from half of it on: which keys of a piano sound. Independent draws a split.

    ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(
        self, *, length: int = 32, train: int = 1000, valid: int = 100, test: int = 200, seed: int = 0
    ) -> None:
        require("data", least=2, train=train, valid=valid, test=test, length=length)
        if length % (2 * STEPS):
            raise UserError(f"data.length={length} must be a multiple of {2 * STEPS}: chords last {STEPS} steps.")
        self.length, self.seed = length, seed
        self.sizes = {"train": train, "valid": valid, "test": test}

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        parts = {}
        for split in SPLITS:
            n, rng = self.sizes[split], RandomState(keyed_seed("chords", split, self.seed) % 2**32)
            length = STEPS * rng.randint(self.length // (2 * STEPS), self.length // STEPS + 1, n)
            x = np.zeros((n, self.length, NOTES), np.uint8)
            for row, steps in zip(x, length, strict=True):
                row[:steps] = piece(int(steps) // STEPS, rng)
            parts[split] = Part(
                x, None, f"chords {split} seed {self.seed}", np.arange(n), None, length.astype(np.int64)
            )
        spec = DataSpec((self.length, NOTES), "binary", lengths=True, lowest_note=LOWEST)
        return Decoded(spec, parts)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x | its length) of rolls (n, length, 88); the length is that up to the last step with a note."""
        return np.array(
            [log_prob(roll[: 1 + np.flatnonzero(roll.any(1))[-1]]) if roll.any() else -np.inf for roll in x]
        )


def chord(key: int, degree: int, inversion: int) -> np.ndarray:
    """The notes (88,) uint8 of one chord."""
    root, third = DEGREES[degree]
    tones = np.array([0, third, 7])[[inversion, (inversion + 1) % 3, (inversion + 2) % 3]] + key + root
    lowest = MIDDLE + (tones[0] - MIDDLE) % 12
    above = lowest + (tones - tones[0]) % 12
    notes = np.zeros(NOTES, np.uint8)
    notes[[BASS + (key + root) % 12 - LOWEST, *(above - LOWEST)]] = 1
    return notes


def piece(chords: int, rng: RandomState) -> np.ndarray:
    """A piece of so many chords, (steps, 88) uint8."""
    key, degree, found = rng.randint(KEYS), 0, []
    for number in range(chords):
        degree = rng.choice(len(DEGREES), p=NEXT[degree]) if number else 0
        found.append(chord(key, degree, rng.randint(3)))
    return np.repeat(found, STEPS, axis=0)


READINGS: dict[bytes, list[tuple[int, int]]] = {}
"""The keys and degrees of every chord, by its notes."""
for _key, _degree, _inversion in product(range(KEYS), range(len(DEGREES)), range(3)):
    READINGS.setdefault(chord(_key, _degree, _inversion).tobytes(), []).append((_key, _degree))


def log_prob(roll: np.ndarray) -> float:
    """log p of one roll (steps, 88) given its number of steps, the key summed out; -inf if none plays it."""
    if len(roll) % STEPS or (roll[::STEPS] != roll[1::STEPS]).any():
        return -np.inf
    readings = [dict(READINGS.get(notes.astype(np.uint8).tobytes(), [])) for notes in roll[::STEPS]]
    totals = []
    for key in range(KEYS):
        degrees = [reading.get(key) for reading in readings]
        if degrees[0] != 0 or None in degrees:
            continue
        steps = [NEXT[a, b] for a, b in pairwise(degrees)]
        if min(steps, default=1.0) > 0:
            totals.append(float(np.log(steps).sum()))
    own = np.logaddexp.reduce(totals) if totals else -np.inf
    return float(own - log(KEYS) - len(readings) * log(3))
