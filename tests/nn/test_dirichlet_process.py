"""Assignments of a Dirichlet process mixture: the prior, and the posterior against all partitions of four examples."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from dgmbench.nn.dirichlet_process import NOWHERE, assign, slot_weights

Partition = tuple[int, ...]


def canonical(slots: list[int]) -> Partition:
    """A partition by the order in which its blocks begin."""
    names: dict[int, int] = {}
    return tuple(names.setdefault(slot, len(names)) for slot in slots)


def partitions(n: int) -> list[Partition]:
    return sorted({canonical(list(slots)) for slots in itertools.product(range(n), repeat=n)})


def log_prior(partition: Partition, alpha: float) -> float:
    """That of the Chinese restaurant process."""
    sizes = Counter(partition).values()
    seats = sum(math.log(alpha + i) for i in range(len(partition)))
    return len(sizes) * math.log(alpha) + sum(math.lgamma(size) for size in sizes) - seats


def seated(n: int, slots: int, alpha: float, generator: torch.Generator) -> torch.Tensor:
    """n examples of no likelihood, one after another into empty slots: a draw of the prior."""
    nowhere, empty = torch.full((n,), NOWHERE), torch.zeros(slots, dtype=torch.int64)
    found, counts = assign(nowhere, empty, torch.arange(n), torch.zeros(n, slots), alpha, generator)
    assert torch.equal(counts, torch.bincount(found, minlength=slots))
    return found


def test_the_priors_number_of_components() -> None:
    """sum_i alpha / (alpha + i - 1), with its variance sum_i p_i (1 - p_i): 7.04 for alpha = 2 and 50 examples."""
    g, draws = torch.Generator().manual_seed(0), 200
    p = np.array([2 / (2 + i) for i in range(50)])
    assert p.sum() == pytest.approx(7.04, abs=0.005)
    found = [len(seated(50, 50, 2.0, g).unique()) for _ in range(draws)]
    assert abs(np.mean(found) - p.sum()) < 4 * math.sqrt((p * (1 - p)).sum() / draws)
    # and sweeps leave the prior as it is
    slots, counts = torch.zeros(20, dtype=torch.int64), torch.bincount(torch.zeros(20, dtype=torch.int64), minlength=20)
    seen = []
    for _ in range(400):
        slots, counts = assign(slots, counts, torch.arange(20), torch.zeros(20, 20), 2.0, g)
        seen.append(len(slots.unique()))
    blocks = np.array(seen[20:]).reshape(20, -1).mean(1)  # of sweeps that depend on each other
    expected = sum(2 / (2 + i) for i in range(20))
    assert abs(blocks.mean() - expected) < 4.5 * blocks.std(ddof=1) / math.sqrt(20)


def test_four_examples_follow_the_posterior_of_all_partitions() -> None:
    """Bits with a Beta(1, 1) base measure, so that a block has the evidence B(1 + ones, 1 + zeros).

    Slots have parameters: those in use are drawn from their posterior, empty ones from the base measure. All 15
    partitions by enumeration, frequencies by chi-squared over sweeps far enough apart.
    """
    alpha, slots, bits = 0.8, 6, torch.tensor([1, 1, 0, 1])
    every = partitions(4)
    assert len(every) == 15
    log_p = []
    for partition in every:
        total = log_prior(partition, alpha)
        for block in set(partition):
            n, ones = partition.count(block), int(bits[torch.tensor(partition) == block].sum())
            total += math.lgamma(1 + ones) + math.lgamma(1 + n - ones) - math.lgamma(2 + n)
        log_p.append(total)
    exact = np.exp(np.array(log_p) - np.logaddexp.reduce(log_p))
    g, rng = torch.Generator().manual_seed(0), np.random.RandomState(0)
    held, counts = torch.zeros(4, dtype=torch.int64), torch.tensor([4, *[0] * (slots - 1)])
    seen: Counter[Partition] = Counter()
    sweeps, apart = 4500, 3
    for sweep in range(sweeps):
        ones = np.bincount(held.numpy(), bits.numpy(), slots)
        theta = rng.beta(1 + ones, 1 + counts.numpy() - ones)
        likelihood = torch.from_numpy(np.where(bits[:, None] == 1, theta, 1 - theta)).log()
        held, counts = assign(held, counts, torch.arange(4), likelihood, alpha, g)
        if sweep % apart == 0:
            seen[canonical(held.tolist())] += 1
    expected = exact * sum(seen.values())
    found = np.array([seen[partition] for partition in every])
    assert stats.chisquare(found, expected).pvalue > 1e-3
    # what the test would see: the prior alone is far off
    prior = np.exp([log_prior(partition, alpha) for partition in every])
    assert prior.sum() == pytest.approx(1.0)
    assert stats.chisquare(found, prior * sum(seen.values())).pvalue < 1e-6


def test_only_the_named_rows_move_and_a_full_store_begins_nothing() -> None:
    assert slot_weights(torch.tensor([3, 0, 1, 0]), 0.5).tolist() == [3.0, 0.25, 1.0, 0.25]
    assert slot_weights(torch.tensor([3, 1]), 0.5).tolist() == [3.0, 1.0]
    slots, counts = torch.tensor([0, 0, 1, 2]), torch.tensor([2, 1, 1])
    certain = torch.tensor([[-1e9, 0.0, -1e9], [0.0, -1e9, -1e9]])
    g = torch.Generator().manual_seed(0)
    after, held = assign(slots, counts, torch.tensor([3, 1]), certain, 1.0, g)
    assert after.tolist() == [0, 0, 1, 1]
    assert held.tolist() == [2, 2, 0]
    assert slots.tolist() == [0, 0, 1, 2]
    assert counts.tolist() == [2, 1, 1]
