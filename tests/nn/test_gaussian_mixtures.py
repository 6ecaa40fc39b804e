"""Densities against torch, EM against scikit-learn from the same start, and its likelihood, which never falls."""

from itertools import pairwise

import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Generator

from dgmbench.nn.gaussian_mixtures import Mixtures, first_mixtures, fit_mixtures

FLOOR = 1e-3


def frames() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes, the second of two clusters."""
    g = Generator().manual_seed(0)
    y = torch.arange(240) % 3 // 2
    x = torch.randn(240, 2, generator=g, dtype=torch.float64) * torch.tensor([1.0, 0.4])
    x[::2] += torch.tensor([3.0, -1.0])
    return x, y


def started(components: int) -> Mixtures:
    x, y = frames()
    return first_mixtures(x, y, 2, components, floor=FLOOR, generator=Generator().manual_seed(1))


def test_densities_are_sums_over_gaussians() -> None:
    x, y = frames()
    found = fit_mixtures(x, y, started(3), floor=FLOOR, iterations=2)
    normal = torch.distributions.Normal(found.means, found.variances.sqrt())
    each = normal.log_prob(x[:, None, None]).sum(3) + found.log_weights
    torch.testing.assert_close(found.log_joint(x), each)
    torch.testing.assert_close(found.log_density(x), each.exp().sum(2).log())
    torch.testing.assert_close(found.log_weights.exp().sum(1), torch.ones(2, dtype=torch.float64))


def test_one_component_has_the_moments_of_its_class() -> None:
    x, y = frames()
    found = fit_mixtures(x, y, started(1), floor=FLOOR, iterations=1)
    for s in range(2):
        torch.testing.assert_close(found.means[s, 0], x[y == s].mean(0))
        torch.testing.assert_close(found.variances[s, 0], x[y == s].var(0, correction=0))


@pytest.mark.parametrize("iterations", [1, 7])
def test_em_is_scikit_learns_from_the_same_start(iterations: int) -> None:
    x, y = frames()
    start = started(2)
    found = fit_mixtures(x, y, start, floor=FLOOR, iterations=iterations)
    for s in range(2):
        peer = GaussianMixture(2, covariance_type="diag", reg_covar=0.0)
        peer.weights_, peer.means_ = start.log_weights[s].exp().numpy(), start.means[s].numpy()
        peer.covariances_ = start.variances[s].numpy()
        peer.precisions_cholesky_ = peer.covariances_**-0.5
        own = x[y == s].numpy()
        for _ in range(iterations):
            peer._m_step(own, peer._e_step(own)[1])
        torch.testing.assert_close(found.means[s], torch.from_numpy(peer.means_))
        torch.testing.assert_close(found.variances[s], torch.from_numpy(peer.covariances_))
        torch.testing.assert_close(found.log_weights[s].exp(), torch.from_numpy(peer.weights_))


def test_em_never_lowers_the_likelihood_and_finds_the_clusters() -> None:
    x, y = frames()
    now, values = started(2), []
    for _ in range(30):
        own = now.log_density(x).gather(1, y[:, None])
        values.append(float(own.sum()))
        now = fit_mixtures(x, y, now, floor=FLOOR, iterations=1)
    assert all(b >= a - 1e-9 for a, b in pairwise(values))
    assert values[-1] > values[0] + 50
    centres = now.means[0][now.means[0, :, 0].argsort()]
    torch.testing.assert_close(centres, torch.tensor([[0.0, 0.0], [3.0, -1.0]]).double(), rtol=0, atol=0.5)


def test_fewer_frames_than_components_keep_it_finite() -> None:
    x, y = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    start = first_mixtures(x, y, 2, 4, floor=FLOOR, generator=Generator().manual_seed(0))
    found = fit_mixtures(x, y, start, floor=FLOOR, iterations=5)
    assert all(each.isfinite().all() for each in found)
    assert float(found.variances.min()) == pytest.approx(FLOOR)
    torch.testing.assert_close(found.means[0], torch.tensor([[1.0, 2.0]]).double().expand(4, 2))
