"""Digits spoken by a synthesiser, a few in a row, as frames of MFCC: speech recognition without a recording.

Every utterance has a speaker of its own (pitch, tempo, length of the vocal tract), a random loudness and noise of a
random level (``formants.py``). A frame's label says which of the three sounds of which digit is heard at its middle,
so that labels are words and alignment in one: word = label // 3.
"""

from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.formants import DIGITS, RATE, STATES, draw_speaker, speak
from dgmbench.data.mfcc import COEFFICIENTS, HOP, WINDOW, cepstra, frames, with_slopes
from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import require

LOUDNESS = 0.7  # deviation of its logarithm
SNR_SPREAD = 6.0  # dB to either side


class ToneDigits(Reader):
    """Real (length, 39): 13 cepstral coefficients with first and second slopes, with lengths and labels of frames.

    Factors of a label: the word, then the state. Independent draws a split; ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(
        self,
        *,
        words: int = 3,
        snr: float = 16.0,
        train: int = 600,
        valid: int = 100,
        test: int = 200,
        seed: int = 0,
    ) -> None:
        require("data", least=1, words=words, train=train, valid=valid, test=test)
        require("data", least=-30, most=100, snr=snr)
        self.words, self.snr, self.seed = words, snr, seed
        self.sizes = {"train": train, "valid": valid, "test": test}

    def read(self, folder: Path) -> Decoded:
        """Speak the three splits."""
        found = {}
        for split in SPLITS:
            rng = RandomState(keyed_seed("tone_digits", split, self.seed) % 2**32)
            found[split] = [self.utterance(rng) for _ in range(self.sizes[split])]
        longest = max(len(x) for rows in found.values() for x, _ in rows)
        parts = {}
        for split, rows in found.items():
            x = np.zeros((len(rows), longest, 3 * COEFFICIENTS), np.float32)
            y = np.full((len(rows), longest), -1, np.int64)
            for n, (values, labels) in enumerate(rows):
                x[n, : len(values)], y[n, : len(values)] = values, labels
            length = np.array([len(values) for values, _ in rows], np.int64)
            parts[split] = Part(x, y, f"tone_digits {split} seed {self.seed}", np.arange(len(rows)), None, length)
        names = tuple(f"{word} {state + 1}" for word in DIGITS for state in range(STATES))
        spec = DataSpec(
            (longest, 3 * COEFFICIENTS), "real", num_classes=len(names), class_names=names,
            factors=(("word", len(DIGITS)), ("state", STATES)), step_labels=True, lengths=True,
            cepstra=COEFFICIENTS,
        )  # fmt: skip
        return Decoded(spec, parts, {"words": self.words, "snr": self.snr})

    def utterance(self, rng: RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Frames (t, 39) and their labels (t,) of 1 to ``words`` digits."""
        words = list(rng.randint(len(DIGITS), size=rng.randint(1, self.words + 1)))
        wave, labels = speak(words, draw_speaker(rng), rng)
        noise = 10 ** (-(self.snr + SNR_SPREAD * (2 * rng.rand() - 1)) / 20)
        wave = np.exp(LOUDNESS * rng.randn()) * (wave + noise * rng.randn(len(wave)))
        middles = round(HOP * RATE) * np.arange(frames(len(wave), RATE)) + round(WINDOW * RATE / 2)
        return with_slopes(cepstra(wave, RATE)), labels[middles]
