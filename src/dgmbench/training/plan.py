"""A run's plan: how many batches, which stage when, and what happens between batches. Fixed before the first step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgmbench.config.budget import Amount
from dgmbench.errors import UserError
from dgmbench.models.contract import Facts, Stage


@dataclass(frozen=True)
class Plan:
    """Everything the clock needs, in batches (global over all ranks) and updates (``accumulate`` batches each)."""

    batch_size: int
    images_per_epoch: int
    batches: int
    accumulate: int
    validate_every: int
    samples_every: int
    checkpoint_seconds: float | None
    checkpoint_every: int | None
    clip: float | None
    ema: float
    stages: tuple[Stage, ...]
    stage_starts: tuple[int, ...]

    @property
    def images(self) -> int:
        """Images of the whole training, over all ranks."""
        return self.images_before(self.updates)

    def images_before(self, update: int) -> int:
        """Images of the updates before one, over all ranks."""
        starts = [min(each, update) for each in (*self.stage_starts, self.updates)]
        ends = [min(start * self.accumulate, self.batches) for start in starts]
        return sum((ends[i + 1] - ends[i]) * self.stage_batch_size(i) for i in range(len(self.stages)))

    @property
    def updates(self) -> int:
        """Number of updates; the last one may hold fewer than ``accumulate`` batches."""
        return math.ceil(self.batches / self.accumulate)

    @property
    def row_every(self) -> int:
        """Updates between two rows of training metrics, so that a run writes at most about a thousand."""
        return max(1, self.updates // 1000)

    def group(self, update: int) -> range:
        """The batches of one update."""
        first = update * self.accumulate
        return range(first, min(first + self.accumulate, self.batches))

    def stage_index(self, update: int) -> int:
        """Which stage an update belongs to."""
        return max(i for i, start in enumerate(self.stage_starts) if start <= update)

    def stage_updates(self, index: int) -> range:
        """The updates of one stage."""
        last = self.stage_starts[index + 1] if index + 1 < len(self.stages) else self.updates
        return range(self.stage_starts[index], last)

    def stage_batch_size(self, index: int) -> int:
        """The size of one stage's batches."""
        return self.stages[index].batch_size or self.batch_size

    def share_done(self, index: int, update: int) -> float:
        """How much of a stage is done before an update, from 0 to 1."""
        updates = self.stage_updates(index)
        return (update - updates.start) / len(updates)

    @property
    def facts(self) -> Facts:
        """What the model is told of its training."""
        updates = {stage.name: len(self.stage_updates(index)) for index, stage in enumerate(self.stages)}
        return Facts(examples=self.images_per_epoch, updates=updates)


def make_plan(trainer: Mapping[str, Any], *, images_per_epoch: int, stages: Sequence[Stage]) -> Plan:
    """Turn the checked ``trainer`` group into a plan; a budget too small for the stages ends in a UserError."""
    batch_size, accumulate = trainer["batch_size"], trainer["accumulate"]

    def batches(key: str) -> int:
        return Amount.parse(trainer[key], what=f"trainer.{key}").batches(images_per_epoch, batch_size)

    period = Amount.parse(trainer["checkpoint"], ("s", "ep", "ba", "im"), what="trainer.checkpoint")
    used = [stage for stage in stages if stage.share > 0]
    # a stage's share of the budget is of its images: it takes more batches where they are smaller
    shares = [stage.share * (batch_size / (stage.batch_size or batch_size)) for stage in used]
    total = max(1, round(batches("budget") * (sum(shares) / sum(stage.share for stage in used))))
    updates = math.ceil(total / accumulate)
    if updates < len(used):
        raise UserError(
            f"trainer.budget={trainer['budget']} gives {updates} update(s), but this model trains in {len(used)} "
            f"stages; raise the budget to at least {len(used) * accumulate}ba."
        )
    starts: list[int] = []
    done = 0.0
    for index, share in enumerate(shares):
        at_least = starts[-1] + 1 if starts else 0
        starts.append(min(max(round(done / sum(shares) * updates), at_least), updates - len(used) + index))
        done += share
    return Plan(
        batch_size=batch_size,
        images_per_epoch=images_per_epoch,
        batches=total,
        accumulate=accumulate,
        validate_every=batches("validate"),
        samples_every=batches("samples"),
        checkpoint_seconds=period.seconds,
        checkpoint_every=None if period.unit == "s" else period.batches(images_per_epoch, batch_size),
        clip=trainer["clip"],
        ema=trainer["ema"],
        stages=tuple(used),
        stage_starts=tuple(starts),
    )
