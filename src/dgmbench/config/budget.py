"""Amounts of training with their unit: ``20ep`` (epochs), ``5000ba`` (batches), ``3e6im`` (images), ``60s``."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from dgmbench.errors import UserError

UNITS = {"ep": "epochs", "ba": "batches", "im": "images", "s": "seconds"}
EXAMPLES = {"ep": "20ep", "ba": "5000ba", "im": "3e6im", "s": "60s"}
_AMOUNT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*([a-zA-Z]*)")


@dataclass(frozen=True)
class Amount:
    """A positive amount of training, such as a budget or the period of a validation pass.

    >>> Amount.parse("20ep").batches(images_per_epoch=1000, global_batch=100)
    200
    """

    value: Fraction
    unit: str

    @classmethod
    def parse(
        cls, text: object, units: Sequence[str] = ("ep", "ba", "im"), *, what: str = "budget", zero: bool = False
    ) -> "Amount":
        """Read ``text``; ``what`` names the setting in errors, ``zero`` allows an amount of nothing."""
        forms = [f"{EXAMPLES[unit]} ({UNITS[unit]})" for unit in units]
        advice = f"write for instance {', '.join(forms[:-1])} or {forms[-1]}" if forms[1:] else f"write {forms[0]}"
        match = _AMOUNT.fullmatch(str(text).strip())
        if match is None:
            raise UserError(f"{what}={text} is not an amount: {advice}.")
        number, unit = match.groups()
        if unit not in units:
            wrong = f"has the unit '{unit}', which does not fit here" if unit else "has no unit"
            raise UserError(f"{what}={text} {wrong}: {advice}.")
        value = Fraction(number)
        if value < 0 or (value == 0 and not zero):
            raise UserError(f"{what}={text} must be {'at least' if zero else 'more than'} zero: {advice}.")
        if unit in ("ba", "im") and value.denominator != 1:
            raise UserError(f"{what}={text} must be a whole number of {UNITS[unit]}: {advice}.")
        return cls(value, unit)

    def batches(self, images_per_epoch: int, global_batch: int) -> int:
        """The amount in batches of ``global_batch`` images (all ranks together), rounded up."""
        if self.unit == "ba":
            return int(self.value)
        if self.unit not in ("ep", "im"):
            raise ValueError(f"{self} cannot be counted in batches")
        images = self.value * images_per_epoch if self.unit == "ep" else self.value
        return math.ceil(images / global_batch)

    @property
    def seconds(self) -> float | None:
        """The amount in seconds, or None if it is one of data."""
        return float(self.value) if self.unit == "s" else None

    def __str__(self) -> str:
        return f"{float(self.value):.12g}{self.unit}"
