"""Batches made by label: so many labelled examples, or as many of each class or domain, in every batch.

Examples are sorted into groups (labelled and not, or one a class), every place of a batch belongs to a group, and each
group has an endless list of its own: permutations that depend on (seed, group, round) only, one after another. Which
entry of its list a place takes is counted out, so batch b is a function of (seed, b), on any number of processes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dgmbench.data.lines import Lines
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError


@dataclass(frozen=True)
class BatchPolicy:
    """What a model wants every batch to hold.

    ``labelled`` is a number of examples of the whole batch, or as a float a share of it: 1.0 asks for nothing but
    labelled examples. The other places go to examples without a label. Where all examples have one, it asks for
    nothing.

    ``balanced`` makes labelled examples come from all classes alike (``"label"``), or from all values of one of the
    data's ``factors`` (its name, such as ``"domain"``). Without ``labelled`` it holds for the whole batch.

    ``varied`` makes batches of blocks of so many examples that differ in one factor alone (``data/lines.py``), and
    ``factor`` says in which; without it every factor has its turn.
    """

    labelled: int | float | None = None
    balanced: str | None = None
    varied: int | None = None
    factor: str | None = None

    def count(self, batch_size: int) -> int:
        """The labelled examples in a batch of this size."""
        if self.labelled is None:
            return batch_size
        found = round(self.labelled * batch_size) if isinstance(self.labelled, float) else self.labelled
        if not 0 < found <= batch_size:
            raise UserError(
                f"The model wants {self.labelled} labelled examples in a batch of {batch_size}; that must be a number "
                "from 1 to trainer.batch_size, or a share."
            )
        return found


class Places:
    """Which example stands at each place of a batch, under a policy.

    Labelled places are spread evenly over a batch, so that each of several processes gets its share of them.
    """

    def __init__(
        self, policy: BatchPolicy, y: np.ndarray, spec: DataSpec, *, batch_size: int, world_size: int, seed: int
    ) -> None:
        if y.ndim > 1:
            raise UserError("Batches are made by the labels of examples, and these data have a label at every step.")
        self.batch_size, self.seed = batch_size, seed
        rest = np.flatnonzero(y < 0)
        self.count = policy.count(batch_size) if len(rest) else batch_size
        if policy.labelled is None or self.count == batch_size:
            rest = rest[:0]
        if self.count % world_size:
            raise UserError(
                f"A batch holds {self.count} labelled examples, which {world_size} processes cannot share equally."
            )
        groups = _classes(y, spec, policy.balanced) if policy.balanced else [np.flatnonzero(y >= 0)]
        if not groups or min(map(len, groups)) == 0:
            raise UserError("Batches by label need labelled training examples, of every class if they are balanced.")
        self.groups, self.rest = groups, rest
        self._rounds: dict[tuple[int, int], np.ndarray] = {}

    @property
    def examples(self) -> Tensor:
        """All examples that come into batches, in ascending order."""
        return torch.from_numpy(np.sort(np.concatenate([*self.groups, self.rest])))

    def index(self, start: int, stop: int) -> Tensor:
        """The examples at the places ``start`` ... ``stop`` - 1 of all batches written down one after another, as
        positions in the split.
        """
        place = np.arange(start, stop)
        before = place * self.count // self.batch_size  # labelled places in front of each place
        labelled = (place + 1) * self.count // self.batch_size > before
        found = np.empty(len(place), np.int64)
        found[~labelled] = self._entries(-1, self.rest, (place - before)[~labelled])
        for group, examples in enumerate(self.groups):
            own = labelled & (before % len(self.groups) == group)
            found[own] = self._entries(group, examples, before[own] // len(self.groups))
        return torch.from_numpy(found)

    def _entries(self, group: int, examples: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The entries of a group's endless list at ascending positions."""
        if not len(position):
            return position
        number, place = np.divmod(position, len(examples))
        return np.concatenate([self._round(group, examples, n)[place[number == n]] for n in np.unique(number).tolist()])

    def _round(self, group: int, examples: np.ndarray, number: int) -> np.ndarray:
        """All examples of a group in the order of one round; the last few rounds are kept, as batches go forward."""
        if (group, number) not in self._rounds:
            generator = keyed_generator("policy", self.seed, group, number)
            self._rounds.pop((group, number - 2), None)
            self._rounds[group, number] = examples[torch.randperm(len(examples), generator=generator).numpy()]
        return self._rounds[group, number]


def _classes(y: np.ndarray, spec: DataSpec, by: str) -> list[np.ndarray]:
    """The labelled examples of each class, or of each value of a factor."""
    known = np.flatnonzero(y >= 0)
    if by == "label":
        values, count = y[known], spec.num_classes or 0
    else:
        names = [name for name, _ in spec.factors or ()]
        if by not in names:
            found = ", ".join(names) or "none"
            raise UserError(f"The model wants batches balanced by '{by}', but the data's factors are: {found}.")
        sizes = [size for _, size in spec.factors or ()]
        values, count = np.unravel_index(y[known], sizes)[names.index(by)], sizes[names.index(by)]
    return [known[values == value] for value in range(count)]


def places(
    policy: BatchPolicy | None, y: np.ndarray | None, spec: DataSpec, *, batch_size: int, world_size: int, seed: int
) -> Places | Lines | None:
    """How a policy fills batches; None where it asks for nothing, so that batches are as without it."""
    if policy is None or policy == BatchPolicy():
        return None
    if y is None:
        raise UserError("The model wants batches made by label, and this data set has no labels.")
    if policy.varied is not None:
        sizes = {"batch_size": batch_size, "world_size": world_size}
        return Lines(policy.varied, y, spec, factor=policy.factor, seed=seed, **sizes)
    if policy.balanced is None and bool((np.asarray(y) >= 0).all()):
        return None
    return Places(policy, np.asarray(y), spec, batch_size=batch_size, world_size=world_size, seed=seed)
