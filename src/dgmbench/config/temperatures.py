"""The inverse temperatures of an annealing, as a protocol writes them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dgmbench.errors import UserError

Temperatures = int | Sequence[float] | Sequence[Sequence[float]] | Any
"""Steps, inverse temperatures, or pieces [end, steps]; a tensor of inverse temperatures too."""


def schedule(temperatures: Temperatures) -> list[float]:
    """Inverse temperatures from 0 to 1: evenly spaced steps, pieces of them, or the given increasing values.

    >>> schedule(4)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> schedule([(0.5, 1), (1.0, 2)])
    [0.0, 0.5, 0.75, 1.0]
    """
    if isinstance(temperatures, int):
        if temperatures < 1:
            raise UserError(f"annealing needs at least one step, but {temperatures} were asked for.")
        return [k / temperatures for k in range(temperatures + 1)]
    entries: list[Any] = temperatures.tolist() if hasattr(temperatures, "tolist") else list(temperatures)
    betas = [0.0] if entries and isinstance(entries[0], Sequence) else []
    for entry in entries:
        if isinstance(entry, Sequence):
            if len(entry) != 2 or entry[1] < 1 or entry[1] != int(entry[1]) or not betas:
                raise UserError(f"a piece of an annealing schedule is [end, steps], but one is {list(entry)}.")
            start, (end, steps) = betas[-1], (float(entry[0]), int(entry[1]))
            betas += [start + (end - start) * k / steps for k in range(1, steps)] + [end]
        else:
            betas.append(float(entry))
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or any(b <= a for a, b in pairwise(betas)):
        raise UserError("an annealing schedule must increase strictly from 0 to 1.")
    return betas
