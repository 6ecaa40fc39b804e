"""The Gaussian RBM as the mixture of Gaussians that it is, of real data and of data with levels."""

import itertools

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import Normal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import CD, PT, RatioMatching
from dgmbench.models.boltzmann.gaussian_rbm import GaussianRbm
from dgmbench.models.contract import HasUnnormalisedElbo, HasUnnormalisedLogProb

PLANE = DataSpec((2,), "real")
LEVELS = DataSpec((1, 1, 2), "discrete", levels=4)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = PLANE, hidden: int = 3, **settings: object) -> GaussianRbm:
    torch.manual_seed(0)
    model = GaussianRbm(spec, hidden=hidden, sample_steps=60, **settings).double()  # type: ignore[arg-type]
    g = seeded()
    with torch.no_grad():
        for p in (model.weight, model.visible_bias, model.hidden_bias):
            p.copy_(0.8 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.log_sigma.copy_(torch.tensor([-0.3, 0.4]))
        model.mean.copy_(torch.tensor([1.5, 2.0]))
        model.deviation.copy_(torch.tensor([0.9, 1.3]))
    return model


def mixture(model: GaussianRbm) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights (2^H,), means (2^H, 2) and deviations (2,) of p(x): of v given h is sigma (a + W h) the mean, and
    what is left of the energy after the square is completed, b'h + |a + W h|^2 / 2, is the weight.
    """
    h = torch.tensor(list(itertools.product([0.0, 1.0], repeat=model.weight.shape[1])), dtype=torch.float64)
    inner = (model.visible_bias + h @ model.weight.t()).detach()
    sigma = model.log_sigma.exp().detach()
    weights = (h @ model.hidden_bias + 0.5 * inner.square().sum(1)).detach().log_softmax(0)
    return weights, inner * sigma * model.deviation + model.mean, sigma * model.deviation


def mixture_log_prob(model: GaussianRbm, x: Tensor) -> Tensor:
    weights, means, deviations = mixture(model)
    return (weights + Normal(means, deviations).log_prob(x[:, None]).sum(2)).logsumexp(1)


def log_z(model: GaussianRbm) -> float:
    found = model.annealing_path().exact_log_partition()
    assert found is not None
    return float(found)


def test_the_density_is_the_mixture_and_integrates_to_one() -> None:
    model = make()
    axis = torch.linspace(-12.0, 15.0, 200, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = model.log_prob_unnormalised(grid) - log_z(model)
    torch.testing.assert_close(density, mixture_log_prob(model, grid), rtol=0, atol=1e-8)
    area = (axis[1] - axis[0]).square()
    assert float(density.exp().sum() * area) == pytest.approx(1, abs=1e-6)
    assert isinstance(model, HasUnnormalisedLogProb)


def test_samples_have_the_mixtures_moments_and_not_those_of_its_means() -> None:
    """Sampling the conditional mean in place of a draw would lose sigma^2 of the variance."""
    model, n = make(), 20_000
    x = model.sample(n, generator=seeded()).double()
    log_weights, means, deviations = mixture(model)
    weights = log_weights.exp()[:, None]
    mean = (weights * means).sum(0)
    of_means = (weights * (means - mean).square()).sum(0)
    variance = of_means + deviations.square()
    error = (variance / n).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * error).all()
    spread = (x - mean).square()
    assert ((spread.mean(0) - variance).abs() < 4 * spread.std(0) / n**0.5).all()
    assert ((spread.mean(0) - of_means) > 20 * spread.std(0) / n**0.5).all()


def test_levels_have_a_bound_below_the_mass_of_their_cells() -> None:
    model = make(LEVELS)
    log_weights, means, deviations = mixture(model)
    x = torch.tensor(list(itertools.product(range(4), repeat=2)), dtype=torch.uint8).view(-1, 1, 1, 2)
    low = x.view(-1, 1, 2).double()
    normal = Normal(means, deviations)
    cells = (normal.cdf(low + 1) - normal.cdf(low)).log().sum(2)
    mass = (log_weights + cells).logsumexp(1)
    with torch.no_grad():
        draws = torch.stack([model.elbo_unnormalised(x, generator=seeded(n)) for n in range(400)]) - log_z(model)
    bound, error = draws.mean(0), draws.std(0) / 20
    assert (bound < mass + 4 * error).all()
    assert (bound < mass - 0.1).any()
    centre = torch.linspace(0.5 / 40, 1 - 0.5 / 40, 40, dtype=torch.float64)
    inside = low + torch.cartesian_prod(centre, centre)  # (16, 1600, 2)
    exact = mixture_log_prob(model, inside.view(-1, 2)).view(16, -1).mean(1)
    assert ((bound - exact).abs() < 4 * error + 1e-3).all()
    assert isinstance(model, HasUnnormalisedElbo)
    assert not isinstance(model, HasUnnormalisedLogProb)


def test_samples_of_levels_are_those_of_the_cells_with_the_rest_on_the_outermost() -> None:
    model, n = make(LEVELS), 20_000
    x = model.sample(n, generator=seeded())
    assert x.dtype == torch.uint8
    log_weights, means, deviations = mixture(model)
    edges = torch.tensor([-torch.inf, 1.0, 2.0, 3.0, torch.inf], dtype=torch.float64)[:, None, None]
    cdf = Normal(means, deviations).cdf(edges)
    cells = (cdf[1:] - cdf[:-1]).unbind(2)  # of each dimension (4, 2^H)
    p = torch.einsum("k,ik,jk->ij", log_weights.exp(), *cells)
    found = torch.bincount((x[:, 0, 0, 0].long() * 4 + x[:, 0, 0, 1].long()), minlength=16).view(4, 4) / n
    assert ((found - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize("estimator", [CD(k=2), PT(chains=50, temperatures=4)])
def test_training_by_any_estimator_finds_two_clusters(estimator: object) -> None:
    """Above the best Gaussian by most of the log 2 that two far clusters are worth, in a few hundred steps."""
    g = seeded(7)
    side = torch.randint(2, (400, 1), generator=g) * 2 - 1
    x = torch.cat([3.0 * side, side * 1.0], 1) + 0.5 * torch.randn(400, 2, generator=g)
    torch.manual_seed(0)
    model = GaussianRbm(PLANE, hidden=4, estimator=estimator, weight_std=0.1)  # type: ignore[arg-type]
    model.initialise(Batch(x), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(250):
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        model.after_step("model", Batch(x), g)
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T)).log_prob(x).mean()
    with torch.no_grad():
        found = model.log_prob_unnormalised(x).mean() - log_z(model)
    assert found > gaussian + 0.3


def test_reconstructions_and_codes_are_one_step_of_means() -> None:
    model = make()
    x = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    sigma, v = model.log_sigma.exp(), (x - model.mean) / model.deviation
    h = ((v / sigma) @ model.weight + model.hidden_bias).sigmoid()
    torch.testing.assert_close(model.encode(x), h)
    back = sigma * (model.visible_bias + h @ model.weight.t()) * model.deviation + model.mean
    torch.testing.assert_close(model.reconstruct(x), back)
    levels = make(LEVELS)
    found = levels.reconstruct(torch.tensor([[[[0, 3]]]], dtype=torch.uint8))
    assert ((found >= 0) & (found <= 3)).all()


def test_data_and_estimators_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="choose model=rbm"):
        GaussianRbm(DataSpec((6,), "binary"))
    with pytest.raises(UserError, match="model/estimator=score_matching"):
        GaussianRbm(PLANE, estimator=RatioMatching())
