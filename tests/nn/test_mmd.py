"""MMD: a closed form, unbiasedness, exact zeros, blocks against the dense computation, and the safe root."""

import itertools

import pytest
import torch
from torch import Tensor

from dgmbench.nn.mmd import kernel_sum, median_distance, mmd_squared, rbf_mixture, safe_sqrt, squared_distances


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


BANDWIDTHS = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
KERNEL = rbf_mixture(BANDWIDTHS)


def mean_kernel(mean: Tensor, variance: float, dim: int) -> float:
    """E exp(-|d|^2 / 2 s^2) for d ~ N(mean, variance I), averaged over the bandwidths s."""
    values = [
        (1 + variance / s**2) ** (-dim / 2) * torch.exp(-mean.square().sum() / (2 * (s**2 + variance)))
        for s in BANDWIDTHS
    ]
    return float(sum(values) / len(values))


def test_population_value_of_two_gaussians_in_closed_form():
    dim, shift, scale, n, repeats = 3, torch.tensor([0.7, -0.3, 0.2], dtype=torch.float64), 1.4, 60, 400
    exact = (
        mean_kernel(0 * shift, 2.0, dim)
        + mean_kernel(0 * shift, 2 * scale**2, dim)
        - 2 * mean_kernel(shift, 1 + scale**2, dim)
    )
    found = [
        mmd_squared(normal(n, dim, seed=2 * i), shift + scale * normal(n, dim, seed=2 * i + 1), KERNEL)
        for i in range(repeats)
    ]
    u = torch.stack([f.u_statistic for f in found])
    v = torch.stack([f.v_statistic for f in found])
    assert abs(u.mean().item() - exact) < 4 * u.std().item() / repeats**0.5
    bias = (2 - mean_kernel(0 * shift, 2.0, dim) - mean_kernel(0 * shift, 2 * scale**2, dim)) / n
    assert abs(v.mean().item() - exact - bias) < 4 * v.std().item() / repeats**0.5
    assert exact > 10 * u.std().item() / repeats**0.5


def test_u_statistic_averages_zero_over_two_samples_of_one_distribution():
    u = torch.stack(
        [mmd_squared(normal(40, 2, seed=2 * i), normal(30, 2, seed=2 * i + 1), KERNEL)[1] for i in range(600)]
    )
    assert abs(u.mean().item()) < 4 * u.std().item() / 600**0.5
    assert (u < 0).double().mean() > 0.3, "it is negative about as often as positive"


def test_identical_sets():
    x = normal(25, 4)
    found = mmd_squared(x, x.clone(), KERNEL)
    k = KERNEL(squared_distances(x, x))
    off_diagonal = (k.sum() - 25) / (25 * 24)
    assert found.v_statistic.item() == 0.0
    assert found.u_statistic.item() == pytest.approx(-2 * (1 - off_diagonal.item()) / 25, abs=1e-12)


@pytest.mark.parametrize(("n", "m", "block"), [(10, 7, 3), (9, 9, 4), (5, 12, 5), (6, 6, 1)])
def test_blocked_value_and_gradient_equal_the_dense_ones(n, m, block):
    results = []
    for size in (block, 1000):
        x, y = normal(n, 3).requires_grad_(), normal(m, 3, seed=1).requires_grad_()
        found = mmd_squared(x, y, KERNEL, block=size)
        results.append((*found, *torch.autograd.grad(found.v_statistic, (x, y))))
    for blocked, dense in zip(*results, strict=True):
        assert torch.allclose(blocked, dense, atol=1e-12)
    x, y = normal(n, 3), normal(m, 3, seed=1)
    by_hand = sum(
        sum(torch.exp(-(a - b).square().sum() / (2 * s**2)) for s in BANDWIDTHS) / 3 for a, b in itertools.product(x, y)
    )
    assert kernel_sum(x, y, KERNEL, block=block).item() == pytest.approx(by_hand.item(), abs=1e-10)


def test_blocks_bound_what_the_backward_pass_keeps():
    def largest(block: int) -> int:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            mmd_squared(normal(64, 2).requires_grad_(), normal(64, 2, seed=1), KERNEL, block=block)
        return max(kept)

    assert largest(1000) >= 64 * 64
    assert largest(8) <= 64 * 2


def test_safe_root_at_zero_and_elsewhere():
    x = normal(20, 3).requires_grad_()
    value = safe_sqrt(mmd_squared(x, x.detach().clone(), KERNEL).v_statistic)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0.0
    assert not gradient.any()
    four = torch.tensor(4.0, requires_grad=True)
    root = safe_sqrt(four)
    (gradient,) = torch.autograd.grad(root, four)
    assert (root.item(), gradient.item()) == (2.0, 0.25)


def test_median_distance():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    assert median_distance(x).item() == pytest.approx(5.0)
