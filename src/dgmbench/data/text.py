"""Words and characters <-> tokens. Token 0 ends a sentence and fills the places after it."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, harmless, nearest

END = "<eos>"
UNKNOWN = "<unk>"
MOST_WORDS = 10  # of a document that is shown


def build_vocabulary(sentences: Iterable[Sequence[str]], *, least: int = 1) -> tuple[str, ...]:
    """The end of a sentence, then all words that occur ``least`` times, the frequent first and ties in order of words.

    Words that are rarer become ``<unk>``, which then is a word like the others.
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    rare = [word for word, count in counts.items() if count < least and word != UNKNOWN]
    lost = sum(counts.pop(word) for word in rare)
    if lost:
        counts[UNKNOWN] += lost
    return (END, *sorted(counts, key=lambda word: (-counts[word], word)))


def encode_sentences(sentences: Sequence[Sequence[str]], vocabulary: Sequence[str], length: int) -> np.ndarray:
    """Tokens (n, length) int64: the words, then ends. A sentence of ``length`` words or more is cut and has no end."""
    place = {word: token for token, word in enumerate(vocabulary)}
    unknown = place.get(UNKNOWN)
    tokens = np.zeros((len(sentences), length), np.int64)
    for row, sentence in zip(tokens, sentences, strict=True):
        for t, word in enumerate(sentence[:length]):
            token = place.get(word, unknown)
            if token is None:
                raise UserError(f"The word {word!r} is not in the vocabulary, which has no {UNKNOWN}.")
            row[t] = token
    return tokens


def one_caption(text: str, spec: DataSpec) -> np.ndarray:
    """Tokens (1, length) of a sentence that a user has written, in the space of captions ``spec``."""
    words, known = text.lower().split(), spec.vocabulary
    if known is None or spec.end is None or len(spec.shape) != 1:
        raise UserError(f"caption={text}: the conditions of these data are no sentences ({spec}); leave caption out.")
    if not words:
        raise UserError("caption= has no words; write a sentence, such as those that dgm sample shows without it.")
    for word in words:
        if word not in known and UNKNOWN not in known:
            raise UserError(nearest(word, known, what="word of these captions"))
    if len(words) >= spec.shape[0]:
        raise UserError(f"caption= has {len(words)} words, and there is room for {spec.shape[0] - 1} and an end.")
    return encode_sentences([words], known, spec.shape[0])


def decode_tokens(x: np.ndarray, spec: DataSpec) -> list[str]:
    """Readable text for tokens (n, t): words are joined by blanks up to the end, characters as they are."""
    if spec.vocabulary is None:
        raise ValueError("these tokens have no vocabulary")
    joint = " " if any(len(word) > 1 for word in spec.vocabulary) else ""
    texts = []
    for row in x.tolist():
        stop = row.index(spec.end) if spec.end in row else len(row)
        texts.append(joint.join(spec.vocabulary[token] for token in row[:stop]))
    return texts


def frequent_words(x: np.ndarray, spec: DataSpec) -> list[str]:
    """The words with the largest counts, or scores, of each document x (n, words), those above 0 with their value."""
    if spec.vocabulary is None:
        raise ValueError("these counts have no vocabulary")
    texts = []
    for row in x:
        first = np.argsort(-row, kind="stable")[:MOST_WORDS]
        texts.append(", ".join(f"{spec.vocabulary[i]} {row[i]:.3g}" for i in first if row[i] > 0))
    return texts


def readable(x: np.ndarray, spec: DataSpec) -> list[str]:
    """A text for each of x (n, *shape), tokens or counts of words, without signs that would command a terminal."""
    flat = x.reshape(len(x), -1)
    texts = frequent_words(flat, spec) if spec.kind == "counts" else decode_tokens(flat, spec)
    return [harmless(text) for text in texts]
