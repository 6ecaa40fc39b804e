"""The mean-covariance RBM: both kinds of bits summed out, and Hamiltonian chains against quadrature."""

import itertools

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import PCD
from dgmbench.models.boltzmann.mcrbm import McRbm
from dgmbench.models.contract import HasUnnormalisedElbo

PLANE = DataSpec((2,), "real")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> McRbm:
    torch.manual_seed(0)
    model = McRbm(PLANE, filters=3, covariances=2, means=2, leapfrog_steps=5, **settings).double()  # type: ignore[arg-type]
    g = seeded(1)
    with torch.no_grad():
        for p in (model.visible_bias, model.covariance_bias, model.mean_bias, model.mean_weight):
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.pools.copy_(-torch.rand(model.pools.shape, generator=g, dtype=torch.float64))
    return model


def hidden() -> tuple[Tensor, Tensor]:
    """All states of two covariance and two mean units."""
    both = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    return both[:, :2], both[:, 2:]


def energies(model: McRbm, v: Tensor) -> Tensor:
    """E(v, h, g) of every hidden state and every v, (16, n), term by term."""
    value = torch.zeros(16, len(v), dtype=torch.float64)
    for row, (h, g) in enumerate(zip(*hidden(), strict=True)):
        precision = model.log_precision.exp().diag()
        for k in range(2):
            for f in range(3):
                precision = precision - 2 * h[k] * model.pools[f, k] * torch.outer(
                    model.filters[:, f], model.filters[:, f]
                )
        linear = model.visible_bias + model.mean_weight @ g
        constant = h @ model.covariance_bias + g @ model.mean_bias
        value[row] = 0.5 * ((v @ precision) * v).sum(1) - v @ linear - constant
    return value.detach()


def plane() -> Tensor:
    axis = torch.linspace(-18.0, 18.0, 400, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def test_the_free_energy_sums_both_kinds_of_bits_out() -> None:
    model = make()
    v = torch.randn(7, 2, generator=seeded(), dtype=torch.float64)
    minus = -energies(model, v)
    torch.testing.assert_close(model.couplings().free_energy(v).detach(), -minus.logsumexp(0))
    expected = minus.softmax(0).t() @ torch.cat(hidden(), 1)
    torch.testing.assert_close(model.encode(model.continuous(v)).detach(), expected)


def test_log_z_and_the_gaussians_given_both_are_those_of_quadrature() -> None:
    model, v = make(), plane()
    area = float((v[1, 1] - v[0, 1]).square())
    each = -energies(model, v)
    found = model.annealing_path().exact_log_partition()
    assert found is not None
    assert float(found) == pytest.approx(float(each.flatten().logsumexp(0)) + np.log(area), abs=1e-6)
    with torch.no_grad():
        _, mean, covariance = model.couplings().given_hidden(*hidden())
    normals = MultivariateNormal(mean, covariance).log_prob(v[:, None]).t()
    torch.testing.assert_close(normals, each - each.logsumexp(1, keepdim=True) - np.log(area), rtol=0, atol=1e-6)


def test_chains_have_the_mean_and_covariance_of_quadrature() -> None:
    model, v, n = make(sample_steps=40), plane(), 8000
    model.dynamics.log_step.fill_(np.log(0.4))
    p = torch.softmax((-energies(model, v)).logsumexp(0), 0)
    mean = p @ v
    covariance = torch.einsum("n,ni,nj->ij", p, v - mean, v - mean)
    found = model.flatten(model.sample(n, generator=seeded()).double()) - mean
    products = found[:, :, None] * found[:, None, :]
    assert mean.abs().max() > 0.3, "the mean units do nothing"
    assert (found.mean(0).abs() < 4 * found.std(0) / n**0.5).all()
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / n**0.5).all()


def test_training_learns_mean_and_covariance_that_change_together() -> None:
    """Two clusters, one of which is long: better than the best Gaussian, by the exact likelihood."""
    g = seeded(5)
    side = torch.randint(2, (200, 1), generator=g)
    x = torch.randn(200, 2, generator=g) * torch.cat([0.3 + 1.2 * side, 0.3 + 0 * side], 1) + 3.0 * side
    torch.manual_seed(0)
    model = McRbm(PLANE, filters=4, covariances=4, means=3, estimator=PCD(k=2, chains=100), leapfrog_steps=6)
    model.initialise(Batch(x), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        model.after_step("model", Batch(x), g)
    gaussian = MultivariateNormal(x.mean(0), torch.cov(x.T)).log_prob(x).mean()
    log_z = model.annealing_path().exact_log_partition()
    assert log_z is not None
    with torch.no_grad():
        assert model.log_prob_unnormalised(x).mean() - log_z > gaussian + 0.04


def test_levels_have_a_bound_and_bits_are_refused() -> None:
    assert isinstance(McRbm(DataSpec((1, 2, 2), "discrete", levels=4), filters=2, covariances=2), HasUnnormalisedElbo)
    with pytest.raises(UserError, match=r"mcrbm models real data or grey levels.*model=rbm"):
        McRbm(DataSpec((6,), "binary"))
    with pytest.raises(UserError, match=r"model.leapfrog_steps=0 must be at least 1"):
        McRbm(PLANE, leapfrog_steps=0)
