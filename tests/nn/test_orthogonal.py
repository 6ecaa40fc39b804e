"""The penalty on products of different rows: value, gradient by hand, and where weights start."""

import pytest
import torch
from torch import nn

from dgmbench.nn.orthogonal import orthogonal_penalty, start_orthogonal


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_gradient_is_the_formulas() -> None:
    """4 (W W' o (1 - I)) W, of a matrix and of a kernel; a factor of 2 less is a fault seen elsewhere."""
    matrix = torch.randn(3, 5, dtype=torch.float64, generator=seeded()).requires_grad_()
    kernel = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=seeded()).requires_grad_()
    value = orthogonal_penalty([matrix, kernel])
    by_pairs = sum(
        (w[i] * w[j]).sum() ** 2 for w in (matrix, kernel) for i in range(len(w)) for j in range(len(w)) if i != j
    )
    torch.testing.assert_close(value, by_pairs)
    for weight, gradient in zip((matrix, kernel), torch.autograd.grad(value, (matrix, kernel)), strict=True):
        w = weight.detach().flatten(1)
        expected = 4 * (w @ w.T * (1 - torch.eye(len(w)))) @ w
        torch.testing.assert_close(gradient.flatten(1), expected)


def test_lengths_of_rows_cost_nothing() -> None:
    scaled = torch.diag(torch.tensor([1.0, 5.0, 0.1]))
    assert orthogonal_penalty([scaled]) == 0
    assert orthogonal_penalty([scaled + 1]) > 1


def test_weights_start_orthogonal() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(4, 4))
    start_orthogonal(net)
    for layer in net:
        w = layer.weight.detach().flatten(1)  # type: ignore[union-attr,operator]
        torch.testing.assert_close(w @ w.T, torch.eye(len(w)), rtol=0, atol=1e-5)
    assert orthogonal_penalty([net[1].weight]).item() == pytest.approx(0, abs=1e-8)  # type: ignore[list-item]
