"""Random features against the exact kernel and the exact discrepancy; the probe against scikit-learn's regression."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Generator

from dgmbench.nn.logistic_probe import fit_logistic
from dgmbench.nn.mmd import mmd_squared, rbf_mixture, squared_distances
from dgmbench.nn.random_features import draw_features, feature_mmd_squared

COUNT = 10_000


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("bandwidth", [0.7, 2.0])
def test_products_of_features_are_the_kernel(bandwidth: float) -> None:
    x = torch.randn(6, 3, generator=seeded(1), dtype=torch.float64)
    features = draw_features(x, COUNT, bandwidth, seeded(2))(x)
    each = COUNT * features[:, None] * features  # one estimate of the kernel by each feature
    exact = torch.exp(-squared_distances(x, x) / (2 * bandwidth**2))
    assert ((each.mean(2) - exact).abs() < 4.5 * each.std(2) / COUNT**0.5).all()


@pytest.mark.parametrize("bandwidth", [0.7, 2.0])
def test_the_discrepancy_is_the_exact_one_within_the_error_of_the_number_of_features(bandwidth: float) -> None:
    x = torch.randn(30, 3, generator=seeded(1), dtype=torch.float64)
    y = 0.6 + torch.randn(20, 3, generator=seeded(2), dtype=torch.float64)
    features = draw_features(x, COUNT, bandwidth, seeded(3))
    exact = mmd_squared(x, y, rbf_mixture(torch.tensor([bandwidth], dtype=torch.float64))).v_statistic
    each = COUNT * (features(x).mean(0) - features(y).mean(0)).square()
    error = each.std() / COUNT**0.5
    assert error < 0.1 * exact  # the comparison says something
    assert (feature_mmd_squared(x, y, features) - exact).abs() < 4.5 * error
    assert feature_mmd_squared(x, x, features) == 0


def test_the_mean_over_draws_of_a_few_features_is_the_exact_discrepancy() -> None:
    x = torch.randn(12, 2, generator=seeded(1), dtype=torch.float64)
    y = 1 + torch.randn(9, 2, generator=seeded(2), dtype=torch.float64)
    drawn = torch.stack([feature_mmd_squared(x, y, draw_features(x, 10, 1.5, seeded(k))) for k in range(300)])
    exact = mmd_squared(x, y, rbf_mixture(torch.tensor([1.5], dtype=torch.float64))).v_statistic
    assert (drawn.mean() - exact).abs() < 4.5 * drawn.std() / 300**0.5


def test_the_probe_is_the_logistic_regression() -> None:
    x = torch.randn(300, 2, generator=seeded(1), dtype=torch.float64)
    y = (torch.rand(300, generator=seeded(2)) < torch.sigmoid(3 * x[:, 0] - x[:, 1] + 0.5)).long()
    found = fit_logistic(x, y)
    peer = LogisticRegression(C=1.0, tol=1e-10).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(found.numpy(), [*peer.coef_[0], peer.intercept_[0]], atol=1e-4)
    apart = fit_logistic(torch.where(y == 1, 20.0, -20.0)[:, None], y)  # the ridge keeps what is separable finite
    assert torch.isfinite(apart).all()
    assert apart[0] > 0
