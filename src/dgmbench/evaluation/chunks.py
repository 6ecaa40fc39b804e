"""A split in fixed chunks of a hundred examples, each with noise of its own.

A chunk is always the same examples under the same number, and noise is keyed by that number. So a value depends
neither on the batch size, nor on what was computed before, nor on how the chunks are dealt out to several processes.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, evaluation_batches
from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch
from dgmbench.data.values import log_orders
from dgmbench.nn.sequences import counted
from dgmbench.training.ranks import Ranks

CHUNK = 100


class Chunks:
    """Raw values (n, *shape) of a split on a device; at most ``limit`` of them, drawn at random but always the same."""

    def __init__(
        self,
        data: DataSet,
        split: SplitName,
        *,
        seed: int,
        limit: int | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
    ) -> None:
        self.data, self.split, self.seed, self.limit = data, split, seed, limit
        self.device, self.ranks = torch.device(device), ranks or Ranks()
        self._labelled = self._permuted = False

    def __iter__(self) -> Iterator[Tensor]:
        return (batch.x for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """The chunks with their labels, conditions and lengths, where the data have them."""
        rows = self._rows()
        if rows is not None and len(rows) == 0:
            return
        for batch in evaluation_batches(
            self.data, self.split, batch_size=CHUNK, device=self.device, seed=self.seed, rows=rows
        ):
            yield self._of_others(batch, rows) if self._permuted else batch

    def _rows(self) -> Tensor | None:
        """Positions of the examples in their split, None for all of them."""
        n, rows = self.data.size(self.split), None
        if self._labelled and self.data.unlabelled(self.split):
            known = torch.from_numpy(np.asarray(self.data.splits[self.split].y) >= 0)
            rows = (known if known.dim() == 1 else known.any(1)).nonzero()[:, 0]
            n = len(rows)
        if self.limit is not None and self.limit < n:
            # the first examples would not do: some official test sets are sorted by class
            order = torch.randperm(n, generator=keyed_generator("subset", self.split, self.seed))
            few = order[: self.limit].sort().values
            rows = few if rows is None else rows[few]
        return rows

    @property
    def examples(self) -> int:
        """How many examples there are."""
        rows = self._rows()
        return self.data.size(self.split) if rows is None else len(rows)

    def labelled(self) -> "Chunks":
        """The same of those examples alone whose label is known."""
        found = copy.copy(self)
        found._labelled = True
        return found

    def permuted(self) -> "Chunks":
        """The same examples, each with the condition of another one."""
        found = copy.copy(self)
        found._permuted = True
        return found

    def _of_others(self, batch: Batch, rows: Tensor | None) -> Batch:
        """The examples with conditions passed on along one cycle through all of them in random order."""
        rows = torch.arange(self.data.size(self.split)) if rows is None else rows
        order = rows[torch.randperm(len(rows), generator=keyed_generator("permuted", self.split, self.seed))]
        giver = torch.empty(self.data.size(self.split), dtype=torch.int64).index_copy(0, order, order.roll(1))
        assert batch.index is not None
        return batch._replace(given=self._stored("given", giver[batch.index.cpu()]))

    def beside(self, start: int, n: int) -> Batch:
        """Conditions and lengths for n samples from the ``start``-th on: those of the examples in a random order, and
        over again after the last. The batch has no x.
        """
        nothing = torch.empty(0, device=self.device)
        if self.data.spec.given is None and not self.data.spec.lengths:
            return Batch(nothing)
        rows = self._rows()
        rows = torch.arange(self.data.size(self.split)) if rows is None else rows
        order = rows[torch.randperm(len(rows), generator=keyed_generator("beside", self.split, self.seed))]
        own = order[torch.arange(start, start + n) % len(order)]
        return Batch(nothing, index=own, given=self._stored("given", own), length=self._stored("length", own))

    def _stored(self, what: Literal["given", "length"], rows: Tensor) -> Tensor | None:
        values = getattr(self.data.splits[self.split], what)
        return None if values is None else torch.from_numpy(values[rows.numpy()]).to(self.device)

    def tokens(self) -> Tensor:
        """The number of tokens of every example, up to and including the end of a sentence, or of its steps where the
        data say how many; (n,) on the CPU.
        """
        end = self.data.spec.end
        if self.data.spec.lengths:
            return torch.cat([batch.length.cpu() for batch in self.batches() if batch.length is not None])
        return torch.cat([counted(x.flatten(1), end).sum(1).cpu() for x in self])

    def documents(self) -> tuple[Tensor, Tensor]:
        """Of counts, the number of words of every example, and the log of the number of orders that these can have;
        (n,) float64 on the CPU.
        """
        rows = [x.flatten(1).double() for x in self]
        return torch.cat([x.sum(1).cpu() for x in rows]), torch.cat([log_orders(x).cpu() for x in rows])

    def each(self, name: str, value: Callable[[Tensor, Generator], Tensor]) -> Tensor:
        """Per-example results of ``value(x, generator)`` over all chunks, (n, ...) float64 on the CPU.

        ``name`` keeps the noise of different quantities apart. Every process computes its share and gets all of them.
        """
        return self.each_labelled(name, lambda batch, generator: value(batch.x, generator))

    def each_labelled(self, name: str, value: Callable[[Batch, Generator], Tensor]) -> Tensor:
        """As ``each``, of whole batches, so with the labels ``y`` (n,), conditions and lengths."""
        parts = {}
        for number, batch in enumerate(self.batches()):
            if number % self.ranks.world == self.ranks.rank:
                generator = keyed_generator(name, self.seed, number, device=self.device)
                parts[number] = value(batch, generator).double().cpu()
        return torch.cat(self.ranks.gathered(parts))
