"""Images per second of a BatchStream beside a per-item Dataset with torch's DataLoader, in one process.

    python scripts/benchmark_loader.py [--seconds 2] [--batch-size 128]

Both deliver batches of raw uint8 values and labels in a shuffled order. The per-item loader indexes one tensor per
item and collates, the usual way of torch.utils.data (without decoding any picture); each figure is the best of three.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dgmbench.data import BatchStream, DataSet, DataSpec, Split

SIZES = [((1, 28, 28), 60_000), ((3, 32, 32), 50_000)]


class PerItem(Dataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], self.y[i]


def endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def stream_batches(stream: BatchStream) -> Iterator[Any]:
    return (stream.batch(b) for b in itertools.count())


def images_per_second(batches: Iterator[Any], seconds: float) -> float:
    """Best of three measurements after a warm-up of ten batches."""
    for _ in range(10):
        next(batches)
    best = 0.0
    for _ in range(3):
        images, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            images += len(next(batches)[0])
        best = max(best, images / elapsed)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)

    print(f"{'images':>12} {'access':<28} {'images/s':>10} {'ratio':>7}")
    for shape, n in SIZES:
        x = np.random.RandomState(0).randint(256, size=(n, *shape)).astype(np.uint8)
        y = np.arange(n) % 10
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "x.npy", x)
            mapped = np.load(Path(folder) / "x.npy", mmap_mode="r")
            ways: dict[str, Iterator[Any]] = {}
            items = PerItem(torch.from_numpy(x), torch.from_numpy(y))
            ways["per item, DataLoader"] = endless(DataLoader(items, batch_size=options.batch_size, shuffle=True))
            for way, values, resident in (("memory map", mapped, False), ("resident", x, True)):
                split = Split(values, y)
                spec = DataSpec(shape, "discrete", levels=256, num_classes=10)
                data = DataSet("noise", spec, {"train": split, "valid": split, "test": split}, "")
                stream = BatchStream(data, batch_size=options.batch_size, seed=0, resident=resident)
                ways[f"BatchStream, {way}"] = stream_batches(stream)
            peer = 0.0
            for way, batches in ways.items():
                rate = images_per_second(batches, options.seconds)
                peer = peer or rate
                print(f"{'x'.join(map(str, shape)):>12} {way:<28} {rate:>10,.0f} {rate / peer:>6.1f}x", flush=True)


if __name__ == "__main__":
    main()
