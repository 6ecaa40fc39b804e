r"""Which checkpoint of a run is the best one, and whether its objective has been getting worse.

*When a decline is said.* The best of many noisy values is above their mean by chance, so a run that merely fluctuates
must stay unremarked. Let g_1 ... g_m be the objectives (their sign such that more is better), g_b the best, and s the
standard deviation of the l values of the latter half of the run about a straight line. What is said needs

- the best value in the first half of the images, so most of the run came after it;
- a mean of the latter half below g_b by more than s t sqrt(1 + 1 / l), where t is what Student's t with l - 2 degrees
  of freedom exceeds with probability ``CHANCE`` / m: the chance that the best of m independent normal values lies so
  far from the mean is below ``CHANCE``;
- the last value below g_b by more than ``ERRORS`` standard errors of a difference;
- ``LATE`` values in the latter half, so that s is known.

Of a thousand simulated runs of one level, none is remarked if their values are independent, and up to fifteen if
neighbours correlate by 0.7.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgmbench.evaluation.metrics import Metric

LATE, CHANCE, ERRORS = 8, 1e-3, 3.0


class Selection:
    """The best checkpoint's objective, and all objectives so far; both live in the run's checkpoints.

    ``compare`` says whether objectives of different stages compare.
    """

    def __init__(self, state: Mapping[str, Any], *, compare: bool) -> None:
        self.best: dict[str, Any] | None = state.get("best")
        self.validated: list[dict[str, Any]] = list(state.get("validated", ()))
        self.compare = compare
        self.between: dict[str, Any] | None = state.get("between")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "validated": self.validated, "between": self.between}

    def before_between(self) -> None:
        """Remember how things stand: the next objective is one that the budget's end adds, between two periods, and a
        larger budget would not see.
        """
        self.between = {"best": self.best, "validated": self.validated}

    def consider(self, name: str, metric: Metric, position: Mapping[str, Any]) -> bool:
        """Take note of an objective at a place in the run; whether it is the best one so far."""
        where = {key: position[key] for key in ("images", "epoch", "stage")}
        self.validated = [*self.validated, {**where, "value": metric.value, "se": metric.se}]
        before = _as_metric(self.best) if self.best is not None and self.holds_for(position["stage"]) else None
        if not metric.better_than(before):
            return False
        self.best = {"name": name, **metric.as_dict(), "images": position["images"], "stage": position["stage"]}
        return True

    def holds_for(self, stage: str) -> bool:
        """Whether there is a best objective, and one that those of a stage compare with."""
        return self.best is not None and (self.compare or self.best.get("stage", stage) == stage)

    def without_gain(self, stage: str) -> int:
        """How many validations of a stage (of all, where they compare) have passed since the best one."""
        if self.best is None or not self.holds_for(stage):
            return 0
        seen = [v for v in self.validated if self.compare or v["stage"] == stage]
        return sum(v["images"] > self.best["images"] for v in seen)

    def decline(self) -> str | None:
        """In words, if the objective has been getting worse for most of the run, or of its last stage; else None."""
        if self.best is None:
            return None
        stage = self.validated[-1]["stage"] if self.validated else None
        seen = [v for v in self.validated if self.compare or v["stage"] == stage]
        sign = 1.0 if self.best["direction"] == "higher" else -1.0
        found = declined(
            np.array([v["images"] for v in seen], float),
            sign * np.array([v["value"] for v in seen], float),
            np.array([v["se"] or 0.0 for v in seen], float),
        )
        if found is None:
            return None
        best, last = seen[found[0]], seen[found[1]]
        return (
            f"the {self.best['name']} on validation has got worse for most of the run, from {best['value']:.6g} at "
            f"epoch {best['epoch']:g} to {last['value']:.6g} at epoch {last['epoch']:g}; a smaller optimizer.lr, "
            "optimizer.schedule.name=linear or a smaller trainer.budget may suit it better"
        )


def declined(images: np.ndarray, gains: np.ndarray, errors: np.ndarray) -> tuple[int, int] | None:
    """The places of the best value and of the last one, if the second is the end of a decline; arrays (m,)."""
    finite = np.flatnonzero(np.isfinite(gains))
    if not len(finite):
        return None
    start = images[0] - (images[1] - images[0] if len(images) > 1 else 0)  # where the stage began, about
    middle = (start + images[-1]) / 2
    late = finite[images[finite] > middle]
    best, last = int(finite[gains[finite].argmax()]), int(finite[-1])
    if len(late) < LATE or images[best] > middle:
        return None
    from scipy.stats import t as student_t

    line = np.polynomial.Polynomial.fit(images[late], gains[late], 1)
    spread = math.sqrt(float(np.square(gains[late] - line(images[late])).sum()) / (len(late) - 2))
    error = math.hypot(errors[best], errors[last])
    reach = student_t.isf(CHANCE / len(finite), len(late) - 2) * math.sqrt(1 + 1 / len(late))
    low = gains[best] - gains[late].mean() > reach * spread and gains[best] - gains[last] > ERRORS * error
    return (best, last) if low else None


def _as_metric(stored: Mapping[str, Any]) -> Metric:
    return Metric(**{name: stored[name] for name in Metric.__dataclass_fields__ if name in stored})
