"""The Free Spoken Digit Dataset for recognisers of speech: whole recordings as frames of MFCC, each one a word.

What is said is known, when is not: the labels of frames divide a recording evenly among the states of its word, the
flat start of speech recognition, which a model may align anew. Recordings and splits are those of ``fsdd.py``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data.formants import DIGITS
from dgmbench.data.fsdd import RATE, Recording, recordings_of, require_recordings, source_of, split_of
from dgmbench.data.mfcc import COEFFICIENTS, cepstra, frames, with_slopes
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require


class FsddWords(Reader):
    """Real (length, 39): 13 cepstral coefficients with first and second slopes, with lengths and labels of frames.

    Factors of a label: the word, then the state. The digits of a speaker follow each other. The files lie in the folder
    of ``fsdd``, beside that of this set.
    """

    def __init__(self, *, states: int = 3, verify: bool = True) -> None:
        require("data", least=1, states=states)
        self.states, self.verify = states, verify

    def source(self, folder: Path) -> Mapping[str, Any]:
        """The same as of ``fsdd``."""
        return source_of(folder.with_name("fsdd"), verify=self.verify)

    def fetch(self, folder: Path) -> None:
        """Make sure of the recordings in one of their forms."""
        require_recordings(folder.with_name("fsdd"), folder.name)

    def read(self, folder: Path) -> Decoded:
        """Analyse every recording."""
        recordings = recordings_of(folder.with_name("fsdd"), verify=self.verify)
        longest = max(frames(len(r.samples), RATE) for r in recordings)
        rows: dict[str, list[tuple[int, Recording]]] = {split: [] for split in SPLITS}
        for place, r in sorted(
            enumerate(recordings), key=lambda each: (each[1].number, each[1].speaker, each[1].digit)
        ):
            rows[split_of(r)].append((place, r))
        parts = {}
        for split, own in rows.items():
            if not own:
                raise UserError(f"There are no recordings of the {split} set in {folder.with_name('fsdd')}.")
            x = np.zeros((len(own), longest, 3 * COEFFICIENTS), np.float32)
            y = np.full((len(own), longest), -1, np.int64)
            length = np.array([frames(len(r.samples), RATE) for _, r in own], np.int64)
            for n, (_, r) in enumerate(own):
                x[n, : length[n]], y[n, : length[n]] = self.utterance(r)
            index = np.array([place for place, _ in own], np.int64)
            parts[split] = Part(x, y, f"{split} recordings as frames", index, None, length)
        names = tuple(f"{word} {state + 1}" for word in DIGITS for state in range(self.states))
        spec = DataSpec(
            (longest, 3 * COEFFICIENTS), "real", num_classes=len(names), class_names=names,
            factors=(("word", len(DIGITS)), ("state", self.states)), step_labels=True, lengths=True,
            cepstra=COEFFICIENTS,
        )  # fmt: skip
        return Decoded(spec, parts, {"recordings": len(recordings), "states": self.states})

    def utterance(self, r: Recording) -> tuple[np.ndarray, np.ndarray]:
        """Frames (t, 39) of a recording and their labels (t,)."""
        t = frames(len(r.samples), RATE)
        if t < self.states:
            raise UserError(
                f"{r.digit}_{r.speaker}_{r.number} has {t} frames, fewer than the {self.states} states of a word; "
                "lower data.states."
            )
        return with_slopes(cepstra(r.samples / 32768.0, RATE)), self.states * r.digit + self.states * np.arange(t) // t
