"""Tokens, vocabularies, the grammar's exact probabilities, and the readers of text."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.data import DataSpec, load, spec_from_card
from dgmbench.data.grammar import ENGLISH, Grammar
from dgmbench.data.text import build_vocabulary, decode_tokens, encode_sentences
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
NOWHERE = Path("/nonexistent")


# ---------------------------------------------------------------------- the spec of sentences


def test_a_spec_with_words_is_stored_and_equal_without_them() -> None:
    spec = DataSpec((5,), "tokens", 3, end=0, vocabulary=("<eos>", "a", "b"))
    assert DataSpec(**spec.as_dict()) == spec
    assert DataSpec(**spec.as_dict()).vocabulary == spec.vocabulary
    assert spec == DataSpec((5,), "tokens", 3, end=0)
    assert spec != DataSpec((5,), "tokens", 3)
    assert DataSpec((2,), "real").as_dict() == {"shape": [2], "kind": "real", "levels": None, "num_classes": None}
    with pytest.raises(ValueError, match="2 words does not name 3 tokens"):
        DataSpec((5,), "tokens", 3, vocabulary=("a", "b"))
    with pytest.raises(ValueError, match="end=3 must be one of the tokens"):
        DataSpec((5,), "tokens", 3, end=3)


def test_sentences_and_tokens() -> None:
    sentences = [["b", "a", "b"], ["a"], ["c", "b"]]
    assert build_vocabulary(sentences) == ("<eos>", "b", "a", "c")
    assert build_vocabulary(sentences, least=2) == ("<eos>", "b", "a", "<unk>")
    x = encode_sentences(sentences, build_vocabulary(sentences, least=2), 3)
    assert x.tolist() == [[1, 2, 1], [2, 0, 0], [3, 1, 0]]
    assert x.dtype == np.int64
    with pytest.raises(UserError, match="The word 'c' is not in the vocabulary"):
        encode_sentences(sentences, ("<eos>", "a", "b"), 3)
    words = DataSpec((3,), "tokens", 4, end=0, vocabulary=("<eos>", "bee", "a", "<unk>"))
    assert decode_tokens(x, words) == ["bee a bee", "a", "<unk> bee"]
    letters = DataSpec((3,), "tokens", 4, vocabulary=("\n", "b", "a", " "))
    assert decode_tokens(x, letters) == ["bab", "a\n\n", " b\n"]


# ---------------------------------------------------------------------- the grammar

TOY = Grammar({"S": [(0.7, "A B"), (0.3, "B C A")], "A": [(0.25, "a"), (0.75, "b")], "B": [(0.6, "b"), (0.4, "A c")],
               "C": [(1.0, "c")]})  # fmt: skip


def derivations(grammar: Grammar, symbol: str = "S") -> Iterator[tuple[tuple[str, ...], float]]:
    """Every derivation of a symbol, by brute force."""
    if symbol not in grammar.rules:
        yield (symbol,), 1.0
        return
    for p, body in grammar.rules[symbol]:
        for parts in itertools.product(*[list(derivations(grammar, s)) for s in body]):
            yield sum((words for words, _ in parts), ()), p * math.prod(q for _, q in parts)


def test_probabilities_entropy_and_length_by_enumeration() -> None:
    every: dict[tuple[str, ...], float] = {}
    for words, p in derivations(TOY):
        every[words] = every.get(words, 0.0) + p
    assert sum(every.values()) == pytest.approx(1.0)
    assert len(every) == len(list(derivations(TOY))), "one derivation a sentence, or the entropy would be another"
    for words, p in every.items():
        assert TOY.log_prob(words) == pytest.approx(math.log(p))
    assert TOY.entropy() == pytest.approx(-sum(p * math.log(p) for p in every.values()))
    assert TOY.mean_length() == pytest.approx(sum(p * len(words) for words, p in every.items()))
    assert TOY.longest() == max(map(len, every))
    assert TOY.words() == {"a", "b", "c"}
    for other in ((), ("a",), ("c", "c", "c"), ("a", "b", "x")):
        assert TOY.log_prob(other) == -math.inf
    with pytest.raises(ValueError, match=r"probabilities of S sum to 0\.9"):
        Grammar({"S": [(0.9, "a")]})


def test_ambiguous_sentences_count_every_derivation() -> None:
    grammar = Grammar({"S": [(0.5, "a B"), (0.5, "A b")], "A": [(0.5, "a"), (0.5, "a a")], "B": [(1.0, "b")]})
    assert grammar.log_prob(["a", "b"]) == pytest.approx(math.log(0.75))


def test_samples_follow_the_probabilities() -> None:
    rng, n = np.random.RandomState(0), 20_000
    counts: dict[tuple[str, ...], int] = {}
    for _ in range(n):
        words = tuple(TOY.sample(rng))
        counts[words] = counts.get(words, 0) + 1
    expected = {words: n * p for words, p in derivations(TOY)}
    assert set(counts) <= set(expected)
    statistic = sum((counts.get(words, 0) - e) ** 2 / e for words, e in expected.items())
    from scipy.stats import chi2

    assert chi2.sf(statistic, len(expected) - 1) > 1e-3


def test_text_small_is_the_grammar(config: Config) -> None:
    data = load(config("text_small"), NOWHERE)
    assert data.spec == DataSpec((16,), "tokens", 33, end=0) == spec_from_card(config("text_small"))
    sentences = [text.split() for text in decode_tokens(data.splits["test"].x, data.spec)]
    log_p = np.array([ENGLISH.log_prob(words) for words in sentences])
    assert np.isfinite(log_p).all()
    entropy = data.meta["remarks"]["entropy_nats"]
    assert abs(log_p.mean() + entropy) < 4 * log_p.std() / len(log_p) ** 0.5
    tokens = np.array([len(words) + 1 for words in sentences])
    assert abs(tokens.mean() - data.meta["remarks"]["mean_tokens"]) < 4 * tokens.std() / len(tokens) ** 0.5
    assert ENGLISH.log_prob(["the", "dog", "sleeps"]) == pytest.approx(
        math.log(0.55 * 0.4) + math.log(0.5 * 0.5 * 0.4) + math.log(0.5)
    )
    assert ENGLISH.log_prob(["the", "dog", "sleep"]) == -math.inf
    assert data.splits["train"].x[:, -1].max() == 0, "the longest sentence leaves place for its end"
    assert load(config("text_small", seed=1), NOWHERE).content_hash != data.content_hash


# ---------------------------------------------------------------------- files

LINES = {"train": " the cat sat \n the dog\n\nthe <unk> sat\n", "valid": "the cat\nthe dog\n", "test": "dog\nsat sat\n"}


def test_ptb_files(config: Config, tmp_path: Path) -> None:
    (tmp_path / "ptb").mkdir()
    for split, text in LINES.items():
        (tmp_path / "ptb" / f"ptb.{split}.txt").write_text(text)
    data = load(config("ptb", length=3, verify=False), tmp_path)
    assert data.spec == DataSpec((3,), "tokens", 6, end=0)
    assert data.spec.vocabulary == ("<eos>", "the", "sat", "<unk>", "cat", "dog")
    assert data.splits["train"].x.tolist() == [[1, 4, 2], [1, 5, 0], [1, 3, 2]]
    assert data.splits["test"].x.tolist() == [[5, 0, 0], [2, 2, 0]]
    assert data.meta["remarks"]["sentences_cut"] == {"train": 2, "valid": 0, "test": 0}
    # the words come back from the prepared cache as well
    assert load(config("ptb", length=3, verify=False), tmp_path).spec.vocabulary == data.spec.vocabulary
    with pytest.raises(UserError, match=r"ptb\.train\.txt is truncated or altered"):
        load(config("ptb"), tmp_path)
    (tmp_path / "ptb" / "ptb.test.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"ptb\.test\.txt is no text in UTF-8"):
        load(config("ptb", length=3, verify=False), tmp_path)
    (tmp_path / "ptb" / "ptb.test.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"ptb\.test\.txt holds no sentences"):
        load(config("ptb", length=3, verify=False), tmp_path)


def test_coco_captions_files(config: Config, tmp_path: Path) -> None:
    (tmp_path / "coco_captions").mkdir()
    (tmp_path / "coco_captions" / "image_coco.txt").write_text("A dog.\na dog's T-shirt.\nA cat\na cat.\na dog dog\n")
    (tmp_path / "coco_captions" / "test_coco.txt").write_text("the dog,\na cat.\n")
    data = load(config("coco_captions", length=4, valid=2, verify=False), tmp_path)
    assert data.spec.vocabulary == ("<eos>", "<unk>", "a", ".")
    assert data.splits["train"].x.tolist() == [[2, 1, 3, 0], [2, 1, 1, 3], [2, 1, 0, 0]]
    assert data.splits["valid"].x.tolist() == [[2, 1, 3, 0], [2, 1, 1, 0]]
    assert data.splits["test"].x.tolist() == [[1, 1, 1, 0], [2, 1, 3, 0]]
    assert data.meta["remarks"]["sentences_cut"] == 1
    with pytest.raises(UserError, match=r"image_coco\.txt is truncated or altered"):
        load(config("coco_captions"), tmp_path)


def test_tinyshakespeare_files(config: Config, tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare").mkdir()
    text = "".join(np.random.RandomState(0).choice(list("abcdefgh \n"), 1003))
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(text)
    data = load(config("tinyshakespeare", length=7, verify=False), tmp_path)
    assert data.spec == DataSpec((7,), "tokens", 10)
    texts = {split: decode_tokens(part.x, data.spec) for split, part in data.splits.items()}
    assert "".join(texts["train"]) == text[: 903 // 7 * 7]
    assert "".join(texts["valid"]) == text[903 : 903 + 49]
    assert "".join(texts["test"]) == text[953 : 953 + 49]
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is no text in UTF-8"):
        load(config("tinyshakespeare", length=7, verify=False), tmp_path)
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(b"")
    with pytest.raises(UserError, match="holds no text"):
        load(config("tinyshakespeare", length=7, verify=False), tmp_path)


def test_tokens_are_not_taken_for_grey_levels(config: Config) -> None:
    spec = spec_from_card(config("ptb"))
    assert spec == DataSpec((83,), "tokens", 10_000, end=0)
    assert spec.dtype == torch.int64
