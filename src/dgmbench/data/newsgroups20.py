"""20 Newsgroups as counts of words, in the preprocessing and splits of the embedded topic model's paper.

K. Lang: NewsWeeder, learning to filter netnews (1995); A. B. Dieng, F. J. R. Ruiz, D. M. Blei: Topic modeling in
embedding spaces (2020), https://doi.org/10.1162/tacl_a_00325, whose repository https://github.com/adjidieng/ETM holds
the counts: stop words are out, and words in fewer than 100 documents. The literature on replicated softmax uses another
set of the same name, of 2,000 words.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgmbench.data.checks import exactly
from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.npz import open_npz
from dgmbench.data.reader import SPLITS, Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

FILE = "newsgroups20_bow.npz"


class Newsgroups20(PublishedReader):
    """Counts (words,) of the ``words`` most frequent words of the training set, the frequent first; no labels.

    The file holds ``vocab``, and of each split the documents' words as ``<split>_indptr``, ``_indices``, ``_counts``:
    those of document i lie from ``indptr[i]`` to ``indptr[i + 1]``. Documents of which no word is kept are left out.
    """

    files = (PublishedFile(FILE, "sha256:4790c39b856415a4051098b2dd8bdde77baeedfc5006526a123fdfaa5f09bc9c"),)
    instead = (
        "make it of the .mat files of github.com/adjidieng/ETM (data/20ng): vocab, and of train, valid and test "
        "the arrays SPLIT_indptr, SPLIT_indices and SPLIT_counts"
    )

    def __init__(self, *, words: int = 3072, verify: bool = True) -> None:
        super().__init__(verify=verify)
        require("data", least=2, words=words)
        self.words = words

    def read(self, folder: Path) -> Decoded:
        """Decode the three splits."""
        path = self.path(folder, FILE)
        arrays = open_npz(path)
        needed = ("vocab", *(f"{split}_{part}" for split in SPLITS for part in ("indptr", "indices", "counts")))
        if missing := [key for key in needed if key not in arrays]:
            raise UserError(f"{path} lacks {', '.join(missing)}; get it again.")
        vocab = arrays["vocab"]
        if vocab.ndim != 1 or vocab.dtype.kind not in "SU" or len(vocab) < self.words:
            raise UserError(f"{path} names {len(vocab)} words; data.words={self.words} must be no more.")
        names = np.char.decode(vocab, "utf-8", "replace") if vocab.dtype.kind == "S" else vocab
        every = {split: _documents(arrays, split, len(vocab), path) for split in SPLITS}
        frequency = np.bincount(every["train"].word, every["train"].times, minlength=len(vocab))
        kept = np.argsort(-frequency, kind="stable")[: self.words]
        parts, left_out = {}, {}
        for split, documents in every.items():
            x = documents.of(kept, len(vocab))
            index = np.flatnonzero(x.sum(1))
            left_out[split] = len(x) - len(index)
            parts[split] = Part(x[index], None, f"official {split} set", index)
        spec = DataSpec((self.words,), "counts", vocabulary=tuple(names[kept].tolist()))
        return Decoded(spec, parts, {"documents_left_out": left_out})


class Documents(NamedTuple):
    """Which document (m,) has which word (m,), how often (m,), and how many documents there are."""

    document: np.ndarray
    word: np.ndarray
    times: np.ndarray
    documents: int

    def of(self, kept: np.ndarray, words: int) -> np.ndarray:
        """Counts (documents, kept) int64 of the words ``kept`` among all."""
        place = np.full(words, -1)
        place[kept] = np.arange(len(kept))
        column = place[self.word]
        x, some = np.zeros((self.documents, len(kept)), np.int64), column >= 0
        np.add.at(x, (self.document[some], column[some]), self.times[some])
        return x


def _documents(arrays: dict[str, np.ndarray], split: str, words: int, path: Path) -> Documents:
    """The words of one split."""
    begin, word, count = (
        exactly(arrays[f"{split}_{part}"], np.int64, f"{split}_{part} in {path}")
        for part in ("indptr", "indices", "counts")
    )
    good = begin.ndim == word.ndim == count.ndim == 1 and len(word) == len(count) and len(begin) > 1
    if not good or begin[0] != 0 or begin[-1] != len(word) or (np.diff(begin) < 0).any():
        raise UserError(f"The {split} arrays of {path} do not fit each other; get it again.")
    if len(word) and (word.min() < 0 or word.max() >= words or count.min() < 1):
        raise UserError(f"The {split} set of {path} has words that are none of {words}, or counts below 1.")
    return Documents(np.repeat(np.arange(len(begin) - 1), np.diff(begin)), word, count, len(begin) - 1)
