"""The parts of a training that runs in parts, and what a model is told of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Generator

from dgmbench.data.spec import Batch


@dataclass(frozen=True)
class Stage:
    """One part of a training that runs in parts, such as one layer of a greedy pre-training.

    ``players`` take turns in this order on every batch; ``share`` is the stage's part of the budget (shares are
    normalised); ``view`` maps a batch of data to what the stage sees, for instance the layer below's hidden units or
    smaller pictures. Whatever a stage sees, samples and everything that is measured have the shape of the data.
    ``batch_size`` replaces ``trainer.batch_size``, over all processes; the stage's share is of the images then.
    """

    name: str
    players: tuple[str, ...]
    share: float = 1.0
    view: Callable[[Batch, Generator], Batch] | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Facts:
    """What a model may want to know of its training before it begins."""

    examples: int
    """Size of the training set."""
    updates: Mapping[str, int]
    """Updates of each stage, by its name."""
