"""Captions of MS-COCO in the selection of the Texygen benchmark: 10,000 to train on and 10,000 to test.

T.-Y. Lin et al.: Microsoft COCO: common objects in context (2014), https://arxiv.org/abs/1405.0312
Y. Zhu et al.: Texygen: a benchmarking platform for text generation models (2018), https://arxiv.org/abs/1802.01886
"""

import re
from pathlib import Path

import numpy as np

from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.ptb import read_lines
from dgmbench.data.reader import Decoded, Part, split_off_the_end, take_parts
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import build_vocabulary, encode_sentences
from dgmbench.errors import require

WORD = re.compile(r"[\w'-]+|[^\w\s]")


class CocoCaptions(PublishedReader):
    """Tokens (length,): the words and punctuation marks of a caption, then its end.

    Words that occur once in the training captions, and those that occur only elsewhere, are ``<unk>``. The last
    ``valid`` training captions validate.
    """

    files = (
        PublishedFile("image_coco.txt", "sha256:2c0fd1f0f43aac6a9dc3926a535516ccf395de535e15ac1fd17cd569420736f5"),
        PublishedFile("test_coco.txt", "sha256:72e25c9fb4d2cd43182ac602c92f6ffc377762147f9709572943b0b09174bcae"),
    )
    instead = "they are part of the Texygen project, https://github.com/geek-ai/Texygen"

    def __init__(self, *, length: int = 40, valid: int | float = 1000, verify: bool = True) -> None:
        super().__init__(verify=verify)
        require("data", least=2, length=length)
        self.length, self.valid = length, valid

    def read(self, folder: Path) -> Decoded:
        """Cut the captions of both files into words."""
        train, test = (
            [WORD.findall(" ".join(line).lower()) for line in read_lines(self.path(folder, file.name))]
            for file in self.files
        )
        splits = split_off_the_end(len(train), valid=self.valid)
        vocabulary = build_vocabulary([train[i] for i in splits["train"]], least=2)
        x, held_out = (encode_sentences(lines, vocabulary, self.length) for lines in (train, test))
        parts = take_parts(x, None, splits, "image_coco.txt")
        parts["test"] = Part(held_out, None, "test_coco.txt", np.arange(len(held_out)))
        cut = sum(len(line) >= self.length for line in train + test)
        spec = DataSpec((self.length,), "tokens", len(vocabulary), end=0, vocabulary=vocabulary)
        return Decoded(spec, parts, {"sentences_cut": cut})
