"""What a reader promises of values, labels, conditions and lengths, looked at once, when a set is decoded."""

from typing import Any

import numpy as np

from dgmbench.data.reader import Chunks, Part
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError


def exactly(values: np.ndarray, dtype: Any, what: str) -> np.ndarray:
    """The values in another dtype, refused if any of them would be another number: no check is made of what a cast
    has changed, nor believed of what it is about to change.
    """
    if values.dtype.kind not in "buif":
        raise UserError(f"{what} has {values.dtype} values; give numbers.")
    with np.errstate(invalid="ignore"):
        cast = np.asarray(values).astype(dtype)
    # a wrapped number compares equal after another wrap, 2^64 - 1 as int64 with -1 say, so the signs must agree as well
    same = (cast == values) & ((cast < 0) == (values < 0))
    if not same.all():
        wrong = np.asarray(values).ravel()[int(np.argmin(same.ravel()))]
        raise UserError(f"{what} has {values.dtype} values such as {wrong}, which {np.dtype(dtype)} cannot hold.")
    return cast


def check_values(x: np.ndarray, spec: DataSpec, split: str, what: str = "values") -> np.ndarray:
    """Values are in the space that the spec describes, in the dtype they are kept in; returns them."""
    if x.size == 0:
        return x
    if spec.kind == "real":
        if not np.isfinite(x).all():
            raise UserError(
                f"The {split} split holds {what} that are NaN, infinite or beyond {x.dtype}; replace them or drop "
                "those examples."
            )
        return x
    low, high = int(x.min()), int(x.max())
    if low < 0 or (spec.levels is not None and high >= spec.levels):
        wanted = "zero or more" if spec.levels is None else f"0 ... {spec.levels - 1}"
        raise UserError(f"The {split} split holds {spec.kind} {what} from {low} to {high}; they must be {wanted}.")
    return x


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
        if not isinstance(part.given, Chunks):
            check_values(part.given, spec.given, split, "conditions")
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
