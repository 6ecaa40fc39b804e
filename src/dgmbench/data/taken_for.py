"""What a user's numbers were taken for, where they may have meant something else, and where a density of them cannot be
bounded: sentences for whoever trains on them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dgmbench.data.large import first_rows
from dgmbench.data.spec import DataSpec
from dgmbench.errors import some_of

ROWS = 20_000  # the first ones that are looked at
REPEATED = 0.5  # of the rows: a column of real values with fewer different ones is rounded
FEWEST = 20  # rows, below which that says nothing
LEVEL = 1e-4  # how far from a whole number 255 times a float32 grey value may be


def taken_for(xs: Mapping[str, np.ndarray], spec: DataSpec) -> list[str]:
    """What x (n, *shape) as given looks like, if values of no stated kind were taken for real numbers."""
    if spec.kind != "real":
        return []
    x = first_rows(xs["train"], ROWS)
    low, high, whole = x.min(), x.max(), bool((x == np.round(x)).all())
    if whole and low < 0:
        return [
            f"x is whole numbers from {low:g} to {high:g}, taken for real values, whose density has no bound there; "
            "shift them to begin at 0 if they are counts or levels (data.kind=counts or discrete)"
        ]
    if whole:
        return [
            f"x is whole numbers from {low:g} to {high:g} kept as floats, taken for real values, whose density has no "
            "bound there; say data.kind=counts or data.kind=discrete if they are that"
        ]
    if low >= 0 and high <= 1 and np.abs(x * 255.0 - np.round(x * 255.0)).max() <= LEVEL:
        return [
            "x is 256 grey levels as floats in [0, 1], taken for real values, whose density has no bound there; save "
            "(255 * x).round() as bytes if they are grey levels"
        ]
    if spec.is_image and low >= 0 and high <= 1:
        return [
            "x is floats in [0, 1] of images, taken for real values; save (255 * x).round() as bytes if they are grey "
            "levels, for likelihoods in bits/dim that compare"
        ]
    return []


def unbounded(x: np.ndarray, spec: DataSpec, columns: Sequence[str] = ()) -> list[str]:
    """Columns of real values x (n, *shape) where a density can grow without bound: constant, equal, rounded."""
    if spec.kind != "real":
        return []
    rows = x[:ROWS].reshape(len(x[:ROWS]), -1)
    names = columns or [str(i) for i in range(rows.shape[1])]
    constant, equal, rounded = [], [], []
    first: dict[bytes, str] = {}
    for name, column in zip(names, rows.T, strict=True):
        different = len(np.unique(column))
        same = first.setdefault(np.ascontiguousarray(column).tobytes(), name)
        if different == 1:
            constant.append(name)
        elif same != name:
            equal.append(f"{name} = {same}")
        elif len(column) >= FEWEST and different < REPEATED * len(column):
            rounded.append(f"{name}: {different} values")
    reasons = {
        "constant": (constant, "leave them out"),
        "the same as another one": (equal, "leave them out"),
        "rounded, with many equal values": (rounded, "add noise as wide as their steps, or leave them out"),
    }
    return [
        f"{some_of(found, 'column')} of x {'is' if len(found) == 1 else 'are'} {what}: a density has no bound there, "
        f"and likelihoods say little; {advice}"
        for what, (found, advice) in reasons.items()
        if found
    ]
