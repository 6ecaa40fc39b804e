"""Labels as readers make them: without gaps, and known for few examples only where that is what is studied."""

from collections.abc import Mapping

import numpy as np

from dgmbench.errors import UserError

UNLABELLED = -1
"""The label of an example whose label is not known."""


def numbered(labels: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int, tuple[str, ...] | None]:
    """Labels of several splits as 0 ... K-1 without gaps, K, and what they were called; None if nothing had to change.

    -1 stays what it is. Labels that are 0 ... K-1 already keep their numbers.
    """
    values = np.unique(np.concatenate([y[y >= 0].ravel() for y in labels.values()]))
    if np.array_equal(values, np.arange(len(values))):
        return dict(labels), len(values), None
    renumbered = {split: np.where(y < 0, UNLABELLED, np.searchsorted(values, y)) for split, y in labels.items()}
    return renumbered, len(values), tuple(map(str, values.tolist()))


def few_labels(y: np.ndarray, *, per_class: int, draw: int) -> np.ndarray:
    """Labels (n,) of which ``per_class`` of each class are kept, all others -1; ``draw`` says which.

    ``RandomState`` because its stream is frozen across numpy versions, as a recorded choice must be.
    """
    if per_class < 1:
        raise UserError(f"data.labels_per_class={per_class} must be at least 1.")
    if not 0 <= draw < 2**32:
        raise UserError(f"data.draw={draw} must be a whole number from 0 to {2**32 - 1}.")
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < per_class:
        raise UserError(
            f"data.labels_per_class={per_class} is more than the {counts.min()} training examples of class "
            f"{classes[counts.argmin()]}; keep fewer."
        )
    random, kept = np.random.RandomState(draw), np.full_like(y, UNLABELLED)
    for label in classes:
        chosen = random.permutation(np.flatnonzero(y == label))[:per_class]
        kept[chosen] = label
    return kept
