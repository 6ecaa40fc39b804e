"""Batches in which one factor of variation varies at a time: blocks of examples that agree in all other factors.

A line is all training examples that share the values of all factors but one. A block is a random line in random order,
from its beginning again where the line is shorter than the block; every factor is as likely as any other, unless one is
asked for. A block depends on (seed, its number) only, and blocks stand one after another through all batches.
"""

import math

import numpy as np
import torch
from torch import Tensor

from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest


class Lines:
    """Which example stands at each place of a batch made of blocks of ``block`` examples."""

    def __init__(
        self,
        block: int,
        y: np.ndarray,
        spec: DataSpec,
        *,
        batch_size: int,
        world_size: int,
        seed: int,
        factor: str | None = None,
    ) -> None:
        if not spec.factors:
            raise UserError("Batches that vary one factor need data with known factors; choose data=shapes, say.")
        if block < 2:
            raise UserError(f"A block of {block} examples varies nothing; it must have at least 2.")
        if batch_size % (block * world_size):
            raise UserError(
                f"A batch of {batch_size} is no whole number of blocks of {block} on each of {world_size} processes; "
                f"take trainer.batch_size={max(1, round(batch_size / block / world_size)) * block * world_size}."
            )
        self.block, self.seed = block, seed
        names = [name for name, _ in spec.factors]
        if factor is not None and factor not in names:
            raise UserError(nearest(factor, names, what="factor of the data"))
        chosen = range(len(names)) if factor is None else [names.index(factor)]
        self.lines = [found for k in chosen if (found := lines_of(y, spec, k))]
        if not self.lines:
            what = factor or "one factor"
            raise UserError(f"No two labelled training examples differ in {what} alone, so no batch varies it.")

    @property
    def examples(self) -> Tensor:
        """All examples that come into batches, in ascending order."""
        return torch.from_numpy(np.unique(np.concatenate([line for of in self.lines for line in of])))

    def index(self, start: int, stop: int) -> Tensor:
        """The examples at the places ``start`` ... ``stop`` - 1 of all batches written down one after another."""
        first, last = start // self.block, (stop - 1) // self.block
        every = np.concatenate([self._block(n) for n in range(first, last + 1)])
        return torch.from_numpy(every[start - first * self.block : stop - first * self.block])

    def _block(self, number: int) -> np.ndarray:
        generator = keyed_generator("lines", self.seed, number)
        of = self.lines[int(torch.randint(len(self.lines), (), generator=generator))]
        line = of[int(torch.randint(len(of), (), generator=generator))]
        return np.resize(line[torch.randperm(len(line), generator=generator).numpy()], self.block)


def lines_of(y: np.ndarray, spec: DataSpec, factor: int) -> list[np.ndarray]:
    """The labelled examples, by labels y (n,), that agree in all but one factor: lines of two or more of its values."""
    sizes = [size for _, size in spec.factors or ()]
    step = math.prod(sizes[factor + 1 :])
    known = np.flatnonzero(y >= 0)
    value = y[known] // step % sizes[factor]
    rest = y[known] - value * step
    order = np.argsort(rest, kind="stable")
    cuts = np.flatnonzero(np.diff(rest[order])) + 1
    return [known[part] for part in np.split(order, cuts) if len(np.unique(value[part])) > 1]
