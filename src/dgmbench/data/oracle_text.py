"""Sequences of a randomly drawn LSTM, SeqGAN's oracle, so that every sequence's exact probability is known.

All parameters are standard normal, embeddings and biases included, and a sequence starts from the embedding of token 0:

    (i, f, o) = sigmoid, g = tanh of  e W + h U + b,    c <- f c + i g,    h <- o tanh(c),    p = softmax(h V + d)

Paper: Yu et al. 2017, https://arxiv.org/abs/1609.05473, section "Synthetic data experiments". What differs: a small
vocabulary by default (5,000 tokens there), and parameters of our own seed, so that only orders of numbers compare with
the published ones.
"""

from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import require


class OracleText(Reader):
    """Tokens (length,) of an LSTM of ``hidden`` units with standard normal parameters, drawn by ``seed``.

    Independent draws for each split. The record holds the mean of -log p over the test split.
    """

    prepared = False

    def __init__(
        self,
        *,
        vocabulary: int = 100,
        length: int = 20,
        hidden: int = 32,
        train: int = 5_000,
        valid: int = 1_000,
        test: int = 1_000,
        seed: int = 0,
    ) -> None:
        require("data", least=2, vocabulary=vocabulary, train=train, valid=valid, test=test)
        require("data", least=1, length=length, hidden=hidden)
        self.vocabulary, self.length, self.hidden, self.seed = vocabulary, length, hidden, seed
        self.sizes = {"train": train, "valid": valid, "test": test}
        draw = RandomState(keyed_seed("oracle_text", "parameters", seed) % 2**32).standard_normal
        self.embedding = draw((vocabulary, hidden))
        self.input, self.recurrent, self.bias = draw((hidden, 4 * hidden)), draw((hidden, 4 * hidden)), draw(4 * hidden)
        self.output, self.output_bias = draw((hidden, vocabulary)), draw(vocabulary)

    def step(self, token: np.ndarray, state: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The log-probabilities (n, vocabulary) of what follows a token (n,), and the states (n, hidden) h and c."""
        h, c = state
        gates = self.embedding[token] @ self.input + h @ self.recurrent + self.bias
        i, f, o = (0.5 + 0.5 * np.tanh(gate / 2) for gate in np.split(gates, 4, axis=1)[:3])
        c = f * c + i * np.tanh(gates[:, 3 * self.hidden :])
        h = o * np.tanh(c)
        logits = h @ self.output + self.output_bias
        logits -= logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True)), h, c

    def start(self, n: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Token and state in front of n sequences."""
        return np.zeros(n, np.int64), (np.zeros((n, self.hidden)), np.zeros((n, self.hidden)))

    def draw(self, n: int, random: RandomState) -> np.ndarray:
        """n sequences (n, length) int64, by inverse distribution functions."""
        token, state = self.start(n)
        columns = []
        for _ in range(self.length):
            log_prob, *found = self.step(token, state)
            state = found[0], found[1]
            passed = np.exp(log_prob).cumsum(1) < random.uniform(size=(n, 1))
            token = np.minimum(passed.sum(1), self.vocabulary - 1)
            columns.append(token)
        return np.stack(columns, 1)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """The oracle's log-probability of sequences x (n, length), nats."""
        token, state = self.start(len(x))
        total = np.zeros(len(x))
        for column in x.T:
            log_prob, *found = self.step(token, state)
            state = found[0], found[1]
            total += log_prob[np.arange(len(x)), column]
            token = column
        return total

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        parts = {}
        for split in SPLITS:
            random = RandomState(keyed_seed("oracle_text", split, self.seed) % 2**32)
            x = self.draw(self.sizes[split], random)
            parts[split] = Part(x, None, f"oracle_text {split} seed {self.seed}", np.arange(len(x)))
        words = tuple(str(token) for token in range(self.vocabulary))
        spec = DataSpec((self.length,), "tokens", self.vocabulary, vocabulary=words)
        nll = -self.log_prob(np.asarray(parts["test"].x))
        return Decoded(spec, parts, {"test_oracle_nll": float(nll.mean()), "se": float(nll.std() / len(nll) ** 0.5)})
