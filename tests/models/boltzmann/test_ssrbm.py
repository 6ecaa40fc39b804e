"""The spike-and-slab RBM as a mixture of Gaussians over its spikes, from the joint precision of pixels and slabs."""

import itertools

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import PCD
from dgmbench.models.boltzmann.ssrbm import MARGIN, SpikeSlabRbm
from dgmbench.models.contract import HasUnnormalisedElbo, HasUnnormalisedLogProb

PLANE = DataSpec((2,), "real")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = PLANE, hidden: int = 3, **settings: object) -> SpikeSlabRbm:
    torch.manual_seed(0)
    model = SpikeSlabRbm(spec, hidden=hidden, sample_steps=100, **settings).double()  # type: ignore[arg-type]
    g = seeded(1)
    with torch.no_grad():
        for p in (model.weight, model.visible_bias, model.hidden_bias, model.log_sigma, model.spike_bias):
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.bound_weights()
        mixed = torch.randn(spec.dim, spec.dim, generator=g, dtype=torch.float64)
        model.take_moments(torch.randn(50, spec.dim, generator=g, dtype=torch.float64) @ mixed + 1)
    return model


def spikes(model: SpikeSlabRbm) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=model.weight.shape[1])), dtype=torch.float64)


def joint(model: SpikeSlabRbm, z: Tensor) -> tuple[Tensor, MultivariateNormal]:
    """Log-weight of spikes z (h,) and the Gaussian of (v, s) given them, read off the energy's Hessian and gradient."""
    d = len(model.log_sigma)

    def negative_energy(both: Tensor) -> Tensor:
        u, s = both[:d] / model.log_sigma.exp(), both[d:]
        pull = model.visible_bias @ u + u @ model.weight @ (z * s) + model.hidden_bias @ (z * s)
        return pull - 0.5 * u @ u - 0.5 * s @ s + model.spike_bias @ z

    origin = torch.zeros(d + len(z), dtype=torch.float64)
    precision = -torch.autograd.functional.hessian(negative_energy, origin)
    pull = torch.autograd.functional.jacobian(negative_energy, origin)
    gaussian = MultivariateNormal(torch.linalg.solve(precision, pull), precision_matrix=precision)
    return (negative_energy(origin) - gaussian.log_prob(origin)).detach(), gaussian


def mixture_log_density(model: SpikeSlabRbm, v: Tensor) -> Tensor:
    """Of v (n, d): marginals of the joint Gaussians, weighted."""
    d, parts = len(model.log_sigma), []
    for z in spikes(model):
        weight, both = joint(model, z)
        parts.append(weight + MultivariateNormal(both.mean[:d], both.covariance_matrix[:d, :d]).log_prob(v))
    return torch.stack(parts).logsumexp(0) - torch.stack([joint(model, z)[0] for z in spikes(model)]).logsumexp(0)


def test_pixels_given_spikes_are_the_marginal_of_the_joint_gaussian() -> None:
    model = make(DataSpec((3,), "real"), hidden=4)
    z = spikes(model)
    with torch.no_grad():
        mean, covariance = model.visible_given_spikes(z)
    for row, one in enumerate(z):
        _, both = joint(model, one)
        torch.testing.assert_close(mean[row], both.mean[:3])
        torch.testing.assert_close(covariance[row], both.covariance_matrix[:3, :3])
    off_diagonal = covariance[-1][0, 1].abs()
    assert off_diagonal > 0.01, "pixels depend on each other given the bits"
    assert covariance[0][0, 1] == 0


def test_gibbs_over_slabs_and_pixels_has_that_mean_and_covariance() -> None:
    """With the spikes held by large log-odds, the chain of v and s alone; 40,000 chains from the origin."""
    model, n, z = make(), 40_000, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        model.spike_bias.copy_(200 * (2 * z - 1))
        v = model.gibbs(torch.zeros(n, 2, dtype=torch.float64), 60, generator=seeded())
        mean, covariance = (found[0] for found in model.visible_given_spikes(z[None]))
    deviation = covariance.diagonal().sqrt()
    assert ((v.mean(0) - mean).abs() < 4 * deviation / n**0.5).all()
    products = (v - mean)[:, :, None] * (v - mean)[:, None, :]
    assert ((products.mean(0) - covariance).abs() < 4 * products.std(0) / n**0.5).all()
    assert ((products.mean(0) - model.log_sigma.exp().square().diag()).abs() > 10 * products.std(0) / n**0.5).any()


