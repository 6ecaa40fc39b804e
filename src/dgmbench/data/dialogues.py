"""Two-turn exchanges of a small grammar: the first turn is given, the reply is x, and the reply's act is its label."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import RandomState

from dgmbench.data.grammar import Grammar
from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import END, encode_sentences
from dgmbench.errors import require

FIRST = {
    "S": [(0.35, "ask"), (0.35, "request"), (0.2, "tell"), (0.1, "greet")],
    "ask": [(0.5, "do you have the THING ?"), (0.3, "have you seen the THING ?"), (0.2, "where is the THING ?")],
    "request": [(0.5, "please bring me the THING"), (0.5, "could you find the THING for me ?")],
    "tell": [(0.6, "i like the THING"), (0.4, "i found the THING again")],
    "greet": [(0.6, "hello there"), (0.4, "good morning")],
    "THING": [(0.6, "N"), (0.2, "small N"), (0.2, "red N")],
    "N": [(0.25, "book"), (0.25, "coat"), (0.25, "lamp"), (0.25, "key")],
}
"""What is said first; the symbols of S are its acts."""

REPLIES = {
    "ask": [(0.45, "confirm"), (0.35, "deny"), (0.2, "clarify")],
    "request": [(0.45, "accept"), (0.35, "refuse"), (0.2, "clarify")],
    "tell": [(0.4, "agree"), (0.35, "disagree"), (0.25, "wonder")],
    "greet": [(1.0, "welcome")],
    "confirm": [(0.6, "yes , the N is PLACE"), (0.4, "yes , i saw it PLACE")],
    "deny": [(0.5, "no , i have no N"), (0.5, "no , WHO has the N")],
    "clarify": [(0.5, "which N do you mean ?"), (0.5, "do you mean the N from WHO ?")],
    "accept": [(0.6, "sure , i will bring the N WHEN"), (0.4, "of course , here is the N")],
    "refuse": [(0.6, "sorry , WHO took the N"), (0.4, "sorry , i can not come WHEN")],
    "agree": [(0.5, "i like the N too"), (0.5, "WHO says so too")],
    "disagree": [(0.5, "really ? i think it is DULL"), (0.5, "but the N is so DULL")],
    "wonder": [(0.5, "why do you like the N ?"), (0.5, "was it PLACE ?")],
    "welcome": [(0.5, "hello , how are you ?"), (0.5, "hello , are you here for WHO ?")],
    "PLACE": [(0.4, "on the table"), (0.3, "in the kitchen"), (0.3, "under the bed")],
    "WHO": [(0.4, "anna"), (0.3, "john"), (0.3, "mary")],
    "WHEN": [(0.4, "now"), (0.3, "tonight"), (0.3, "tomorrow")],
    "DULL": [(0.4, "old"), (0.3, "dull"), (0.3, "ugly")],
}
"""Replies to each act of a first turn, by their own acts; N is the first turn's noun, so a reply is about something."""

FIRST_ACTS = tuple(act for _, act in FIRST["S"])
ACTS = ("confirm", "deny", "clarify", "accept", "refuse", "agree", "disagree", "wonder", "welcome")
NOUNS = tuple(noun for _, noun in FIRST["N"])


@cache
def first_turns(start: str = "S") -> Grammar:
    """The grammar of first turns, or of those of the act ``start``."""
    return Grammar(FIRST, start)


@cache
def replies(noun: str, start: str) -> Grammar:
    """The grammar of replies about ``noun`` to a first turn of the act ``start``, or of replies of that act."""
    return Grammar({**REPLIES, "N": [(1.0, noun)]}, start)


@cache
def first_act(words: tuple[str, ...]) -> str | None:
    """The act of a first turn; None of what nobody says."""
    return next((act for act in FIRST_ACTS if math.isfinite(first_turns(act).log_prob(words))), None)


@cache
def reply_act(words: tuple[str, ...]) -> str | None:
    """The act of a reply, whatever its noun; None of what nobody replies."""
    return next((act for act in ACTS if any(math.isfinite(replies(n, act).log_prob(words)) for n in NOUNS)), None)


