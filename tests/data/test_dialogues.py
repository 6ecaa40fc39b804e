"""Dialogues: first turns and replies of the grammar, their acts, and exact probabilities of a reply given its turn."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import load
from dgmbench.data.dataset import DataSet
from dgmbench.data.dialogues import ACTS, FIRST, NOUNS, REPLIES, Dialogues, replies, reply_act, reply_log_prob
from dgmbench.data.pairs import spec_from_card
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import decode_tokens, encode_sentences
from dgmbench.errors import UserError

NOWHERE = Path("/nonexistent")
Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data(config: Config) -> DataSet:
    return load(config("dialogues", train=10, valid=10, test=600), NOWHERE)


@pytest.fixture(scope="module")
def reader() -> Dialogues:
    return Dialogues()


def test_the_card_says_what_is_read(config: Config) -> None:
    turns = DataSpec((10,), "tokens", 73, end=0)
    told = load(config("dialogues", train=4, valid=2, test=2), NOWHERE).spec
    assert told == DataSpec((9,), "tokens", 73, 9, end=0, given=turns) == spec_from_card(config("dialogues"))
    assert told.class_names == ACTS
    assert told.given is not None
    assert told.given.vocabulary == told.vocabulary


def test_every_turn_ends_and_replies_have_the_act_of_their_label(data: DataSet, reader: Dialogues) -> None:
    test = data.splits["test"]
    x, given, y = test.x[:], test.given[:], test.y[:]
    assert x[:, -1].max() == given[:, -1].max() == 0
    acts = reader.acts(given, x)
    assert [ACTS[label] for label in y] == [reply for _, reply in acts]
    for first, reply in acts:
        assert reply in {act for _, act in REPLIES[str(first)]}
    # whatever the first turn is about, the reply is about
    for said, turn in zip(decode_tokens(x, data.spec), decode_tokens(given, data.spec), strict=True):
        assert set(said.split()) & set(NOUNS) <= set(turn.split())


def test_first_acts_are_as_frequent_as_the_grammar_says(data: DataSet, reader: Dialogues) -> None:
    test = data.splits["test"]
    acts = [first for first, _ in reader.acts(test.given[:], test.x[:])]
    for p, act in FIRST["S"]:
        share = acts.count(act) / len(acts)
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / len(acts))


def test_no_reply_has_two_acts() -> None:
    """Sentences of every act, all of one noun: none is in the language of another act."""
    rng = np.random.RandomState(0)
    for act in ACTS:
        for words in {tuple(replies("lamp", act).sample(rng)) for _ in range(30)}:
            assert reply_act(words) == act
            assert sum(math.isfinite(replies("lamp", other).log_prob(words)) for other in ACTS) == 1


def test_probabilities_are_of_the_reply_given_its_turn(data: DataSet, reader: Dialogues) -> None:
    turn, other = ("where", "is", "the", "red", "lamp", "?"), ("please", "bring", "me", "the", "lamp")
    reply = ("no", ",", "anna", "has", "the", "lamp")
    assert reply_log_prob(reply, turn) == pytest.approx(math.log(0.35 * 0.5 * 0.4))
    assert reply_log_prob(reply, other) == -math.inf  # an answer to a question
    assert reply_log_prob((*reply[:-1], "key"), turn) == -math.inf  # of something else
    assert reply_log_prob(reply, ("lamp", "red")) == -math.inf
    assert reply_act(("red", "lamp")) is None
    x, given = (encode_sentences([words], reader.vocabulary, n) for words, n in ((reply, 9), (turn, 10)))
    assert reader.log_prob_given(x, given) == pytest.approx(math.log(0.07))
    # its mean over the data is minus the entropy of a reply given its turn
    test, entropy = data.splits["test"], data.meta["remarks"]["entropy_nats"]
    log_p = reader.log_prob_given(test.x[:], test.given[:])
    assert np.isfinite(log_p).all()
    assert abs(log_p.mean() + entropy) < 4 * log_p.std() / len(log_p) ** 0.5


def test_splits_and_seeds_differ(config: Config) -> None:
    small = {"train": 20, "valid": 20, "test": 20}
    one, other = (load(config("dialogues", seed=seed, **small), NOWHERE) for seed in (0, 1))
    assert one.content_hash != other.content_hash
    assert not np.array_equal(one.splits["train"].x[:], one.splits["valid"].x[:])
    with pytest.raises(UserError, match=r"data\.train=1"):
        Dialogues(train=1)
