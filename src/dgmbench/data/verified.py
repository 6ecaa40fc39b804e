"""Whether prepared arrays are still what was written: compared with their content hash when a set is opened.

sha256 takes about 0.7 s of one core a gigabyte (and the disk's time, where the arrays are not in memory yet). Sets of
up to ``AT_ONCE`` bytes are compared before they are used; the hash of larger ones is taken in a thread of its own while
the training begins, and nothing is saved or recorded before it agrees. A process compares each state of a file once.
"""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.errors import UserError

AT_ONCE = 2**28  # bytes: a fifth of a second
_agreed: set[tuple[Any, ...]] = set()

Hash = Callable[[Mapping[str, np.ndarray]], str]
Wait = Callable[[], None]


def settled() -> None:
    """The wait for arrays of which nothing is left to compare."""


def compared(folder: Path, arrays: Mapping[str, np.ndarray], expected: str, hashed: Hash) -> Wait | None:
    """Compare the maps of ``folder`` with their content hash; None if they differ.

    What is returned waits until a comparison that goes on beside has ended, and raises a UserError if they differ.
    """
    states = (os.stat(folder / f"{name}.npy") for name in arrays)
    key = (str(folder), expected, *((state.st_ino, state.st_size, state.st_mtime_ns) for state in states))
    if key in _agreed:
        return settled
    if sum(array.nbytes for array in arrays.values()) > AT_ONCE:
        return _Beside(folder, lambda: hashed(arrays) == expected, key).wait
    if hashed(arrays) != expected:
        return None
    _agreed.add(key)
    return settled


class _Beside:
    """A comparison in a thread of its own; hashing leaves the interpreter to others."""

    def __init__(self, folder: Path, agree: Callable[[], bool], key: tuple[Any, ...]) -> None:
        self.folder, self._agree, self._key = folder, agree, key
        self._same: bool | BaseException = False
        self._thread = threading.Thread(target=self._compare, daemon=True)
        self._thread.start()

    def _compare(self) -> None:
        try:
            self._same = self._agree()
        except BaseException as error:
            self._same = error

    def wait(self) -> None:
        """Return when the arrays are known to be what was written."""
        self._thread.join()
        if self._same is True:
            _agreed.add(self._key)
            return
        (self.folder / "meta.json").unlink(missing_ok=True)  # so that it is prepared again
        raise UserError(
            f"The prepared set {self.folder} is not what was written: its values do not have the hash in its record. "
            "Nothing was recorded; give the same command again, which prepares it anew."
        ) from (self._same if isinstance(self._same, BaseException) else None)
