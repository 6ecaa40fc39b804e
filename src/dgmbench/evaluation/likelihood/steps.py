"""Sequences whose steps are undirected models given the steps before: log Z of single steps, each by its history.

Where log Z can be enumerated, every step of every example has it. Annealing it for every step would cost too much, and
is not needed for the mean over steps: that of some steps, drawn at random from all of them, is unbiased for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.likelihood.ais import Bracket, Progress
from dgmbench.evaluation.likelihood.conditions import Conditions, brackets
from dgmbench.models.conditions import under
from dgmbench.models.contract import HasStepConditions, IsClassConditional
from dgmbench.nn.sequences import within

STEP_CHAINS = 10
"""Of each step whose log Z is annealed: noise that steps do not share averages out over them."""
STEPS_A_CHAIN = 3
"""Steps that are annealed for each chain of the protocol, so that its chains say how exact it is to be."""


@dataclass(frozen=True)
class Steps:
    """Steps of a split on the CPU: raw values (steps, *shape[1:]), log p* of each (steps,), what its log Z depends on
    (steps, ...), and how many steps each example has (n,).
    """

    x: Tensor
    values: Tensor
    conditions: Tensor
    counts: Tensor

    @classmethod
    def of(cls, model: HasStepConditions, chunks: Chunks) -> "Steps":
        """All steps of the examples, under their own lengths, and labels where the model has a class prior."""
        parts, counts = [], []
        for batch in chunks.batches():
            n, steps = batch.x.shape[:2]
            length = torch.full((n,), steps, device=batch.x.device) if batch.length is None else batch.length
            parts.append(batch.x[within(length, steps)].cpu())
            counts.append(length.cpu())
        labelled = isinstance(model, IsClassConditional)

        def each(name: str) -> Tensor:
            return chunks.each_labelled(
                name,
                lambda batch, _: getattr(under(model, batch), name)(batch.x, **({"y": batch.y} if labelled else {})),
            )

        values, conditions = each("step_log_prob_unnormalised"), each("step_conditions")
        return cls(torch.cat(parts), values, conditions, torch.cat(counts))

    def summed(self, each: Tensor) -> Tensor:
        """The sum over the steps (steps,) of each example, (n,)."""
        owner = torch.arange(len(self.counts)).repeat_interleave(self.counts)
        return torch.zeros(len(self.counts), dtype=each.dtype).index_add(0, owner, each)

    def some(self, most: int, generator: Generator) -> "Steps":
        """At most so many steps, drawn at random; they belong to no examples any more."""
        if most >= len(self.values):
            return self
        rows = torch.randperm(len(self.values), generator=generator)[:most]
        return Steps(self.x[rows], self.values[rows], self.conditions[rows], self.counts)


def step_brackets(
    model: HasStepConditions,
    steps: Steps,
    *,
    schedule: Mapping[str, Any],
    generator: Generator,
    progress: Progress | None = None,
) -> tuple[Conditions, list[Bracket]]:
    """The bracket of log Z of every condition; reverse runs start from the steps that stand under it, too."""
    conditions = Conditions.of(steps.conditions)
    examples = conditions.examples(steps.x.to(generator.device), steps.conditions)
    found = brackets(model, conditions, examples, None, schedule=schedule, generator=generator, progress=progress)
    return conditions, found
