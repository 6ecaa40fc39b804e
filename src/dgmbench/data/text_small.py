"""Sentences of a small probabilistic grammar, so that the best possible likelihood is known."""

from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.grammar import ENGLISH
from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import END, encode_sentences
from dgmbench.errors import require


class TextSmall(Reader):
    """Tokens (16,) of ``dgmbench.data.grammar.ENGLISH``: up to 15 words, then the end of the sentence.

    No model's expected log-likelihood exceeds minus the grammar's entropy, which the record holds. Independent draws
    for each split; ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(self, *, train: int = 10_000, valid: int = 2_000, test: int = 2_000, seed: int = 0) -> None:
        require("data", least=2, train=train, valid=valid, test=test)
        self.sizes, self.seed = {"train": train, "valid": valid, "test": test}, seed

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        vocabulary, length = (END, *sorted(ENGLISH.words())), ENGLISH.longest() + 1
        parts = {}
        for split in SPLITS:
            rng = RandomState(keyed_seed("text_small", split, self.seed) % 2**32)
            sentences = [ENGLISH.sample(rng) for _ in range(self.sizes[split])]
            x = encode_sentences(sentences, vocabulary, length)
            parts[split] = Part(x, None, f"text_small {split} seed {self.seed}", np.arange(len(x)))
        spec = DataSpec((length,), "tokens", len(vocabulary), end=0, vocabulary=vocabulary)
        remarks = {"entropy_nats": ENGLISH.entropy(), "mean_tokens": ENGLISH.mean_length() + 1}
        return Decoded(spec, parts, remarks)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The grammar's log-probability of sentences x (n, 16)."""
        vocabulary = np.array((END, *sorted(ENGLISH.words())))
        found = []
        for tokens in x:
            words = vocabulary[tokens[: int(np.argmax(tokens == 0))] if (tokens == 0).any() else tokens]
            found.append(ENGLISH.log_prob(words.tolist()))
        return np.array(found)
