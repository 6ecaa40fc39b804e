"""Short synthesised tones: four waveforms at random pitch, phase and loudness, as 8-bit mu-law codes.

A tone is the sum of the harmonics of its waveform below half the sampling rate (additive synthesis, so nothing folds
back from above), scaled to a random amplitude, with a little Gaussian noise.
"""

from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.audio import LEVELS, mu_law_encode
from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import require

WAVEFORMS = ("sine", "triangle", "square", "sawtooth")
RATE = 4000  # Hz
LOWEST, HIGHEST = 100.0, 400.0  # Hz; the logarithm of the pitch is uniform between them
QUIETEST, LOUDEST = 0.3, 0.8  # the ripples of a square wave reach 1.18 times its amplitude
NOISE = 0.005


def harmonics(waveform: str, most: int) -> np.ndarray:
    """The Fourier sine coefficients of harmonics 1 ... most of a waveform of unit amplitude."""
    k = np.arange(1, most + 1)
    odd = k % 2 == 1
    if waveform == "sine":
        return (k == 1).astype(float)
    if waveform == "triangle":
        return np.where(odd, 8 / np.pi**2 * np.sin(np.pi * k / 2) / k**2, 0.0)
    if waveform == "square":
        return np.where(odd, 4 / (np.pi * k), 0.0)
    return 2 / np.pi * np.where(odd, 1.0, -1.0) / k


def synthesise(rng: RandomState, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` tones (n, length) in [-1, 1], and which waveform each has (n,)."""
    y = rng.randint(len(WAVEFORMS), size=n)
    pitch = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST), size=n))
    start = rng.uniform(size=n)
    amplitude = rng.uniform(QUIETEST, LOUDEST, size=n)
    most = int(RATE / 2 / LOWEST)
    coefficients = np.stack([harmonics(waveform, most) for waveform in WAVEFORMS])[y]
    cycles = start[:, None] + pitch[:, None] * np.arange(length) / RATE
    tones = np.zeros((n, length))
    for k in range(1, most + 1):
        audible = (k * pitch < RATE / 2)[:, None]
        tones += audible * coefficients[:, k - 1 : k] * np.sin(2 * np.pi * k * cycles)
    return np.clip(amplitude[:, None] * tones + NOISE * rng.normal(size=(n, length)), -1.0, 1.0), y


class AudioSmall(Reader):
    """Discrete (length,) mu-law codes with 256 levels at 4 kHz; the class is the waveform.

    Independent draws for each split; ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(
        self, *, length: int = 256, train: int = 2_000, valid: int = 500, test: int = 500, seed: int = 0
    ) -> None:
        require("data", least=2, length=length, train=train, valid=valid, test=test)
        self.length, self.sizes, self.seed = length, {"train": train, "valid": valid, "test": test}, seed

    def read(self, folder: Path) -> Decoded:
        """Synthesise the three splits."""
        parts = {}
        for split in SPLITS:
            rng = RandomState(keyed_seed("audio_small", split, self.seed) % 2**32)
            tones, y = synthesise(rng, self.sizes[split], self.length)
            origin = f"audio_small {split} seed {self.seed}"
            parts[split] = Part(mu_law_encode(tones), y.astype(np.int64), origin, np.arange(len(y)))
        spec = DataSpec((self.length,), "discrete", LEVELS, len(WAVEFORMS), sampling_rate=RATE)
        return Decoded(spec, parts, {"waveforms": list(WAVEFORMS)})