def test_the_density_is_the_mixture_and_integrates_to_one() -> None:
    model = make()
    log_z = model.annealing_path().exact_log_partition()
    assert log_z is not None
    axis = torch.linspace(-25.0, 25.0, 400, dtype=torch.float64)
    v = torch.cartesian_prod(axis, axis)
    x = model.continuous(v)
    with torch.no_grad():
        density = model.log_prob_unnormalised(x) - log_z
        torch.testing.assert_close(density, mixture_log_density(model, v) + model.log_volume(), rtol=0, atol=1e-8)
    area = (axis[1] - axis[0]).square() * (-model.log_volume()).exp()
    assert float(density.exp().sum() * area) == pytest.approx(1, abs=1e-6)
    jacobian = torch.autograd.functional.jacobian(lambda y: model.flatten(y[None])[0], x[0])
    assert float(model.log_volume()) == pytest.approx(float(jacobian.slogdet()[1]), rel=1e-8)
    assert isinstance(model, HasUnnormalisedLogProb)
    levels = make(DataSpec((1, 1, 2), "discrete", levels=4))
    assert isinstance(levels, HasUnnormalisedElbo)
    assert not isinstance(levels, HasUnnormalisedLogProb)


def test_spikes_given_pixels_are_those_of_the_joint_density() -> None:
    model = make()
    v = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    found = []
    for z in spikes(model):
        weight, both = joint(model, z)
        found.append(weight + MultivariateNormal(both.mean[:2], both.covariance_matrix[:2, :2]).log_prob(v))
    p = torch.stack(found).softmax(0)  # (2^h, n)
    now = model.couplings()
    expected = torch.einsum("zn,zh->nh", p, spikes(model))
    torch.testing.assert_close(now.hidden_units.log_odds(now.hidden_logits(v)).sigmoid(), expected)
    mean = now.hidden_units.mean(now.hidden_logits(v))
    torch.testing.assert_close(model.encode(model.continuous(v)), mean)
    (slope,) = torch.autograd.grad(now.hidden_units.log_partition(now.hidden_logits(v)).sum(), now.hidden_bias)
    torch.testing.assert_close(slope, mean.sum(0))


def test_samples_have_the_mixtures_moments() -> None:
    model, n = make(), 20_000
    v = model.flatten(model.sample(n, generator=seeded()).double())
    weights, means, seconds = [], [], []
    for z in spikes(model):
        weight, both = joint(model, z)
        weights.append(weight)
        means.append(both.mean[:2])
        seconds.append(both.covariance_matrix[:2, :2] + both.mean[:2, None] * both.mean[:2])
    p = torch.stack(weights).softmax(0)
    mean, second = p @ torch.stack(means), torch.einsum("z,zij->ij", p, torch.stack(seconds))
    products = v[:, :, None] * v[:, None, :]
    assert ((v.mean(0) - mean).abs() < 4 * v.std(0) / n**0.5).all()
    assert ((products.mean(0) - second).abs() < 4 * products.std(0) / n**0.5).all()


def test_weights_that_would_leave_no_precision_are_cut_after_each_step() -> None:
    model = make(hidden=5)
    with torch.no_grad():
        model.weight.mul_(10)
        before = model.weight.clone()
        model.after_step("model", Batch(torch.zeros(2, 2)), seeded())
    values = torch.linalg.svdvals(model.weight)
    torch.testing.assert_close(values, torch.full_like(values, (1 - MARGIN) ** 0.5))
    u, _, v = torch.linalg.svd(before, full_matrices=False)
    torch.testing.assert_close(model.weight.detach(), (1 - MARGIN) ** 0.5 * u @ v)
    with torch.no_grad():
        small = model.weight.mul_(0.5).clone()
        model.bound_weights()
    assert (model.weight == small).all()


def test_training_finds_what_a_gaussian_cannot() -> None:
    """Two directions of which one at a time is wide: kurtosis without correlation, whose best Gaussian is round."""
    g = seeded(5)
    which = torch.randint(2, (600, 1), generator=g)
    scale = torch.cat([0.2 + 1.6 * which, 1.8 - 1.6 * which], 1)
    x = scale * torch.randn(600, 2, generator=g)
    torch.manual_seed(0)
    model = SpikeSlabRbm(PLANE, hidden=4, estimator=PCD(k=5, chains=200), weight_std=0.2)
    model.initialise(Batch(x), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / 300)
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        model.after_step("model", Batch(x), g)
    gaussian = MultivariateNormal(x.mean(0), torch.cov(x.T)).log_prob(x).mean()
    log_z = model.annealing_path().exact_log_partition()
    assert log_z is not None
    with torch.no_grad():
        assert model.log_prob_unnormalised(x).mean() - log_z > gaussian + 0.2


def test_bits_are_refused_with_a_pointer() -> None:
    with pytest.raises(UserError, match=r"ssrbm models real data or grey levels.*model=rbm"):
        SpikeSlabRbm(DataSpec((6,), "binary"))
