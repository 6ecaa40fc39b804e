"""A split in fixed chunks of a hundred examples, each with noise of its own.

A chunk is always the same examples under the same number, and noise is keyed by that number. So a value depends
neither on the batch size, nor on what was computed before, nor on how the chunks are dealt out to several processes.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, evaluation_batches
from dgmbench.data.dataset import SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch
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

    def __iter__(self) -> Iterator[Tensor]:
        return (batch.x for batch in self.batches())

    def batches(self) -> Iterator[Batch]:
        """The chunks with their labels, where the data have them."""
        n, rows = self.data.size(self.split), None
        if self.limit is not None and self.limit < n:
            # the first examples would not do: some official test sets are sorted by class
            order = torch.randperm(n, generator=keyed_generator("subset", self.split, self.seed))
            rows = order[: self.limit].sort().values
        yield from evaluation_batches(
            self.data, self.split, batch_size=CHUNK, device=self.device, seed=self.seed, rows=rows
        )

    def tokens(self) -> Tensor:
        """The number of tokens of every example, up to and including the end of a sentence, (n,) on the CPU."""
        end = self.data.spec.end
        return torch.cat([counted(x.flatten(1), end).sum(1).cpu() for x in self])

    def each(self, name: str, value: Callable[[Tensor, Generator], Tensor]) -> Tensor:
        """Per-example results of ``value(x, generator)`` over all chunks, (n, ...) float64 on the CPU.

        ``name`` keeps the noise of different quantities apart. Every process computes its share and gets all of them.
        """
        return self.each_labelled(name, lambda batch, generator: value(batch.x, generator))

    def each_labelled(self, name: str, value: Callable[[Batch, Generator], Tensor]) -> Tensor:
        """As ``each``, of whole batches, so with the labels ``y`` (n,)."""
        parts = {}
        for number, batch in enumerate(self.batches()):
            if number % self.ranks.world == self.ranks.rank:
                generator = keyed_generator(name, self.seed, number, device=self.device)
                parts[number] = value(batch, generator).double().cpu()
        return torch.cat(self.ranks.gathered(parts))
