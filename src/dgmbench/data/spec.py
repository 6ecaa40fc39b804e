"""What an example is: the contract between data sets and models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["binary", "discrete", "real", "counts", "tokens"]

DTYPES: dict[str, torch.dtype] = {
    "binary": torch.uint8,
    "discrete": torch.uint8,
    "real": torch.float32,
    "counts": torch.int64,
    "tokens": torch.int64,
}


@dataclass(frozen=True)
class DataSpec:
    """The space of one example ``x``, without the batch dimension.

    ``shape`` is ``(c, h, w)`` for images, ``(d,)`` for vectors and ``(t,)`` for sequences. Batches carry raw values:

    ========== ============ =======================================================================
    kind       dtype        values
    ========== ============ =======================================================================
    binary     uint8        0 and 1
    discrete   uint8        0 ... levels - 1 (256 levels for ordinary images, 17 for the small digits)
    real       float32      any finite number
    counts     int64        non-negative integers
    tokens     int64        indices below ``levels`` (the vocabulary size)
    ========== ============ =======================================================================

    ``log_prob(x)`` of any model is the log-probability (log-density for ``real``) of exactly these values,
    in nats per example, which is what makes numbers of different models comparable.

    Sentences of tokens may differ in length: ``end`` is the token that ends one, and fills the places after it up to
    the fixed length t. What follows the first ``end`` is certain, so it carries no nats, and any other token there has
    probability zero. A sentence without ``end`` is one that was longer, of which only the first t tokens are known.

    ``vocabulary`` (the word of each token, or of each count) and ``sampling_rate`` (Hz) say what the values look or
    sound like. They are no part of the space, so two specs that differ in nothing else are equal. Nor are ``factors``,
    names and numbers of values of known factors of variation: where there are any, a label y is the number of their
    combination, the last factor changing fastest (``numpy.unravel_index(y, sizes)``). Discrete values with a sampling
    rate are mu-law codes of a waveform (see :mod:`dgmbench.data.audio`). ``class_names`` are the names of labels 0, 1,
    ....

    *What is given.* Where ``given`` is a spec, an example comes with a condition c of that space (a caption, a small
    picture, a history), and models are of p(x | c).

    *Labels.* 0 ... ``num_classes`` - 1 without gaps; -1 is an example whose label is not known. With ``step_labels``,
    every step of a sequence has one.

    *Lengths.* With ``lengths``, examples are sequences along the first axis whose length differs: what lies behind it
    is padding, zeros in x and -1 in labels of steps, and no number depends on it. Models are of p(x | length).

    *Steps.* What a step of a sequence (t, d) looks like is no part of the space, either: ``frame`` is a picture of d =
    height * width values in rows; ``lowest_note`` is the MIDI number of the first of d notes that sound or not;
    ``bones`` are pairs of points to be joined, where a step is d / 2 points x_1, y_1, x_2, y_2, ..., y upwards;
    ``cepstra`` of its first values are mel-frequency cepstral coefficients.
    """

    shape: tuple[int, ...]
    kind: Kind
    levels: int | None = None
    num_classes: int | None = None
    end: int | None = None
    vocabulary: tuple[str, ...] | None = field(default=None, compare=False, repr=False)
    sampling_rate: int | None = field(default=None, compare=False)
    factors: tuple[tuple[str, int], ...] | None = field(default=None, compare=False, repr=False)
    class_names: tuple[str, ...] | None = field(default=None, compare=False, repr=False)
    given: "DataSpec | None" = None
    step_labels: bool = False
    lengths: bool = False
    frame: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    lowest_note: int | None = field(default=None, compare=False, repr=False)
    bones: tuple[tuple[int, int], ...] | None = field(default=None, compare=False, repr=False)
    cepstra: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.vocabulary is not None:
            object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
            counted = self.kind == "counts"
            named, what = (self.dim, "dimensions") if counted else (self.levels, "tokens")
            if len(self.vocabulary) != named:
                raise ValueError(f"a vocabulary of {len(self.vocabulary)} words does not name {named} {what}")
        if self.factors is not None:
            object.__setattr__(self, "factors", tuple((str(name), int(size)) for name, size in self.factors))
        if self.class_names is not None:
            object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
            if len(self.class_names) != self.num_classes:
                raise ValueError(f"{len(self.class_names)} class names do not name {self.num_classes} classes")
        if self.frame is not None:
            object.__setattr__(self, "frame", tuple(map(int, self.frame)))
        if self.bones is not None:
            object.__setattr__(self, "bones", tuple((int(a), int(b)) for a, b in self.bones))
        if isinstance(self.given, Mapping):
            object.__setattr__(self, "given", DataSpec(**self.given))
        if self.end is not None and not (self.kind == "tokens" and 0 <= self.end < (self.levels or 0)):
            raise ValueError(f"end={self.end} must be one of the tokens")
        if self.kind == "binary":
            object.__setattr__(self, "levels", 2)
        if self.kind in ("discrete", "tokens") and self.levels is None:
            raise ValueError(f"a DataSpec of kind {self.kind} needs its number of levels")

    @property
    def dim(self) -> int:
        """Number of scalar dimensions of one example."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def is_image(self) -> bool:
        """Whether one example is an image ``(c, h, w)``."""
        return len(self.shape) == 3

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of raw values."""
        return DTYPES[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values of which ``DataSpec(**values)`` makes the spec again."""
        always = ("shape", "kind", "levels", "num_classes")
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        if self.given is not None:
            plain["given"] = self.given.as_dict()
        return {
            key: value for key, value in plain.items() if key in always or (value is not None and value is not False)
        }

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        levels = f", {self.levels} levels" if self.kind in ("discrete", "tokens") else ""
        return f"{self.kind} {size}{levels}" + (f", given {self.given}" if self.given is not None else "")


class Batch(NamedTuple):
    """One batch taken from the data: raw values ``x`` (b, *shape), labels ``y`` (b,) int64 or None, and ``index``
    (b,) int64, the examples' positions in their split.

    ``given`` (b, *spec.given.shape) are raw conditions, ``length`` (b,) int64 the steps of each sequence that count;
    labels of steps are (b, t). A label of -1 is not known.
    """

    x: Tensor
    y: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which no batch needs
    given: Tensor | None = None
    length: Tensor | None = None
