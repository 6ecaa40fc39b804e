"""Learning-rate schedules as pure functions of the clock, so that a resume needs no scheduler state."""

import math
from collections.abc import Mapping
from typing import Any

from dgmbench.config.budget import Amount

SHAPES = {
    "constant": lambda t, final: 1.0,
    "linear": lambda t, final: 1.0 + (final - 1.0) * t,
    "cosine": lambda t, final: final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * t)),
}


class Schedule:
    """Factor on the learning rate: linear warm-up, then a shape from 1 to ``final`` over the rest of a stage."""

    def __init__(self, settings: Mapping[str, Any], *, images_per_epoch: int, batch_size: int, accumulate: int) -> None:
        self.name, self.final = settings["name"], settings["final"]
        warmup = Amount.parse(settings["warmup"], what="optimizer.schedule.warmup", zero=True)
        self.warmup = math.ceil(warmup.batches(images_per_epoch, batch_size) / accumulate)

    @property
    def is_constant(self) -> bool:
        """Whether the factor is always 1."""
        return self.name == "constant" and self.warmup == 0

    def factor(self, update: int, total: int) -> float:
        """The factor for the ``update``-th of ``total`` updates of a stage (from 0)."""
        if update < self.warmup:
            return (update + 1) / self.warmup
        rest = max(1, total - self.warmup)
        return SHAPES[self.name](min(1.0, (update - self.warmup) / rest), self.final)
