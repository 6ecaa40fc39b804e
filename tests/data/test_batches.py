import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.data import BatchStream, DataSet, DataSpec, Split, evaluation_batches
from dgmbench.errors import UserError


def numbered(n: int, *, binarise: str = "none") -> DataSet:
    """Example i has the pixels i % 256 and the label i; under binarisation all pixels are 85 of 255."""
    x = np.repeat((np.arange(n) % 256).astype(np.uint8)[:, None, None, None], 16, axis=2).reshape(n, 1, 4, 4)
    if binarise == "dynamic":
        x = np.full_like(x, 85)
    split = Split(x, np.arange(n))
    spec = DataSpec((1, 4, 4), "binary") if binarise == "dynamic" else DataSpec((1, 4, 4), "discrete", levels=256)
    grey: Any = {"binarise": "dynamic", "grey_levels": 256} if binarise == "dynamic" else {}
    return DataSet("numbered", spec, {"train": split, "valid": split, "test": split}, "hash", **grey)


@pytest.mark.parametrize(("n", "batch_size"), [(60, 20), (50, 16), (7, 20), (1, 3), (64, 64), (65, 64)])
def test_every_example_once_per_epoch(n: int, batch_size: int) -> None:
    stream = BatchStream(numbered(n), batch_size=batch_size, seed=3)
    epochs = 4
    batches = [stream.batch(b) for b in range(-(-epochs * n // batch_size))]
    assert all(len(batch.x) == batch_size for batch in batches)
    indices = torch.cat([batch.index for batch in batches])[: epochs * n].reshape(epochs, n)
    assert torch.equal(indices.sort(1).values, torch.arange(n).expand(epochs, n))


def test_index_label_and_pixels_belong_together() -> None:
    batch = BatchStream(numbered(200), batch_size=32, seed=0).batch(11)
    assert torch.equal(batch.index, batch.y)
    assert torch.equal(batch.x[:, 0, 0, 0], batch.y.to(torch.uint8))
    assert batch.x.dtype == torch.uint8
    assert batch.y.dtype == torch.int64


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return BatchStream(numbered(100), batch_size=100, seed=seed).batch(number).index.tolist()

    orders = [epoch(seed, number) for seed in (0, 1) for number in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


@pytest.mark.parametrize("binarise", ["none", "dynamic"])
def test_a_batch_is_a_function_of_its_number(binarise: str) -> None:
    order = [5, 0, 123, 5, 7, 6, 0]
    visited = BatchStream(numbered(50, binarise=binarise), batch_size=16, seed=1)
    for b in order:
        fresh = BatchStream(numbered(50, binarise=binarise), batch_size=16, seed=1)
        for got, expected in zip(visited.batch(b)[:3], fresh.batch(b)[:3], strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("binarise", ["none", "dynamic"])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_partition_the_global_batch(world_size: int, binarise: str) -> None:
    dataset = numbered(20, binarise=binarise)  # smaller than a batch: shares straddle epochs
    whole = BatchStream(dataset, batch_size=24, seed=0)
    shares = [
        BatchStream(dataset, batch_size=24, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for b in range(7):
        parts = [share.batch(b) for share in shares]
        for field in range(3):
            assert torch.equal(torch.cat([part[field] for part in parts]), whole.batch(b)[field])


def test_a_resident_split_gives_the_same_batches() -> None:
    for binarise in ("none", "dynamic"):
        dataset = numbered(50, binarise=binarise)
        plain = BatchStream(dataset, batch_size=16, seed=1, resident=False)
        resident = BatchStream(dataset, batch_size=16, seed=1, resident=True)
        assert resident.resident
        assert not plain.resident
        for b in range(6):
            for got, expected in zip(resident.batch(b)[:3], plain.batch(b)[:3], strict=True):
                assert torch.equal(got, expected)


def test_two_permutations_are_kept() -> None:
    stream = BatchStream(numbered(10), batch_size=5, seed=0)
    for b in range(20):
        stream.batch(b)
    assert sorted(stream._permutations) == [8, 9]


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (-5, 1), (10, 3)])
def test_impossible_batch_sizes_are_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(UserError, match=f"batch size is {batch_size}"):
        BatchStream(numbered(50), batch_size=batch_size, seed=0, world_size=world_size)


def test_dynamic_binarisation_draws_anew_with_the_pixel_as_probability() -> None:
    n = 500
    stream = BatchStream(numbered(n, binarise="dynamic"), batch_size=n, seed=0)
    draws = torch.stack([stream.batch(b).x for b in range(20)])
    assert set(draws.unique().tolist()) == {0, 1}
    p, total = 85 / 255, draws.numel()
    assert abs(draws.float().mean().item() - p) < 4 * (p * (1 - p) / total) ** 0.5
    assert not torch.equal(draws[0], draws[1])


def test_black_stays_black_and_white_stays_white() -> None:
    dataset = numbered(2, binarise="dynamic")
    grey = torch.tensor([0, 255], dtype=torch.uint8)
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    for noise in (torch.tensor(0.0), largest, torch.tensor(0.5)):
        assert dataset.binarised(grey, noise.expand(2)).tolist() == [0, 1]


@pytest.mark.parametrize("n", [1, 99, 100, 101, 250])
@pytest.mark.parametrize("batch_size", [1, 7, 100, 130, 1000])
def test_an_evaluation_takes_all_in_order_whatever_the_batch_size(n: int, batch_size: int) -> None:
    dataset = numbered(n, binarise="dynamic")
    batches = list(evaluation_batches(dataset, "test", batch_size=batch_size, seed=4))
    reference = list(evaluation_batches(dataset, "test", batch_size=n, seed=4))
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(n))
    assert torch.equal(torch.cat([batch.x for batch in batches]), reference[0].x)
    assert [len(batch.x) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_evaluation_noise_depends_on_seed_and_split() -> None:
    dataset = numbered(100, binarise="dynamic")
    values = [next(evaluation_batches(dataset, s, batch_size=100, seed=k)).x for s in ("valid", "test") for k in (0, 1)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(values, 2))


def test_no_two_examples_of_an_evaluation_share_their_noise() -> None:
    n, dataset = 250, numbered(250, binarise="dynamic")
    draws = [next(evaluation_batches(dataset, "test", batch_size=n, seed=seed)).x.flatten(1) for seed in range(4)]
    # two of 250 rows of 64 independent bits with mean 1/3 are equal with probability 31125 (5/9)^64 = 1.4e-12
    assert len(torch.cat(draws, 1).unique(dim=0)) == n


def test_memory_maps_serve_as_arrays_do(tmp_path: Path) -> None:
    whole = numbered(50)
    np.save(tmp_path / "x.npy", whole.splits["train"].x)
    mapped = Split(np.load(tmp_path / "x.npy", mmap_mode="r"), whole.splits["train"].y)
    dataset = DataSet("mapped", whole.spec, dict.fromkeys(("train", "valid", "test"), mapped), "hash")
    for resident in (False, True):
        got = BatchStream(dataset, batch_size=16, seed=0, resident=resident).batch(5)
        assert torch.equal(got.x, BatchStream(whole, batch_size=16, seed=0).batch(5).x)
    got.x.add_(1)  # a batch is the caller's own
    assert np.array_equal(mapped.x, whole.splits["train"].x)
    assert torch.equal(next(evaluation_batches(dataset, "test", batch_size=50)).x, torch.tensor(mapped.x))
