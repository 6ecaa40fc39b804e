"""Probabilistic context-free grammars whose sentences have exact probabilities and a known entropy."""

import math
from collections.abc import Mapping, Sequence
from functools import cache

from numpy.random import RandomState

Rules = Mapping[str, Sequence[tuple[float, str]]]


class Grammar:
    """Rules ``{symbol: [(probability, "symbols and words"), ...]}``; what has no rules is a word.

    No symbol may contain itself, so the language is finite. ``entropy`` holds where every sentence has one derivation
    only; ``log_prob`` sums over all of them.
    """

    def __init__(self, rules: Rules, start: str = "S") -> None:
        self.start = start
        self.rules = {name: [(p, tuple(body.split())) for p, body in bodies] for name, bodies in rules.items()}
        for name, bodies in self.rules.items():
            if not math.isclose(sum(p for p, _ in bodies), 1.0):
                raise ValueError(f"the probabilities of {name} sum to {sum(p for p, _ in bodies)}")

    def words(self) -> set[str]:
        """All words of the language."""
        return {s for bodies in self.rules.values() for _, body in bodies for s in body if s not in self.rules}

    def longest(self, symbol: str | None = None) -> int:
        """The most words that a symbol (by default a sentence) can have."""
        symbol = symbol or self.start
        if symbol not in self.rules:
            return 1
        return max(sum(self.longest(s) for s in body) for _, body in self.rules[symbol])

    def sample(self, rng: RandomState) -> list[str]:
        """One sentence."""
        words, waiting = [], [self.start]
        while waiting:
            symbol = waiting.pop()
            if symbol not in self.rules:
                words.append(symbol)
                continue
            u = rng.uniform()
            for p, body in self.rules[symbol]:  # noqa: B007, the last one reached is the one chosen
                u -= p
                if u < 0:
                    break
            waiting.extend(reversed(body))
        return words

    def entropy(self, symbol: str | None = None) -> float:
        """The entropy of a sentence in nats: that of each choice, and of what it leads to."""
        symbol = symbol or self.start
        if symbol not in self.rules:
            return 0.0
        return sum(p * (-math.log(p) + sum(self.entropy(s) for s in body)) for p, body in self.rules[symbol])

    def mean_length(self, symbol: str | None = None) -> float:
        """The expected number of words of a sentence."""
        symbol = symbol or self.start
        if symbol not in self.rules:
            return 1.0
        return sum(p * sum(self.mean_length(s) for s in body) for p, body in self.rules[symbol])

    def log_prob(self, sentence: Sequence[str]) -> float:
        """The exact log-probability of a sentence in nats, by the inside algorithm; -inf outside the language."""
        words = tuple(sentence)

        @cache
        def symbol(name: str, i: int, j: int) -> float:
            if name not in self.rules:
                return float(j == i + 1 and words[i] == name)
            return sum(p * body(b, i, j) for p, b in self.rules[name])

        @cache
        def body(symbols: tuple[str, ...], i: int, j: int) -> float:
            if len(symbols) == 1:
                return symbol(symbols[0], i, j)
            return sum(symbol(symbols[0], i, m) * body(symbols[1:], m, j) for m in range(i + 1, j - len(symbols) + 2))

        probability = symbol(self.start, 0, len(words)) if words else 0.0
        return math.log(probability) if probability > 0 else -math.inf


ENGLISH = Grammar(
    {
        "S": [(0.55, "ONE SHE"), (0.45, "MANY THEY")],
        "ONE": [(0.5, "A N"), (0.3, "A ADJ N"), (0.2, "A N that SEES WHOM")],
        "MANY": [(0.5, "THE NS"), (0.3, "THE ADJ NS"), (0.2, "THE NS that SEE WHOM")],
        "SHE": [(0.4, "SLEEPS"), (0.35, "SEES WHOM"), (0.25, "SEES WHOM PREP WHOM")],
        "THEY": [(0.4, "SLEEP"), (0.35, "SEE WHOM"), (0.25, "SEE WHOM PREP WHOM")],
        "WHOM": [(0.35, "A N"), (0.15, "A ADJ N"), (0.35, "THE NS"), (0.15, "THE ADJ NS")],
        "A": [(0.5, "the"), (0.3, "a"), (0.2, "every")],
        "THE": [(0.5, "the"), (0.3, "some"), (0.2, "two")],
        "ADJ": [(0.5, "small"), (0.3, "old"), (0.2, "happy")],
        "N": [(0.4, "dog"), (0.3, "cat"), (0.2, "bird"), (0.1, "child")],
        "NS": [(0.4, "dogs"), (0.3, "cats"), (0.2, "birds"), (0.1, "children")],
        "SLEEPS": [(0.5, "sleeps"), (0.3, "runs"), (0.2, "sings")],
        "SLEEP": [(0.5, "sleep"), (0.3, "run"), (0.2, "sing")],
        "SEES": [(0.5, "sees"), (0.3, "likes"), (0.2, "chases")],
        "SEE": [(0.5, "see"), (0.3, "like"), (0.2, "chase")],
        "PREP": [(0.5, "near"), (0.3, "with"), (0.2, "behind")],
    }
)
"""English of sorts, in which a verb agrees with a subject that may lie far before it; one derivation a sentence."""
