"""Batches made by label are functions of (seed, number), on any number of processes, and hold what was asked for."""

from collections import Counter

import numpy as np
import pytest
import torch

from dgmbench.data import BatchStream, DataSet, DataSpec
from dgmbench.data.dataset import Split
from dgmbench.data.policy import BatchPolicy
from dgmbench.errors import UserError

N, CLASSES = 60, 3
LABELLED = 13


def data(*, labelled: int = LABELLED, factors: bool = False, binarise: str = "none") -> DataSet:
    """Example i has x = i; the first ``labelled`` have a label."""
    x = np.arange(N, dtype=np.uint8)[:, None]
    y = np.where(np.arange(N) < labelled, np.arange(N) % CLASSES, -1).astype(np.int64)
    pairs = (("domain", 3), ("digit", 2)) if factors else None
    if factors:
        y = np.where(y < 0, y, 2 * y + np.arange(N) // 3 % 2)
    spec = DataSpec((1,), "discrete", 61, 6 if factors else CLASSES, factors=pairs)
    if binarise != "none":
        spec = DataSpec((1,), "binary", num_classes=CLASSES)
    split = Split(x, y)
    return DataSet("toy", spec, dict.fromkeys(("train", "valid", "test"), split), "0", binarise, 61)


def stream(policy: BatchPolicy | None, **settings: object) -> BatchStream:
    found = data(**{key: settings.pop(key) for key in ("labelled", "factors", "binarise") if key in settings})
    return BatchStream(found, **{"batch_size": 12, "seed": 3, "policy": policy, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(("labelled", "count"), [(4, 4), (0.5, 6), (1.0, 12)])
def test_every_batch_has_so_many_labelled_examples(labelled: float, count: int) -> None:
    batches = [stream(BatchPolicy(labelled=labelled)).batch(b) for b in range(20)]
    assert all(int((batch.y >= 0).sum()) == count for batch in batches)
    assert all(bool((batch.x[:, 0].long() == batch.index).all()) for batch in batches)


def test_each_part_goes_through_its_examples_before_it_repeats_one() -> None:
    by = stream(BatchPolicy(labelled=4))
    seen = torch.cat([by.batch(b).index for b in range(47)])
    known, unknown = seen[seen < LABELLED], seen[seen >= LABELLED]
    assert set(Counter(known[: 14 * LABELLED].tolist()).values()) == {14}
    assert set(Counter(unknown[: 8 * (N - LABELLED)].tolist()).values()) == {8}
    rounds = known[: 14 * LABELLED].view(14, LABELLED)
    assert len({tuple(each.tolist()) for each in rounds}) == 14  # another order each time


@pytest.mark.parametrize("policy", [BatchPolicy(labelled=4), BatchPolicy(balanced="label"), BatchPolicy(6, "label")])
@pytest.mark.parametrize("resident", [False, True])
def test_a_batch_is_a_function_of_its_number(policy: BatchPolicy, resident: bool) -> None:
    """What a resume needs: batch b of a new stream, and of one that has come from elsewhere."""
    visited = stream(policy, resident=resident)
    for b in (5, 0, 41, 5, 7, 6, 0):
        a, fresh = visited.batch(b), stream(policy).batch(b)
        assert torch.equal(a.x, fresh.x)
        assert torch.equal(a.y, fresh.y)
        assert torch.equal(a.index, fresh.index)
    assert not torch.equal(stream(policy).batch(0).index, stream(policy, seed=4).batch(0).index)


@pytest.mark.parametrize("policy", [BatchPolicy(labelled=4), BatchPolicy(4, "label"), BatchPolicy(balanced="label")])
def test_processes_share_the_same_batch_and_each_has_its_part_of_the_labels(policy: BatchPolicy) -> None:
    for b in range(7):
        whole = stream(policy, binarise="dynamic").batch(b)
        shares = [stream(policy, rank=rank, world_size=4, binarise="dynamic").batch(b) for rank in range(4)]
        assert torch.equal(torch.cat([share.index for share in shares]), whole.index)
        assert torch.equal(torch.cat([share.x for share in shares]), whole.x)  # the noise too
        assert len({int((share.y >= 0).sum()) for share in shares}) == 1


@pytest.mark.parametrize("batch_size", [12, 10])
def test_balanced_classes(batch_size: int) -> None:
    by = stream(BatchPolicy(balanced="label"), batch_size=batch_size)
    counts = [torch.bincount(by.batch(b).y, minlength=CLASSES) for b in range(12)]
    assert all(int(count.max() - count.min()) <= 1 for count in counts)  # 10 = 3 + 3 + 4
    assert torch.stack(counts).sum(0).tolist() == [4 * batch_size] * CLASSES


def test_balanced_domains_and_a_balanced_labelled_part() -> None:
    by = stream(BatchPolicy(balanced="domain"), factors=True)
    for b in range(5):
        assert torch.bincount(by.batch(b).y // 2).tolist() == [4, 4, 4]
    by = stream(BatchPolicy(labelled=4, balanced="label"))
    y = torch.cat([by.batch(b).y for b in range(3)])
    assert torch.bincount(y[y >= 0]).tolist() == [4, 4, 4]


def test_where_all_are_labelled_nothing_changes() -> None:
    plain, asked = stream(None, labelled=N), stream(BatchPolicy(labelled=4), labelled=N)
    for b in range(6):
        assert torch.equal(plain.batch(b).index, asked.batch(b).index)


@pytest.mark.parametrize(
    ("policy", "settings", "what"),
    [
        (BatchPolicy(labelled=13), {}, "batch of 12"),
        (BatchPolicy(labelled=0), {}, "batch of 12"),
        (BatchPolicy(labelled=3), {"world_size": 4}, "cannot share"),
        (BatchPolicy(balanced="label"), {"labelled": 2}, "of every class"),
        (BatchPolicy(balanced="domain"), {}, "factors are: none"),
    ],
)
def test_what_cannot_be_had(policy: BatchPolicy, settings: dict[str, int], what: str) -> None:
    with pytest.raises(UserError, match=what):
        stream(policy, **settings)
