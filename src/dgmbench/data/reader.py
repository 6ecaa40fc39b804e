"""What a reader of one data set is, and the splits it is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Chunks:
    """An array too large to decode in one piece: its shape and dtype, and its rows in order, some at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Callable[[], Iterator[np.ndarray]]

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Chunks":
        """The same with ``function``, which keeps shape and dtype, applied to the rows."""
        return Chunks(self.shape, self.dtype, lambda: (function(rows) for rows in self.rows()))

    def array(self) -> np.ndarray:
        """All rows in memory."""
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.rows()])


@dataclass(frozen=True)
class Part:
    """One split as a reader gives it: raw values ``x`` (n, *shape), labels ``y`` (n,), and where they came from:
    positions ``index`` in the file or table named ``origin``.

    ``given`` (n, *spec.given.shape) and ``length`` (n,) int64 where the spec has them; labels of steps are (n, t).
    """

    x: np.ndarray | Chunks
    y: np.ndarray | None
    origin: str
    index: np.ndarray
    given: np.ndarray | Chunks | None = None
    length: np.ndarray | None = None


@dataclass(frozen=True)
class Decoded:
    """A whole set: the spec of its values, its three splits, and remarks for the record (plain JSON values).

    ``notes``, asked once the values are there, are sentences without their full stop on what the user's data were taken
    for, what was passed over and what was changed; everyone who trains on them reads these.
    """

    spec: DataSpec
    parts: Mapping[str, Part]
    remarks: Mapping[str, Any] = field(default_factory=dict)
    notes: Callable[[], Sequence[str]] = tuple
    alone: bool = False
    """Whether the set is a single example, which is each of its splits."""


class Reader(ABC):
    """Base of all readers. A subclass takes keyword-only plain values: the options of ``configs/data/NAME.yaml``.

    ``prepared`` says whether the decoded arrays are kept on disk (see :mod:`dgmbench.data.prepared`); sets that are
    embedded or generated in a moment are built in memory each time.
    """

    prepared: ClassVar[bool] = True

    def source(self, folder: Path) -> Mapping[str, Any]:
        """Identify the input in plain JSON values, cheaply; a changed source is prepared again.

        ``folder`` is the set's own folder under the data root.
        """
        return {}

    def fetch(self, folder: Path) -> None:
        """Make sure that all files are there, downloading them if that was asked for; raises UserError if not."""
        return

    def log_prob(self, x: np.ndarray) -> np.ndarray | None:
        """The exact log-probability of raw values x (n, *shape) under the distribution that a generated set comes from,
        (n,) float64 in nats and -inf outside it; None where nobody knows it.
        """
        return None

    def log_prob_given(self, x: np.ndarray, given: np.ndarray) -> np.ndarray | None:
        """The same of log p(x | given) under conditions (n, *given shape), where examples have them."""
        return None

    def oracle(self, x: np.ndarray, given: np.ndarray | None = None) -> np.ndarray | None:
        """``log_prob`` of raw values, or ``log_prob_given`` where there are conditions."""
        return self.log_prob(x) if given is None else self.log_prob_given(x, given)

    def factors_of(self, x: np.ndarray) -> np.ndarray | None:
        """The values (n, factors) int64 of the spec's factors that raw values x (n, *shape) show, where a generated set
        can read them off whatever it is shown; None where nobody can.
        """
        return None

    @abstractmethod
    def read(self, folder: Path) -> Decoded:
        """Decode everything; raises UserError for whatever is wrong with the input."""


def held_out_size(size: int | float, n: int, what: str) -> int:
    """The number of examples meant by ``size``: a count, or a share of ``n`` if below 1."""
    if isinstance(size, bool) or not isinstance(size, int | float) or size < 0 or (size >= 1 and size != int(size)):
        raise UserError(f"The {what} split is {size!r}; give a number of examples or a share between 0 and 1.")
    return round(size * n) if size < 1 else int(size)


def split_at_random(n: int, *, seed: int, valid: int | float = 0, test: int | float = 0) -> dict[str, np.ndarray]:
    """Deal the positions 0 ... n-1 out to the splits; each keeps its positions in ascending order.

    ``RandomState`` because its stream is frozen across numpy versions, as a recorded split must be.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"data.split_seed={seed} must be a whole number from 0 to {2**32 - 1}.")
    n_valid, n_test = held_out_size(valid, n, "valid"), held_out_size(test, n, "test")
    if n_valid + n_test >= n:
        raise UserError(
            f"Splitting off {n_valid} validation and {n_test} test examples leaves none of {n} for training; "
            "hold out fewer or provide more data."
        )
    order = np.random.RandomState(seed).permutation(n)
    bounds = {
        "test": (0, n_test),
        "valid": (n_test, n_test + n_valid),
        "train": (n_test + n_valid, n),
    }
    return {split: np.sort(order[slice(*bounds[split])]) for split in SPLITS}


def alone(part: Part) -> dict[str, Part]:
    """A single example as all three splits."""
    return dict.fromkeys(SPLITS, part)


ALONE = "the only example trains, validates and tests alike: numbers say how well it was learned, not of any other"


def split_off_the_end(n: int, *, valid: int | float) -> dict[str, np.ndarray]:
    """Positions 0 ... n-1 of an official training set: the last ``valid`` of them validate, the others train."""
    n_valid = held_out_size(valid, n, "valid")
    if n_valid >= n:
        raise UserError(f"Splitting off {n_valid} validation examples leaves none of {n} for training; hold out fewer.")
    return {"train": np.arange(n - n_valid), "valid": np.arange(n - n_valid, n)}


def rows_at(x: np.ndarray | Chunks, index: np.ndarray) -> np.ndarray | Chunks:
    """The rows at ascending positions."""
    if not isinstance(x, Chunks):
        return x[index]

    def rows() -> Iterator[np.ndarray]:
        start = 0
        for part in x.rows():
            low, high = np.searchsorted(index, (start, start + len(part)))
            if high > low:
                yield part[index[low:high] - start]
            start += len(part)

    return Chunks((len(index), *x.shape[1:]), x.dtype, rows)


def take_parts(
    x: np.ndarray | Chunks,
    y: np.ndarray | None,
    splits: Mapping[str, np.ndarray],
    origin: str,
    *,
    given: np.ndarray | Chunks | None = None,
    length: np.ndarray | None = None,
) -> dict[str, Part]:
    """The parts of ``x`` and what goes with it at the positions of each split."""

    def at(values: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
        return None if values is None else values[index]

    def beside(index: np.ndarray) -> np.ndarray | Chunks | None:
        return None if given is None else rows_at(given, index)

    return {name: Part(rows_at(x, i), at(y, i), origin, i, beside(i), at(length, i)) for name, i in splits.items()}
