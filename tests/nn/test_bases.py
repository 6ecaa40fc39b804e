"""Bases of flows: densities against scipy, draws against densities, temperatures, and labels."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from dgmbench.nn.bases import START_EXAMPLES, Base, Gaussian, LearnedGaussian, Logistic

DIM, N = 3, 40_000


def learned() -> LearnedGaussian:
    """One plain dimension, then one channel of two positions, for two classes."""
    base = LearnedGaussian(1, 2, 2).double()
    with torch.no_grad():
        base.mean.copy_(torch.tensor([[1.0], [-2.0]]))
        base.log_sigma.copy_(torch.tensor([[0.5], [-0.7]]))
    return base


def marginals(name: str) -> tuple[Base, Tensor | None, list]:
    if name == "gaussian":
        return Gaussian(), None, [stats.norm()] * DIM
    if name == "logistic":
        return Logistic(), None, [stats.logistic()] * DIM
    base, y = learned(), int(name[-1])
    scale = base.log_sigma[y].exp().item()
    last = stats.norm(base.mean[y].item(), scale)
    return base, torch.tensor([y]), [stats.norm(), last, last]


@pytest.mark.parametrize("name", ["gaussian", "logistic", "learned, class 0", "learned, class 1"])
@torch.no_grad()
def test_density_and_draws_are_of_one_distribution(name: str) -> None:
    base, y, truth = marginals(name)
    z = torch.linspace(-4, 4, 30, dtype=torch.float64).view(10, DIM)
    labels = None if y is None else y.expand(10)
    exact = sum(torch.from_numpy(each.logpdf(z[:, i].numpy())) for i, each in enumerate(truth))
    assert torch.allclose(base.log_prob(z, labels), exact)
    noise = base.noise(N, DIM, like=z, generator=torch.Generator().manual_seed(0))
    draws = base.from_noise(noise, None if y is None else y.expand(N))
    for i, each in enumerate(truth):
        assert stats.kstest(draws[:, i].numpy(), each.cdf).pvalue > 1e-4
    cold = base.from_noise(noise, None if y is None else y.expand(N), temperature=0.5)
    for i, each in enumerate(truth):
        centre = each.mean()
        assert torch.allclose(cold[:, i] - centre, 0.5 * (draws[:, i] - centre)), "T multiplies the noise, not the mean"


def test_logistic_noise_is_finite_in_single_precision() -> None:
    noise = Logistic().noise(2**20, 1, like=torch.zeros(()), generator=torch.Generator().manual_seed(0))
    assert noise.isfinite().all()
    assert Logistic().log_prob(torch.tensor([[200.0], [-200.0]])).tolist() == [-200.0, -200.0]


def test_classes_start_at_shrunk_moments_of_their_noise():
    """Each class's as if START_EXAMPLES more examples lay at mean 0 and squared deviation 1."""
    base, y = LearnedGaussian(2, 1, 2), torch.tensor([0, 1, 1, 0, 1])
    z = 3 + torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    base.start(z, y)
    for label in (0, 1):
        own, n = z[y == label], int((y == label).sum()) + START_EXAMPLES
        mean = own.sum(0) / n
        var = ((own - mean).square().sum(0) + START_EXAMPLES) / n
        assert torch.allclose(base.mean[label], mean)
        assert torch.allclose(2 * base.log_sigma[label], var.log(), atol=1e-6)
