"""Minibatch discrimination: against loops over the pairs, and at its two extremes."""

import torch

from dgmbench.nn.minibatch_discrimination import MinibatchDiscrimination


def made() -> MinibatchDiscrimination:
    torch.manual_seed(0)
    return MinibatchDiscrimination(4, kernels=3, width=2)


def test_closeness_by_loops_over_the_pairs() -> None:
    layer, f = made(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    m = (f @ layer.tensor.weight.T).view(5, 3, 2)
    expected = torch.zeros(5, 3)
    for i in range(5):
        for j in range(5):
            for b in range(3):
                expected[i, b] += torch.exp(-sum((m[i, b, c] - m[j, b, c]).abs() for c in range(2)))  # type: ignore[arg-type]
    torch.testing.assert_close(layer(f), expected)


def test_a_collapsed_batch_has_the_largest_closeness_and_a_scattered_one_the_least() -> None:
    layer, f = made(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(f[:1].expand(5, -1)), torch.full((5, 3), 5.0))
    torch.testing.assert_close(layer(1e4 * f), torch.ones(5, 3))
