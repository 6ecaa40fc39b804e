"""Documents as counts of words: the generated topics, whose probabilities are known, and 20 Newsgroups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare, multinomial

from dgmbench.data import DataSpec, load, spec_from_card
from dgmbench.data.text import frequent_words, readable
from dgmbench.data.topics import TOPICS, Topics, components, vocabulary, word_probabilities
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
NOWHERE = Path("/nonexistent")


def test_counts_have_a_word_each_and_can_be_read() -> None:
    spec = DataSpec((3,), "counts", vocabulary=("a", "b", "c"))
    assert DataSpec(**spec.as_dict()).vocabulary == spec.vocabulary
    with pytest.raises(ValueError, match="2 words does not name 3 dimensions"):
        DataSpec((3,), "counts", vocabulary=("a", "b"))
    assert frequent_words(np.array([[0, 2, 5], [1, 1, 0]]), spec) == ["c 5, b 2", "a 1, b 1"]
    assert readable(np.array([[0.25, -1.0, 1.5]]), spec) == ["c 1.5, a 0.25"]


def test_topics_are_the_mixture_that_they_say(config: Config) -> None:
    data = load(config("topics"), NOWHERE)
    assert data.spec == DataSpec((55,), "counts", num_classes=5) == spec_from_card(config("topics"))
    part, (weights, words, first) = data.splits["train"], components()
    total = part.x.sum(1)
    assert chisquare(np.unique(total, return_counts=True)[1]).pvalue > 1e-3  # 10, 20 and 40 alike often
    assert set(total) == {10, 20, 40}
    assert chisquare(np.bincount(part.y, minlength=5)).pvalue > 1e-3
    # of documents with the first topic 0, the mean share of each word is that of their components
    own = first == 0
    share = (part.x / total[:, None])[part.y == 0]
    expected = weights[own] @ words[own] / weights[own].sum()
    error = share.std(0) / len(share) ** 0.5
    assert (np.abs(share.mean(0) - expected) < 4.5 * error + 1e-12).all()
    assert load(config("topics", seed=1), NOWHERE).content_hash != data.content_hash


def test_the_probabilities_of_topics_sum_to_one_and_are_those_of_multinomials(config: Config) -> None:
    np.testing.assert_allclose(word_probabilities().sum(1), 1)
    weights, words, _ = components()
    assert weights.sum() == pytest.approx(1)
    assert len(weights) == len(TOPICS) + len(TOPICS) * (len(TOPICS) - 1)
    one = np.eye(55, dtype=np.int64)
    two = np.array([one[i] + one[j] for i in range(55) for j in range(i + 1)])
    reader = Topics(lengths=(1, 2))
    assert np.exp(reader.log_prob_given_length(one)).sum() == pytest.approx(1)
    assert np.exp(reader.log_prob(np.concatenate([one, two]))).sum() == pytest.approx(1)
    x = load(config("topics"), NOWHERE).splits["test"].x[:5]
    for row, found in zip(x, Topics().log_prob(x), strict=True):
        by_hand = sum(w * multinomial.pmf(row, row.sum(), p) for w, p in zip(weights, words, strict=True)) / 3
        assert found == pytest.approx(np.log(by_hand))
    assert Topics().log_prob(one)[0] == -np.inf  # no document has one word
    strange = np.zeros((1, 55), np.int64)
    strange[0, vocabulary().index("oven")] = strange[0, vocabulary().index("rocket")] = 1
    strange[0, vocabulary().index("violin")] = 8  # three topics in one document
    assert Topics().log_prob(strange)[0] == -np.inf


def test_no_lengths_are_no_documents() -> None:
    with pytest.raises(UserError, match=r"data\.lengths=\[0\] must be one or more numbers of words, of at least 1"):
        Topics(lengths=(0,))


def write(folder: Path, **changes: Any) -> None:
    """Three words: documents 0 and 1 of each split are (2, 0, 1) and (0, 0, 3), the third is (0, 1, 0)."""
    arrays: dict[str, Any] = {"vocab": np.array([b"ant", b"bee", b"cat"])}
    for split in ("train", "valid", "test"):
        arrays |= {
            f"{split}_indptr": np.array([0, 2, 3, 4], np.int32),
            f"{split}_indices": np.array([0, 2, 2, 1], np.int16),
            f"{split}_counts": np.array([2, 1, 3, 1], np.int16),
        }
    folder.mkdir(exist_ok=True)
    np.savez(folder / "newsgroups20_bow.npz", **{k: v for k, v in (arrays | changes).items() if v is not None})


def test_newsgroups_keeps_the_frequent_words_and_the_documents_that_have_any(config: Config, tmp_path: Path) -> None:
    write(tmp_path / "newsgroups20")
    data = load(config("newsgroups20", words=2, verify=False), tmp_path)
    assert data.spec == DataSpec((2,), "counts")
    assert data.spec.vocabulary == ("cat", "ant")
    for part in data.splits.values():
        assert part.x.tolist() == [[1, 2], [3, 0]]
    assert data.meta["remarks"]["documents_left_out"] == {"train": 1, "valid": 1, "test": 1}
    assert load(config("newsgroups20", words=3, verify=False), tmp_path).splits["test"].x.tolist() == [
        [1, 2, 0], [3, 0, 0], [0, 0, 1],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"valid_counts": None}, "lacks valid_counts"),
        ({"vocab": np.array([b"ant"])}, "names 1 words; data.words=3 must be no more"),
        ({"test_indptr": np.array([0, 2, 3, 9])}, "The test arrays of .* do not fit each other"),
        ({"train_indices": np.array([0, 2, 3, 1])}, "The train set of .* has words that are none of 3"),
        ({"train_counts": np.array([0, 2, 3, 1])}, "or counts below 1"),
    ],
)
def test_files_that_are_no_newsgroups_are_refused(
    changes: dict[str, Any], said: str, config: Config, tmp_path: Path
) -> None:
    write(tmp_path / "newsgroups20", **changes)
    with pytest.raises(UserError, match=said):
        load(config("newsgroups20", words=3, verify=False), tmp_path)
    with pytest.raises(UserError, match="is truncated or altered"):
        load(config("newsgroups20", words=3), tmp_path)


def test_newsgroups_says_where_its_file_comes_from(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=newsgroups20 needs newsgroups20_bow\.npz in .*; make it of the \.mat"):
        load(config("newsgroups20"), tmp_path)