@cache
def reply_log_prob(words: tuple[str, ...], first: tuple[str, ...]) -> float:
    """log p(reply | first turn) in nats; -inf of what nobody replies."""
    act = first_act(first)
    if act is None:
        return -math.inf
    return replies(_noun(first), act).log_prob(words)


def _noun(first: tuple[str, ...]) -> str:
    """What a first turn is about; any noun where it is about nothing, as the replies are then."""
    return next((word for word in first if word in NOUNS), NOUNS[0])


@cache
def _acts(start: str) -> Grammar:
    """Which acts a first turn has, or the replies to one of the act ``start``; they are its words."""
    return Grammar({start: FIRST["S"] if start == "S" else REPLIES[start]}, start)


class Dialogues(Reader):
    """Tokens (9,) of a reply, given the first turn, tokens (10,); both end as sentences do.

    ``y`` is the reply's act (``spec.class_names``). An act that nobody replies with to the first turn never occurs, and
    every reply has one act, which is that of its grammar. No model's expected log p(reply | first turn) exceeds minus
    the entropy that the record holds. Independent draws for each split; ``seed`` is the data's own, not the run's.
    """

    prepared = False

    def __init__(self, *, train: int = 6_000, valid: int = 1_000, test: int = 1_000, seed: int = 0) -> None:
        require("data", least=2, train=train, valid=valid, test=test)
        self.sizes, self.seed = {"train": train, "valid": valid, "test": test}, seed
        every = [replies(noun, act) for noun in NOUNS for act in FIRST_ACTS]
        self.vocabulary = (END, *sorted(set().union(first_turns().words(), *(one.words() for one in every))))
        self.first_length = first_turns().longest() + 1
        self.length = max(one.longest() for one in every) + 1

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        parts = {}
        for split in SPLITS:
            rng = RandomState(keyed_seed("dialogues", split, self.seed) % 2**32)
            first, said, y = [], [], np.zeros(self.sizes[split], np.int64)
            for row in range(self.sizes[split]):
                act = _acts("S").sample(rng)[0]
                first.append(tuple(first_turns(act).sample(rng)))
                answer = _acts(act).sample(rng)[0]
                said.append(replies(_noun(first[-1]), answer).sample(rng))
                y[row] = ACTS.index(answer)
            x = encode_sentences(said, self.vocabulary, self.length)
            given = encode_sentences(first, self.vocabulary, self.first_length)
            parts[split] = Part(x, y, f"dialogues {split} seed {self.seed}", np.arange(len(x)), given)
        words = self.vocabulary
        turns = DataSpec((self.first_length,), "tokens", len(words), end=0, vocabulary=words)
        spec = replace(turns, shape=(self.length,), num_classes=len(ACTS), class_names=ACTS, given=turns)
        share = {act: p for p, act in FIRST["S"]}
        entropy = sum(p * replies(NOUNS[0], act).entropy() for act, p in share.items())
        return Decoded(spec, parts, {"entropy_nats": entropy})

    def acts(self, given: np.ndarray, x: np.ndarray) -> list[tuple[str | None, str | None]]:
        """The acts of both turns of exchanges (n, t); None of a turn that the grammar has not."""
        turns = zip(self._words(given), self._words(x), strict=True)
        return [(first_act(first), reply_act(said)) for first, said in turns]

    def log_prob_given(self, x: np.ndarray, given: np.ndarray) -> np.ndarray:
        """log p(reply | first turn) of replies x (n, t) to first turns (n, t), nats; -inf outside the grammar."""
        turns = zip(self._words(x), self._words(given), strict=True)
        return np.array([reply_log_prob(said, first) for said, first in turns])

    def _words(self, x: np.ndarray) -> list[tuple[str, ...]]:
        """The words of each turn, as far as its end."""
        return [tuple(self.vocabulary[t] for t in row[: row.index(0) if 0 in row else len(row)]) for row in x.tolist()]
