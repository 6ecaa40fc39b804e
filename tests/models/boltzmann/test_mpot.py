"""Mean product of Student-t: its Gamma units integrated out numerically, and Hamiltonian chains against quadrature."""

import itertools

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Gamma

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import PCD
from dgmbench.models.boltzmann.gated_mrf import Precisions
from dgmbench.models.boltzmann.mpot import MPot
from dgmbench.models.contract import HasUnnormalisedElbo
from dgmbench.nn.hmc import at

PLANE = DataSpec((2,), "real")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> MPot:
    torch.manual_seed(0)
    model = MPot(PLANE, filters=3, covariances=2, means=2, leapfrog_steps=5, **settings).double()  # type: ignore[arg-type]
    g = seeded(1)
    with torch.no_grad():
        for p in (model.visible_bias, model.covariance_bias, model.mean_bias, model.mean_weight):
            p.copy_(0.7 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.pools.copy_(-torch.rand(model.pools.shape, generator=g, dtype=torch.float64))
    return model


def violations(model: MPot, v: Tensor) -> Tensor:
    """y (n, 2) by loops."""
    columns = []
    for k in range(2):
        columns.append(-sum(model.pools[f, k] * (v @ model.filters[:, f]).square() for f in range(3)))
    return torch.stack(columns, 1).detach()  # type: ignore[arg-type]


def test_the_marginal_over_gamma_units_is_that_of_numeric_integration() -> None:
    """exp(-F) = sum over g of the integral over both u of exp(-E): u on a grid of logarithms, where du = u d log u."""
    model = make()
    v = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    gamma, y = model.covariance_bias.exp().detach(), violations(model, v)
    t = torch.linspace(-60, 6, 6601, dtype=torch.float64)  # log u
    u = t.exp()[:, None, None]
    minus = -(u * (1 + y) + (1 - gamma) * t[:, None, None]) + t[:, None, None]
    over_u = (minus.logsumexp(0) + np.log(float(t[1] - t[0]))).sum(1)
    g = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)
    over_g = (model.mean_bias + v @ model.mean_weight) @ g.t()
    background = 0.5 * v.square() @ model.log_precision.exp() - v @ model.visible_bias
    now = model.couplings()
    expected = background - over_u - over_g.logsumexp(1)
    torch.testing.assert_close(now.free_energy(v), expected, rtol=0, atol=1e-5)
    mean_u = (minus.softmax(0) * u).sum(0)
    torch.testing.assert_close(model.encode(model.continuous(v))[:, :2], mean_u, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mean_u, Gamma(gamma, 1 + y).mean, rtol=1e-4, atol=1e-6)
    point = at(v, lambda z: -now.free_energy(z))
    torch.testing.assert_close(now.score(v), (point.value, point.gradient))


def test_one_unit_alone_is_a_student_t() -> None:
    """Of one filter and no background (1 + y)^-gamma is a t density of 2 gamma - 1 degrees of freedom, unnormalised."""
    t, gamma, p = torch.linspace(-5, 5, 50, dtype=torch.float64), torch.tensor([2.5], dtype=torch.float64), 0.7
    log_p = -Precisions(gamma.log()).free_energy(p * t[:, None].square())[:, 0]
    degrees = 2 * float(gamma) - 1
    student = torch.distributions.StudentT(degrees, 0.0, (1 / (p * degrees)) ** 0.5).log_prob(t.double())
    assert (log_p - student).std() < 1e-7


def test_chains_have_the_mean_and_covariance_of_quadrature() -> None:
    model, n = make(sample_steps=40), 8000
    model.dynamics.log_step.fill_(np.log(0.4))
    axis = torch.linspace(-12.0, 12.0, 400, dtype=torch.float64)
    v = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = torch.softmax(-model.couplings().free_energy(v), 0)
        found = model.flatten(model.sample(n, generator=seeded()).double())
    mean = p @ v
    covariance = torch.einsum("n,ni,nj->ij", p, v - mean, v - mean)
    products = (found - mean)[:, :, None] * (found - mean)[:, None, :]
    assert mean.abs().max() > 0.2, "the mean units do nothing"
    assert ((found.mean(0) - mean).abs() < 4 * found.std(0) / n**0.5).all()
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / n**0.5).all()
    assert model.annealing_path().exact_log_partition() is None, "Gamma units have no states to enumerate"


def test_training_finds_heavy_tails() -> None:
    """Student-t data of three degrees: above the best Gaussian, log Z by quadrature."""
    g = seeded(5)
    x = torch.randn(300, 2, generator=g) / (torch.randn(300, 1, 3, generator=g).square().mean(2)).sqrt()
    torch.manual_seed(0)
    model = MPot(PLANE, filters=4, covariances=1, means=0, estimator=PCD(k=2, chains=100), leapfrog_steps=6)
    model.initialise(Batch(x), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        model.after_step("model", Batch(x), g)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T)).log_prob(x).mean()
    axis = torch.linspace(-25.0, 25.0, 700)
    v = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_z = (-model.couplings().free_energy(v)).double().logsumexp(0) + 2 * np.log(float(axis[1] - axis[0]))
        assert model.log_prob_unnormalised(x).mean() - log_z > gaussian + 0.1


def test_levels_have_a_bound_and_bits_are_refused() -> None:
    assert isinstance(MPot(DataSpec((1, 2, 2), "discrete", levels=4), filters=2, covariances=2), HasUnnormalisedElbo)
    with pytest.raises(UserError, match=r"mpot models real data or grey levels.*model=rbm"):
        MPot(DataSpec((6,), "binary"))
    with pytest.raises(UserError, match=r"model.covariances=0 must be at least 1"):
        MPot(PLANE, covariances=0)
