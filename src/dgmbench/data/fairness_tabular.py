r"""A generated table with a sensitive attribute s, on which the features and the task label t depend; all is known.

    s ~ Bernoulli(1/2),  u ~ N(0, I_3),  x = A^T u + s d + 0.5 e,  e ~ N(0, I_10),
    t = 1 where a . u + bias (s - 1/2) + 0.5 e' > 0,  e' ~ N(0, 1).

u is merit, of which s says nothing; d is how s shows in the features and ``bias`` how it entered the decisions.
"""

import math
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from scipy.special import log_ndtr, ndtr
from scipy.stats import multivariate_normal

from dgmbench.data.random import keyed_seed
from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require

COLUMNS, MERITS, NOISE = 10, 3, 0.5
FACTORS = (("sensitive", 2), ("target", 2))
_world = RandomState(keyed_seed("fairness_tabular") % 2**32)
LOADINGS = _world.normal(size=(MERITS, COLUMNS)) / math.sqrt(MERITS)
SHIFT = np.where(np.arange(COLUMNS) % 2 == 0, 1.0, -0.5)
DECISION = np.array([1.0, 0.7, 0.0])


class FairnessTabular(Reader):
    """Independent draws for each split, real (10,); labels 2 s + t. ``seed`` is the data's own, not the run's.

    ``bias`` moves the decisions of the two groups apart, in units of merit. The record holds what the truth says of the
    test split: its mean log p(x), the accuracies of the best rules, and how often t = 1 in each group.
    """

    prepared = False

    def __init__(
        self, *, bias: float = 1.0, train: int = 5_000, valid: int = 1_000, test: int = 2_000, seed: int = 0
    ) -> None:
        for split, size in (sizes := {"train": train, "valid": valid, "test": test}).items():
            if not isinstance(size, int) or size < 1:
                raise UserError(f"data.{split} is {size!r}; give a number of rows of at least 1.")
        require("data", least=0, bias=bias, seed=seed)
        self.bias, self.sizes, self.seed = bias, sizes, seed

    def read(self, folder: Path) -> Decoded:
        """Draw the three splits."""
        parts = {}
        for split in SPLITS:
            n, rng = self.sizes[split], RandomState(keyed_seed("fairness_tabular", split, self.seed) % 2**32)
            s, merit = rng.randint(2, size=n), rng.normal(size=(n, MERITS))
            x = merit @ LOADINGS + s[:, None] * SHIFT + NOISE * rng.normal(size=(n, COLUMNS))
            t = merit @ DECISION + self.bias * (s - 0.5) + NOISE * rng.normal(size=n) > 0
            origin = f"fairness_tabular {split} seed {self.seed}"
            parts[split] = Part(x.astype(np.float32), (2 * s + t).astype(np.int64), origin, np.arange(n))
        x = x.astype(np.float32).astype(np.float64)  # the last split is the test split
        joint = self.log_joint(x)
        best = {
            name: float(np.exp(joint.max(axis=1) - np.logaddexp.reduce(joint, axis=1)).mean())
            for name, joint in (
                ("sensitive", np.logaddexp.reduce(joint, axis=2)),
                ("target", np.logaddexp.reduce(joint, axis=1)),
            )
        }
        remarks = {
            "test_log_likelihood_nats": float(self.log_prob(x).mean()),
            "best_sensitive_accuracy": best["sensitive"],
            "best_target_accuracy": best["target"],
            "target_rates": self.target_rates().tolist(),
        }
        return Decoded(DataSpec((COLUMNS,), "real", num_classes=4, factors=FACTORS), parts, remarks)

    def log_joint(self, x: np.ndarray) -> np.ndarray:
        """log p(x, s, t) of rows x (n, 10), as (n, s, t), in nats."""
        covariance = LOADINGS.T @ LOADINGS + NOISE**2 * np.eye(COLUMNS)
        gain = np.linalg.solve(covariance, LOADINGS.T @ DECISION)  # E[a . u | x, s] = gain . (x - s d)
        spread = math.sqrt(DECISION @ DECISION - DECISION @ LOADINGS @ gain + NOISE**2)
        groups = []
        for s in (0, 1):
            apart = x - s * SHIFT
            of_x = multivariate_normal(np.zeros(COLUMNS), covariance).logpdf(apart).reshape(-1) - math.log(2)
            margin = (apart @ gain + self.bias * (s - 0.5)) / spread
            groups.append(of_x[:, None] + log_ndtr(np.stack([-margin, margin], axis=1)))
        return np.stack(groups, axis=1)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x) of rows x (n, 10), as (n,), in nats."""
        total: np.ndarray = np.logaddexp.reduce(self.log_joint(x).reshape(len(x), 4), axis=1)
        return total

    def target_rates(self) -> np.ndarray:
        """p(t = 1 | s) of the two groups."""
        spread = math.sqrt(DECISION @ DECISION + NOISE**2)
        rates: np.ndarray = ndtr(self.bias * np.array([-0.5, 0.5]) / spread)
        return rates
