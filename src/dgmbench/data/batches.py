"""Batches as functions of their number: batch b of a training is the same whether or not the ones before were taken."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dgmbench.data.dataset import DataSet, SplitName
from dgmbench.data.policy import BatchPolicy, places
from dgmbench.data.random import keyed_generator, keyed_seed
from dgmbench.data.spec import Batch
from dgmbench.errors import UserError

MOST_IN_A_BATCH = 10_000  # examples of which some may be the same, where the split is smaller than the batch
NOISE_CHUNK = 100  # examples that share one noise stream in an evaluation
STORED = ("x", "y", "given", "length")  # the arrays of a split that batches carry rows of


class BatchStream:
    """The endless sequence of training batches.

    Write down the epochs one after another, each a permutation that depends on (seed, epoch) only; batch b holds the
    positions ``b * batch_size ... (b + 1) * batch_size - 1`` of that list. So all batches have the same size, a batch
    may straddle epochs, a set smaller than a batch repeats within it, and every example appears once per epoch.
    ``batch_size`` counts the batch over all ranks; each rank takes its contiguous share of it.

    ``resident`` keeps the whole split on ``device``; by default that happens on a GPU where the split takes at most a
    quarter of the free memory.

    A ``policy`` makes batches by label instead (see :mod:`dgmbench.data.policy`); an epoch is then as many examples as
    the split has, whichever they are.
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
        policy: BatchPolicy | None = None,
    ) -> None:
        self.dataset, self.split, self.batch_size, self.seed = (
            dataset,
            split,
            batch_size,
            seed,
        )
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.images_per_epoch = dataset.size(split)
        self.check_size(batch_size)
        self._permutations: dict[int, Tensor] = {}
        part = dataset.splits[split]
        self._places = places(
            policy, part.y, dataset.spec, batch_size=batch_size, world_size=world_size, seed=keyed_seed(split, seed)
        )
        self._resident: dict[str, Tensor] | None = None
        if resident if resident is not None else self._fits():
            self._resident = {
                what: torch.tensor(values, device=self.device)
                for what in STORED
                if (values := getattr(part, what)) is not None
            }

    def check_size(self, size: int) -> None:
        """Refuse a batch that the processes cannot share."""
        if size < 1 or size % self.world_size:
            raise UserError(
                f"The batch size is {size}; it must be at least 1 and a multiple of the {self.world_size} processes."
            )
        if size > MOST_IN_A_BATCH and size > self.images_per_epoch:
            raise UserError(
                f"A batch of {size:,} would repeat the {self.images_per_epoch:,} examples of the {self.split} split "
                f"{size / self.images_per_epoch:,.0f} times; take trainer.batch_size={self.images_per_epoch} or less."
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
        if self._places is not None and size != self.batch_size:
            raise UserError("A model that asks for a batch policy cannot have stages with batch sizes of their own.")
        share = size // self.world_size
        start = (b * size if start is None else start) + self.rank * share
        index = (self._positions if self._places is None else self._places.index)(start, start + share)
        noise = self._noise(b, size) if self.dataset.binarise == "dynamic" else None
        if self._resident is None:
            part, rows = self.dataset.splits[self.split], index.numpy()
            found = {
                what: self._move(torch.from_numpy(values.take(rows, axis=0)))
                for what in STORED
                if (values := getattr(part, what)) is not None
            }
            index = self._move(index)
        else:
            index = self._move(index)
            found = {what: values.index_select(0, index) for what, values in self._resident.items()}
        if noise is not None:
            found["x"] = self.dataset.binarised(found["x"], noise)
        return Batch(index=index, **found)

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
        others = {
            what: torch.from_numpy(values[where]).to(device)
            for what in STORED[1:]
            if (values := getattr(part, what)) is not None
        }
        yield Batch(x.to(device), index=some.to(device), **others)


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


def joined(group: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    columns = zip(*group, strict=True)
    return Batch(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def picked(batch: Batch, rows: Tensor) -> Batch:
    """The examples of a batch at these places (n,)."""
    return Batch(*(None if each is None else each[rows.to(each.device)] for each in batch))  # type: ignore[arg-type]
