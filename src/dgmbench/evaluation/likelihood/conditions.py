"""log Z of an undirected model for every condition that examples have: one annealing path each, side by side.

A condition is what log Z depends on and the model is given: the length of a document, a history of frames. Examples of
equal conditions share one bracket. All chains of many conditions move together, ``ROWS`` states at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.evaluation.likelihood.ais import Bracket, Progress, grouped_brackets
from dgmbench.models.contract import HasConditions, HasStepConditions

ROWS = 20_000


@dataclass(frozen=True)
class Conditions:
    """The conditions of examples, each once (m, ...), and which of them each example has (n,)."""

    values: Tensor
    of_example: Tensor

    @classmethod
    def of(cls, conditions: Tensor) -> "Conditions":
        """From the condition of every example (n, ...)."""
        values, of_example = torch.unique(conditions, dim=0, return_inverse=True)
        return cls(values, of_example)

    @property
    def shares(self) -> Tensor:
        """The share of the examples that each condition has, (m,) float64."""
        count = torch.bincount(self.of_example, minlength=len(self.values))
        return count.double() / len(self.of_example)

    def examples(self, x: Tensor, conditions: Tensor) -> list[Tensor]:
        """Which of the examples x (k, *shape) with ``conditions`` (k, ...) each condition has."""
        same = (
            (conditions[None] == self.values[:, None]).flatten(2).all(2)
            if conditions.dim() > 1
            else (conditions[None] == self.values[:, None])
        )
        return [x[rows.to(x.device)] for rows in same]


def exact_log_partitions(
    model: HasConditions | HasStepConditions, conditions: Conditions, device: torch.device
) -> Tensor | None:
    """log Z of every condition by enumeration, (m,) float64 on the CPU, or None."""
    found = model.annealing_path_given(conditions.values.to(device)).exact_log_partition()
    return None if found is None else found.double().cpu()


def brackets(
    model: HasConditions | HasStepConditions,
    conditions: Conditions,
    examples: list[Tensor],
    exact: Tensor | None,
    *,
    schedule: Mapping[str, Any],
    generator: Generator,
    progress: Progress | None = None,
) -> list[Bracket]:
    """The bracket of every condition, with reverse runs from its own ``examples`` where it has any."""
    chains, found = schedule["chains"], []
    settings: dict[str, Any] = {"spacing": "even", "tolerance": 1.0} | dict(schedule)
    size = max(1, ROWS // chains)
    for first in range(0, len(conditions.values), size):
        some = conditions.values[first : first + size].to(generator.device)
        path = model.annealing_path_given(some.repeat_interleave(chains, 0))
        known = [None] * len(some) if exact is None else list(exact[first : first + size])
        data = list(examples[first : first + size])
        found += grouped_brackets(path, data, known, **settings, generator=generator, progress=progress)
    return found
