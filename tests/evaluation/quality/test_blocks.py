"""Blocks are disjoint, as long as asked for or a fifth of the smaller set, and their spread is the standard error."""

import numpy as np
import pytest
import torch

from dgmbench.evaluation.quality.blocks import over_blocks
from dgmbench.evaluation.quality.feature_set import shuffled


@pytest.mark.parametrize(("asked", "block"), [(4, 4), (1000, 5)])
def test_the_mean_and_its_error_by_hand(asked: int, block: int) -> None:
    rng = np.random.RandomState(0)
    data, samples = (torch.from_numpy(rng.randn(n, 2)) for n in (29, 33))
    seen: list[float] = []

    def statistic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape == b.shape == (block, 2)
        seen.extend(a[:, 0].tolist())
        return (a - b).square().sum()

    found = over_blocks(data, samples, statistic, block=asked, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    x, y = (shuffled(part, generator).numpy() for part in (data, samples))
    blocks = 29 // block
    values = [((x - y[:29])[i * block : (i + 1) * block] ** 2).sum() for i in range(blocks)]
    assert (found.block, found.blocks) == (block, blocks)
    assert found.value == pytest.approx(np.mean(values))
    assert found.se == pytest.approx(np.std(values, ddof=1) / np.sqrt(blocks))
    assert seen == x[: block * blocks, 0].tolist()  # every example once
