"""Documents about five topics, generated, so that the best possible likelihood is known."""

import itertools
from pathlib import Path

import numpy as np
import torch
from numpy.random import RandomState
from scipy.special import logsumexp

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.data.values import log_orders
from dgmbench.errors import UserError, require

COMMON = ("new", "good", "time", "people", "day", "place", "old", "world", "way", "year")
TOPICS = {
    "weather": ("rain", "wind", "storm", "cloud", "snow", "sun", "cold", "sky", "ice", "warm"),
    "kitchen": ("bread", "oven", "salt", "soup", "butter", "onion", "flour", "cheese", "warm", "knife"),
    "music": ("song", "piano", "band", "voice", "drum", "violin", "concert", "play", "note", "score"),
    "sport": ("game", "team", "ball", "goal", "coach", "race", "win", "play", "league", "score"),
    "space": ("star", "planet", "orbit", "moon", "rocket", "comet", "sun", "telescope", "light", "sky"),
}
SHARE_OF_COMMON = 0.3  # of the words of every topic
ALONE, FIRST = 0.6, 0.7  # probability that a document has one topic; else the share of the first of its two


def vocabulary() -> tuple[str, ...]:
    """Every word once: the common ones, then the topics' in their order."""
    return tuple(dict.fromkeys((*COMMON, *itertools.chain(*TOPICS.values()))))


def word_probabilities() -> np.ndarray:
    """Of each topic, (topics, words): common words all alike, its own falling off as 1 / (rank + 1)."""
    place = {word: i for i, word in enumerate(vocabulary())}
    p = np.zeros((len(TOPICS), len(place)))
    for row, words in zip(p, TOPICS.values(), strict=True):
        row[[place[word] for word in COMMON]] = SHARE_OF_COMMON / len(COMMON)
        rank = 1.0 / np.arange(2, len(words) + 2)
        row[[place[word] for word in words]] += (1 - SHARE_OF_COMMON) * rank / rank.sum()
    return p


def components() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kinds of documents: their probabilities (m,), words (m, words) and first topics (m,)."""
    topics, k = word_probabilities(), len(TOPICS)
    pairs = list(itertools.permutations(range(k), 2))
    mixed = [FIRST * topics[a] + (1 - FIRST) * topics[b] for a, b in pairs]
    weights = [ALONE / k] * k + [(1 - ALONE) / len(pairs)] * len(pairs)
    return np.array(weights), np.array([*topics, *mixed]), np.array([*range(k), *(a for a, _ in pairs)])


class Topics(Reader):
    """Counts (words,) of documents whose length is one of ``lengths``, all alike; the label is the first topic.

    A document has one topic, or two that share its words; given these and its length its words are independent, so
    that the probability of counts is a mixture of multinomials. Independent draws for each split; ``seed`` is the
    data's own, not the run's.
    """

    prepared = False

    def __init__(
        self,
        *,
        train: int = 5_000,
        valid: int = 1_000,
        test: int = 1_000,
        lengths: tuple[int, ...] = (10, 20, 40),
        seed: int = 0,
    ) -> None:
        require("data", least=2, train=train, valid=valid, test=test)
        if not lengths or any(not isinstance(one, int) or one < 1 for one in lengths):
            raise UserError(f"data.lengths={list(lengths)} must be one or more numbers of words, of at least 1.")
        self.sizes, self.seed = {"train": train, "valid": valid, "test": test}, seed
        self.lengths = tuple(sorted(set(lengths)))

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        weights, words, first = components()
        parts, per_word = {}, {}
        for split in SPLITS:
            rng = RandomState(keyed_seed("topics", split, self.seed) % 2**32)
            kind = rng.choice(len(weights), size=self.sizes[split], p=weights)
            length = rng.choice(self.lengths, size=self.sizes[split])
            x = np.stack([rng.multinomial(n, words[c]) for n, c in zip(length, kind, strict=True)]).astype(np.int64)
            parts[split] = Part(x, first[kind], f"topics {split} seed {self.seed}", np.arange(len(x)))
            sequence = self.log_prob_given_length(x) - _log_orders(x)
            per_word[split] = float(np.exp(-(sequence / length).mean()))
        spec = DataSpec(
            (words.shape[1],), "counts", num_classes=len(TOPICS), vocabulary=vocabulary(), class_names=tuple(TOPICS)
        )
        return Decoded(spec, parts, {"perplexity_of_the_truth": per_word})

    def log_prob_given_length(self, x: np.ndarray) -> np.ndarray:
        """log p(x | its number of words) of counts x (n, words), (n,) float64."""
        weights, words, _ = components()
        lacking = words == 0
        inner = x @ np.log(np.where(lacking, 1.0, words)).T
        inner[x @ lacking.T > 0] = -np.inf
        return _log_orders(x) + logsumexp(np.log(weights) + inner, axis=1)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x), that of the number of words included."""
        x = x.reshape(len(x), -1)
        possible = np.isin(x.sum(1), self.lengths)
        return np.where(possible, self.log_prob_given_length(x) - np.log(len(self.lengths)), -np.inf)


def _log_orders(x: np.ndarray) -> np.ndarray:
    return log_orders(torch.from_numpy(x).double()).numpy()
