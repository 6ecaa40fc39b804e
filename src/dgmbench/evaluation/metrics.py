"""A number and everything that says what it means."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from dgmbench.models.tasks import Direction, NumberKind

__all__ = ["Direction", "Metric", "NumberKind", "not_finite", "protocol_id"]


@dataclass(frozen=True)
class Metric:
    """One value: ``kind`` says how it relates to the truth, ``se`` is its standard error over ``n`` examples.

    ``se`` covers all noise: other examples and other draws. ``se_draws`` is the part that other random draws on the
    same examples would show, where it is known. ``note`` warns where the number should not be relied on.
    """

    value: float
    unit: str
    kind: NumberKind
    direction: Direction
    se: float | None = None
    n: int | None = None
    protocol_id: str = ""
    note: str | None = None
    se_draws: float | None = None

    @classmethod
    def mean_of(
        cls,
        values: Tensor,
        *,
        unit: str,
        kind: NumberKind,
        direction: Direction,
        draw_variance: Tensor | None = None,
        note: str | None = None,
    ) -> "Metric":
        """Mean and standard error of per-example values (n,), whose variances over their own draws may be known.

        Values that are not finite leave no mean; the note counts them.
        """
        values = values.double()
        n = values.numel()
        se = float(values.std() / math.sqrt(n)) if n > 1 else None
        se_draws = None if draw_variance is None else math.sqrt(float(draw_variance.double().sum())) / n
        found = cls(float(values.mean()), unit, kind, direction, se, n, note=note, se_draws=se_draws)
        return found.noting(not_finite(values))

    def noting(self, text: str | None) -> "Metric":
        """The same number with one more remark, if there is one."""
        return replace(self, note="; ".join(filter(None, (self.note, text)))) if text else self

    def scaled(self, factor: float, unit: str) -> "Metric":
        """The same number in another unit; a negative factor turns bounds and direction round."""
        kind, direction = self.kind, self.direction
        if factor < 0:
            kinds: dict[NumberKind, NumberKind] = {"lower bound": "upper bound", "upper bound": "lower bound"}
            directions: dict[Direction, Direction] = {"higher": "lower", "lower": "higher"}
            kind, direction = kinds.get(kind, kind), directions.get(direction, direction)
        se, se_draws = (None if each is None else abs(factor) * each for each in (self.se, self.se_draws))
        return replace(
            self, value=factor * self.value, se=se, se_draws=se_draws, unit=unit, kind=kind, direction=direction
        )

    def better_than(self, other: "Metric | None") -> bool:
        """Whether this value is the better one; any finite value beats nothing, others beat nothing at all."""
        if not math.isfinite(self.value):
            return False
        if other is None:
            return True
        return self.value > other.value if self.direction == "higher" else self.value < other.value

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a value that is not finite becomes null."""
        plain = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


def not_finite(values: Tensor) -> str | None:
    """How many of the per-example values (n,) are not finite, in words; None if all are."""
    bad = int((~values.isfinite()).sum())
    return f"{bad} of {values.numel()} values are not finite" if bad else None


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """A short name for a protocol: 8 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(protocol, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]
