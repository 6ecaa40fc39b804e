"""A number and everything that says what it means."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import Tensor

NumberKind = Literal["exact", "lower bound", "upper bound", "estimate"]
Direction = Literal["higher", "lower", "none"]


@dataclass(frozen=True)
class Metric:
    """One value: ``kind`` says how it relates to the truth, ``se`` is its standard error over ``n`` examples;
    ``note`` warns where the number should not be relied on.
    """

    value: float
    unit: str
    kind: NumberKind
    direction: Direction
    se: float | None = None
    n: int | None = None
    protocol_id: str = ""
    note: str | None = None

    @classmethod
    def mean_of(cls, values: Tensor, *, unit: str, kind: NumberKind, direction: Direction) -> "Metric":
        """Mean and standard error of per-example values (n,)."""
        values = values.double()
        n = values.numel()
        se = float(values.std() / math.sqrt(n)) if n > 1 else None
        return cls(float(values.mean()), unit, kind, direction, se, n)

    def scaled(self, factor: float, unit: str) -> "Metric":
        """The same number in another unit; a negative factor turns bounds and direction round."""
        kind, direction = self.kind, self.direction
        if factor < 0:
            kinds: dict[NumberKind, NumberKind] = {"lower bound": "upper bound", "upper bound": "lower bound"}
            directions: dict[Direction, Direction] = {"higher": "lower", "lower": "higher"}
            kind, direction = kinds.get(kind, kind), directions.get(direction, direction)
        se = None if self.se is None else abs(factor) * self.se
        return replace(self, value=factor * self.value, se=se, unit=unit, kind=kind, direction=direction)

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


def bits_per_dim(nats: Metric, dim: int) -> Metric:
    """The one place where log-likelihood in nats per example becomes bits per dimension: -nats / (D log 2)."""
    return nats.scaled(-1.0 / (dim * math.log(2.0)), "bits/dim")


def nats_per_token(values: Tensor, tokens: Tensor, kind: NumberKind) -> Metric:
    """Negative log-likelihood per token of a whole split, from log-likelihoods (n,) and numbers of tokens (n,).

    A ratio of sums, not a mean of ratios: every token weighs the same. The standard error is that of a ratio of means
    over independent examples; ``n`` is the number of tokens.
    """
    values, tokens = values.double(), tokens.double()
    count, examples = float(tokens.sum()), len(values)
    nats = -float(values.sum()) / count
    se = float((-values - nats * tokens).std()) * math.sqrt(examples) / count if examples > 1 else None
    return Metric(-nats, "nats/token", kind, "higher", se, round(count)).scaled(-1.0, "nats/token")


def perplexity(per_token: Metric) -> Metric:
    """The one place where nats per token become a perplexity: exp(nats / token)."""
    value = math.exp(min(per_token.value, 700.0))
    se = None if per_token.se is None else value * per_token.se
    return replace(per_token, value=value, se=se, unit="perplexity")


def protocol_id(protocol: Mapping[str, Any]) -> str:
    """A short name for a protocol: 8 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(protocol, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]
