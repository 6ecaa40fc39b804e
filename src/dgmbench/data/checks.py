"""What a reader promises of labels, conditions and lengths, looked at once, when a set is decoded."""

import numpy as np

from dgmbench.data.reader import Chunks, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError


def check_labels(part: Part, spec: DataSpec, split: str) -> None:
    """Labels are int64, one an example or one a step, -1 where they are not known and 0 ... K-1 elsewhere."""
    y, n = part.y, part.x.shape[0]
    if y is None:
        return
    shape = (n, spec.shape[0]) if spec.step_labels else (n,)
    if y.shape != shape or y.dtype != np.int64:
        wanted = f"({n}, {spec.shape[0]})" if spec.step_labels else f"({n},)"
        raise UserError(f"The {split} labels are {y.dtype} {y.shape}; they must be int64 {wanted}.")
    low, high = int(y.min()), int(y.max())
    if low < -1 or (spec.num_classes is not None and high >= spec.num_classes):
        classes = "0, 1, ..." if spec.num_classes is None else f"0 ... {spec.num_classes - 1}"
        raise UserError(f"The {split} labels go from {low} to {high}; they must be {classes}, or -1 where not known.")
    if split == "train" and high < 0:
        raise UserError("No training example has a label; leave the labels out or label some.")


def check_conditions(part: Part, spec: DataSpec, split: str) -> None:
    """Conditions and lengths are there if and only if the spec has them, of its shape and dtype; padding is zero."""
    n = part.x.shape[0]
    if (part.given is None) != (spec.given is None):
        raise UserError(f"The {split} split has conditions, or the set's description has, but not both.")
    if part.given is not None and spec.given is not None:
        found, dtype = part.given.shape, str(spec.given.dtype).removeprefix("torch.")
        if found != (n, *spec.given.shape) or part.given.dtype != np.dtype(dtype):
            raise UserError(
                f"The {split} split holds {part.given.dtype} conditions {found}, but they are described as "
                f"{spec.given}, one for each of {n} examples."
            )
    if (part.length is not None) != spec.lengths:
        raise UserError(f"The {split} split has lengths, or the set's description has, but not both.")
    if part.length is None:
        return
    steps = spec.shape[0]
    if part.length.shape != (n,) or part.length.dtype != np.int64:
        raise UserError(f"The {split} lengths are {part.length.dtype} {part.length.shape}; they must be int64 ({n},).")
    if part.length.min() < 1 or part.length.max() > steps:
        raise UserError(
            f"The {split} lengths go from {part.length.min()} to {part.length.max()}; they must be 1 ... {steps}."
        )
    padding = np.arange(steps) >= part.length[:, None]
    x = part.x.array() if isinstance(part.x, Chunks) else part.x
    if x[padding].any() or (spec.step_labels and part.y is not None and (part.y[padding] != -1).any()):
        raise UserError(f"The {split} split has values behind the end of a sequence; padding is 0, and -1 in labels.")
