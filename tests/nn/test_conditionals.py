"""One-dimensional conditionals against scipy, their own draws and the data's moments."""

import numpy as np
import pytest
import torch
from scipy import stats

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.conditionals import Conditionals

DISTRIBUTIONS = {"gaussian": stats.norm, "laplace": stats.laplace}


@pytest.mark.parametrize("density", ["gaussian", "laplace"])
def test_mixtures_equal_scipy(density):
    torch.manual_seed(0)
    conditionals = Conditionals(DataSpec((3,), "real"), components=4, density=density)
    parameters, x = torch.randn(5, 3, 12, dtype=torch.float64), torch.randn(5, 3)
    logits, mean, log_scale = parameters.unflatten(-1, (3, 4)).unbind(-2)
    scale = (log_scale / (1 + log_scale.abs() / 7)).exp()
    each = DISTRIBUTIONS[density](mean.numpy(), scale.numpy()).pdf(x.double().numpy()[..., None])
    expected = np.log((logits.softmax(-1).numpy() * each).sum(-1))
    assert np.allclose(conditionals.log_prob(parameters, x), expected, rtol=1e-9)


@pytest.mark.parametrize("density", ["gaussian", "laplace"])
def test_draws_of_a_mixture_follow_it(density):
    conditionals = Conditionals(DataSpec((1,), "real"), components=2, density=density)
    parameters = torch.tensor([0.4, -0.3, -1.0, 2.0, -0.5, 0.3], dtype=torch.float64)
    noise = conditionals.noise(20_000, parameters, generator=torch.Generator().manual_seed(0))[:, 0]
    x = conditionals.draw(parameters[:, None].expand(6, 20_000), noise)
    weight = parameters[:2].softmax(0).numpy()
    scale = (parameters[4:] / (1 + parameters[4:].abs() / 7)).exp().numpy()
    parts = DISTRIBUTIONS[density](parameters[2:4].numpy(), scale)
    assert stats.kstest(x.numpy(), lambda v: (weight * parts.cdf(v[:, None])).sum(1)).pvalue > 1e-3


def logistic_levels(parameters, components, levels):
    """P(level) by differences of scipy's distribution function between the middles of neighbouring levels."""
    logits, mean, log_scale = parameters.unflatten(-1, (3, components)).unbind(-2)
    scale = (log_scale / (1 + log_scale.abs() / 7)).exp()
    edges = np.concatenate([[-np.inf], (np.arange(levels - 1) + 0.5) / (levels - 1), [np.inf]])
    cdf = stats.logistic.cdf(edges, mean.numpy()[..., None], scale.numpy()[..., None])
    return (logits.softmax(-1).numpy()[..., None] * np.diff(cdf)).sum(-2)


def test_discretised_logistics_equal_scipy_and_sum_to_one():
    torch.manual_seed(0)
    conditionals = Conditionals(DataSpec((3,), "discrete", levels=6), components=4, discrete="logistics")
    parameters = torch.randn(5, 3, 12, dtype=torch.float64)
    parameters[..., 8:] -= 1.5  # about as wide as a level
    every = torch.stack(
        [conditionals.log_prob(parameters, torch.full((5, 3), level, dtype=torch.uint8)) for level in range(6)], -1
    )
    assert np.allclose(every.exp(), logistic_levels(parameters, 4, 6), rtol=1e-9)
    assert torch.allclose(every.exp().sum(-1), torch.ones(5, 3, dtype=torch.float64), atol=1e-12)


def test_a_level_far_out_of_a_narrow_logistic_keeps_its_logarithm_and_its_gradient():
    conditionals = Conditionals(DataSpec((1,), "discrete", levels=256), components=1)
    parameters = torch.tensor([[[0.0, 0.9, -1e6]]], requires_grad=True)  # the narrowest: exp(-7)
    log_p = conditionals.log_prob(parameters, torch.tensor([[3]], dtype=torch.uint8))
    # deep in the tail log P is linear in the distance: (edge - mean) / scale plus the log of the level's width
    scale = np.exp(-7 / (1 + 7 / 1e6))
    expected = (3.5 / 255 - 0.9) / scale + np.log1p(-np.exp(-1 / 255 / scale))
    assert float(log_p.detach()) == pytest.approx(expected, rel=1e-5)
    log_p.sum().backward()
    assert float(parameters.grad[0, 0, 1]) == pytest.approx(-1 / scale, rel=1e-4)


def test_draws_of_discretised_logistics_follow_them():
    conditionals = Conditionals(DataSpec((1,), "discrete", levels=5), components=2, discrete="logistics")
    parameters = torch.tensor([0.4, -0.3, 0.1, 0.8, -2.0, -1.0], dtype=torch.float64)
    noise = conditionals.noise(20_000, parameters, generator=torch.Generator().manual_seed(0))[:, 0]
    drawn = conditionals.draw(parameters[:, None].expand(6, 20_000), noise)
    raw = conditionals.raw(drawn[:, None])
    assert torch.allclose(conditionals.inputs(raw, drawn), drawn[:, None], atol=1e-6)  # as networks see the levels
    counts = torch.bincount(raw.flatten().long(), minlength=5).numpy()
    expected = 20_000 * logistic_levels(parameters, 2, 5)
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_many_levels_are_mixtures_and_few_are_categories():
    few, many = (Conditionals(DataSpec((2,), "discrete", levels=levels)) for levels in (64, 65))
    assert (few.parameters_per_dim, many.parameters_per_dim) == (64, 30)
    categorical = Conditionals(DataSpec((2,), "discrete", levels=65), discrete="categorical")
    assert categorical.parameters_per_dim == 65


@pytest.mark.parametrize("kind", ["real", "discrete"])
@pytest.mark.parametrize("density", ["gaussian", "laplace"])
def test_the_marginals_have_the_data_s_scale(kind, density):
    spec = DataSpec((2,), kind, levels=256 if kind == "discrete" else None)
    conditionals = Conditionals(spec, components=400, density=density)
    centre, width = ([3.0, -40.0], [0.1, 5.0]) if kind == "real" else ([100.0, 200.0], [20.0, 5.0])
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(centre) + torch.tensor(width) * noise
    if kind == "discrete":
        x = x.round().to(torch.uint8)
    bias = torch.zeros(2, 1200, dtype=torch.float64)
    conditionals.initialise(bias, x, torch.Generator().manual_seed(1))
    _, mean, log_scale = conditionals.mixture(bias.T)
    components = stats.logistic if kind == "discrete" else DISTRIBUTIONS[density]
    spread = components(0, log_scale.exp().numpy()).std()
    x = conditionals.inputs(x, bias)
    assert np.allclose(spread, x.std(0, correction=0).numpy(), rtol=1e-4)
    assert ((mean.mean(0) - x.mean(0)).abs() < 4 * x.std(0) / 20).all()


def test_other_data_are_refused():
    with pytest.raises(UserError, match="not counts"):
        Conditionals(DataSpec((2,), "counts"))
