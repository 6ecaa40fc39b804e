"""scikit-learn's bundled tables, made into proper density estimation problems.

A density is unbounded where a column takes few distinct values, and a sampled grid of values lets a model put spikes
on it. So columns with fewer than 20 distinct values are dropped, and uniform noise as wide as the column's
resolution is added, before columns are standardised by the training rows.
"""

from functools import reduce
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data.reader import Decoded, Part, Reader, split_at_random
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest

MIN_DISTINCT = 20
TABLES = ("breast_cancer", "diabetes", "iris", "wine")


def resolution(column: np.ndarray) -> float:
    """The step of the grid that the recorded decimal values lie on: 0.1 for 1.5, 2.3, 0.9.

    >>> resolution(np.array([1.5, 2.3, 0.9]))
    0.2
    """
    decimals = next(
        (d for d in range(9) if np.allclose(column, np.round(column, d), rtol=0, atol=1e-9)),
        9,
    )
    steps = np.diff(np.unique(np.round(column * 10**decimals).astype(np.int64)))
    return reduce(gcd, steps.tolist()) / 10**decimals


class Tabular(Reader):
    """One bundled ``table``: real (d,), standardised; a class label where the table has one.

    There are no official splits: ``valid`` and ``test`` are dealt out by ``split_seed``. What was dropped and each
    column's resolution, mean and scale are recorded, so that densities can be moved to the original units.
    """

    prepared = False

    def __init__(
        self,
        *,
        table: str = "wine",
        valid: int | float = 0.1,
        test: int | float = 0.2,
        split_seed: int = 0,
    ) -> None:
        if table not in TABLES:
            raise UserError(nearest(table, TABLES, what="bundled table"))
        self.table, self.valid, self.test, self.split_seed = (
            table,
            valid,
            test,
            split_seed,
        )

    def read(self, folder: Path) -> Decoded:
        """Load, drop, add noise, split and standardise."""
        from sklearn import datasets

        # diabetes comes standardised unless told otherwise, and its target is a measurement, not a class
        options: dict[str, Any] = {"scaled": False} if self.table == "diabetes" else {}
        bunch = getattr(datasets, f"load_{self.table}")(**options)
        classes = len(bunch.target_names) if "target_names" in bunch else None
        values, names = (
            bunch.data.astype(np.float64),
            [str(name) for name in bunch.feature_names],
        )

        keep = [i for i in range(values.shape[1]) if len(np.unique(values[:, i])) >= MIN_DISTINCT]
        dropped = [name for i, name in enumerate(names) if i not in keep]
        values, names = values[:, keep], [names[i] for i in keep]
        steps = np.array([resolution(column) for column in values.T])
        values += steps * (np.random.RandomState(self.split_seed).uniform(size=values.shape) - 0.5)

        splits = split_at_random(len(values), seed=self.split_seed, valid=self.valid, test=self.test)
        mean, scale = values[splits["train"]].mean(0), values[splits["train"]].std(0)
        x = ((values - mean) / scale).astype(np.float32)
        y = None if classes is None else bunch.target.astype(np.int64)
        origin = f"sklearn.datasets.load_{self.table}"
        parts = {s: Part(x[i], None if y is None else y[i], origin, i) for s, i in splits.items()}
        columns = [
            {"name": n, "resolution": float(r), "mean": float(m), "scale": float(s)}
            for n, r, m, s in zip(names, steps, mean, scale, strict=True)
        ]
        remarks = {"table": self.table, "columns": columns, "dropped": dropped}
        return Decoded(DataSpec((x.shape[1],), "real", num_classes=classes), parts, remarks)
