"""Batches as functions of their number: batch b of a training is the same whether or not the ones before were taken."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dgmbench.data.dataset import DataSet, SplitName
from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch
from dgmbench.errors import UserError

NOISE_CHUNK = 100  # examples that share one noise stream in an evaluation


class BatchStream:
    """The endless sequence of training batches.

    Write down the epochs one after another, each a permutation that depends on (seed, epoch) only; batch b holds the
    positions ``b * batch_size ... (b + 1) * batch_size - 1`` of that list. So all batches have the same size, a batch
    may straddle epochs, a set smaller than a batch repeats within it, and every example appears once per epoch.
    ``batch_size`` counts the batch over all ranks; each rank takes its contiguous share of it.

    ``resident`` keeps the whole split on ``device``; by default that happens on a GPU where the split takes at most a
    quarter of the free memory.
    """

    def __init__(
        self,
        dataset: DataSet,
        *,
        batch_size: int,
        seed: int,
        split: SplitName = "train",
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        resident: bool | None = None,
    ) -> None:
        self.dataset, self.split, self.batch_size, self.seed = (
            dataset,
            split,
            batch_size,
            seed,
        )
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.check_size(batch_size)
        self.images_per_epoch = dataset.size(split)
        self._permutations: dict[int, Tensor] = {}
        self._resident: tuple[Tensor, Tensor | None] | None = None
        if resident if resident is not None else self._fits():
            part = dataset.splits[split]
            y = None if part.y is None else torch.tensor(part.y, device=self.device)
            self._resident = torch.tensor(part.x, device=self.device), y

    def check_size(self, size: int) -> None:
        """Refuse a batch that the processes cannot share."""
        if size < 1 or size % self.world_size:
            raise UserError(
                f"The batch size is {size}; it must be at least 1 and a multiple of the {self.world_size} processes."
            )

    @property
    def resident(self) -> bool:
        """Whether the whole split lies on the device."""
        return self._resident is not None

    def batch(self, b: int, *, size: int | None = None, start: int | None = None) -> Batch:
        """This rank's share of batch ``b``, counted from 0, on the device.

        Where batches before it had other sizes, ``size`` is that of this one, and ``start`` the images before it.
        """
        size = self.batch_size if size is None else size
        share = size // self.world_size
        start = (b * size if start is None else start) + self.rank * share
        index = self._positions(start, start + share)
        noise = self._noise(b, size) if self.dataset.binarise == "dynamic" else None
        if self._resident is None:
            part, rows = self.dataset.splits[self.split], index.numpy()
            x = self._move(torch.from_numpy(part.x.take(rows, axis=0)))
            y = None if part.y is None else self._move(torch.from_numpy(part.y.take(rows)))
            index = self._move(index)
        else:
            index = self._move(index)
            all_x, all_y = self._resident
            x, y = (
                all_x.index_select(0, index),
                None if all_y is None else all_y.index_select(0, index),
            )
        return Batch(x if noise is None else self.dataset.binarised(x, noise), y, index)

    def _positions(self, start: int, stop: int) -> Tensor:
        n, pieces = self.images_per_epoch, []
        for epoch in range(start // n, (stop - 1) // n + 1):
            offset = epoch * n
            pieces.append(self._permutation(epoch)[max(start - offset, 0) : min(stop - offset, n)])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            generator = keyed_generator("permutation", self.split, self.seed, epoch)
            while len(self._permutations) >= 2:
                del self._permutations[next(iter(self._permutations))]
            self._permutations[epoch] = torch.randperm(self.images_per_epoch, generator=generator)
        return self._permutations[epoch]

    def _noise(self, b: int, size: int) -> Tensor:
        """This rank's rows of the uniform noise of the whole batch, so that it is the same for any number of ranks."""
        generator = keyed_generator("binarise", self.split, self.seed, b, device=self.device)
        noise = torch.rand(
            (size, *self.dataset.spec.shape),
            generator=generator,
            device=self.device,
        )
        share = size // self.world_size
        return noise[self.rank * share : (self.rank + 1) * share]

    def _move(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.dataset.splits[self.split].x.nbytes <= free // 4


def evaluation_batches(
    dataset: DataSet,
    split: SplitName,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
    rows: Tensor | None = None,
) -> Iterator[Batch]:
    """All examples of a split in order, or those of the given ``rows`` (n,) only; the last batch may be smaller.

    The noise of a dynamic binarisation is drawn on the CPU for fixed chunks of 100 examples, so that the values
    depend on ``seed`` alone and not on the batch size or the device.
    """
    part = dataset.splits[split]
    rows = torch.arange(dataset.size(split)) if rows is None else rows
    for some in rows.split(batch_size):
        where = some.numpy()
        x = torch.from_numpy(part.x[where])  # a copy of these rows: a memory map is read-only
        if dataset.binarise == "dynamic":
            x = dataset.binarised(x, _chunked_noise(dataset, split, seed, some))
        y = None if part.y is None else torch.from_numpy(part.y[where]).to(device)
        yield Batch(x.to(device), y, some.to(device))


def _chunked_noise(dataset: DataSet, split: str, seed: int, rows: Tensor) -> Tensor:
    chunks, which = (rows // NOISE_CHUNK).unique(return_inverse=True)
    noise = [
        torch.rand(
            (NOISE_CHUNK, *dataset.spec.shape),
            generator=keyed_generator("binarise evaluation", split, seed, c),
        )
        for c in chunks.tolist()
    ]
    return torch.cat(noise)[which * NOISE_CHUNK + rows % NOISE_CHUNK]
