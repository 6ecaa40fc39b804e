"""A million characters of Shakespeare's plays, as A. Karpathy put them together for char-rnn (2015)."""

from pathlib import Path

import numpy as np

from dgmbench.data.files import PublishedFile, PublishedReader
from dgmbench.data.reader import Decoded, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

SHARES = {"train": 0.90, "valid": 0.05, "test": 0.05}  # of the text, in this order


class TinyShakespeare(PublishedReader):
    """Tokens (length,): chunks of characters without overlap, which neither begin nor end with a sentence.

    The first 90 percent of the text train, the next 5 validate, the last 5 test; the characters that are left over at
    the end of each are dropped.
    """

    files = (
        PublishedFile(
            "input.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        ),
    )

    def __init__(self, *, length: int = 128, download: bool = False, verify: bool = True) -> None:
        super().__init__(download=download, verify=verify)
        require("data", least=2, length=length)
        self.length = length

    def read(self, folder: Path) -> Decoded:
        """Cut the text up."""
        path = self.path(folder, "input.txt")
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text in UTF-8 ({error.reason}); get it again.") from error
        vocabulary = tuple(sorted(set(text)))
        if len(vocabulary) < 2:
            raise UserError(f"{path} holds no text; get it again.")
        codes = np.searchsorted(list(vocabulary), list(text)).astype(np.int64)
        parts, start = {}, 0
        for split, share in SHARES.items():
            stop = len(codes) if split == "test" else start + round(share * len(codes))
            n = (stop - start) // self.length
            chunks = codes[start : start + n * self.length].reshape(n, self.length)
            index = start + self.length * np.arange(n)  # of each chunk's first character
            parts[split] = Part(chunks, None, f"characters {start} to {stop} in chunks of {self.length}", index)
            start = stop
        spec = DataSpec((self.length,), "tokens", len(vocabulary), vocabulary=vocabulary)
        return Decoded(spec, parts)
