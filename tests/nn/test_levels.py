"""Conditionals of values with levels, against torch.distributions and inverse CDFs by search."""

import pytest
import torch
from scipy import stats
from torch.distributions import Bernoulli, Categorical

from dgmbench.data.spec import DataSpec
from dgmbench.nn.levels import (
    draw_categories,
    draw_levels,
    every_log_prob,
    level_log_prob,
    logistic_log_prob,
    marginal_parameters,
    parameters_per_value,
)


@pytest.mark.parametrize("spec", [DataSpec((3,), "binary"), DataSpec((3,), "discrete", 5)], ids=str)
def test_log_probabilities(spec):
    torch.manual_seed(0)
    p = parameters_per_value(spec)
    parameters, x = 2 * torch.randn(40, 3, p), torch.randint(0, spec.levels, (40, 3), dtype=torch.uint8)
    law = Bernoulli(logits=parameters[..., 0]) if p == 1 else Categorical(logits=parameters)
    assert torch.allclose(level_log_prob(parameters, x), law.log_prob(x.float()), atol=1e-5)
    each = torch.stack([law.log_prob(torch.full((40, 3), float(level))) for level in range(spec.levels)], -1)
    assert torch.allclose(every_log_prob(parameters), each, atol=1e-5)


@pytest.mark.parametrize("p", [1, 4])
def test_draws_are_monotone_maps_of_the_uniform_with_the_right_jumps(p):
    """On a grid of uniforms each level's share is its probability."""
    torch.manual_seed(0)
    parameters = torch.randn(1, p, dtype=torch.float64).expand(20_000, p)
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    value = draw_levels(parameters, uniform)
    share = torch.bincount(value, minlength=max(p, 2)) / 20_000
    assert torch.allclose(share.double(), every_log_prob(parameters)[0].exp(), atol=1e-4)
    steps = value.diff()
    assert (steps >= 0).all() if p > 1 else (steps <= 0).all()  # a Bernoulli is 1 below its probability


def test_draws_invert_the_cdf():
    logits = torch.tensor([0.2, 0.3, 0.0, 0.5], dtype=torch.float64).log().expand(6, 4)
    uniform = torch.tensor([0.0, 0.1999, 0.2001, 0.4999, 0.5001, 0.999999], dtype=torch.float64)
    assert draw_categories(logits, uniform).tolist() == [0, 0, 1, 1, 3, 3]
    g = torch.Generator().manual_seed(0)
    drawn = draw_categories(logits[0].expand(20_000, 4), torch.rand(20_000, generator=g, dtype=torch.float64))
    counts = torch.bincount(drawn, minlength=4).double()
    assert counts[2] == 0
    kept = torch.tensor([0, 1, 3])
    assert stats.chisquare(counts[kept], 20_000 * torch.tensor([0.2, 0.3, 0.5]).double()).pvalue > 1e-3


def test_extreme_uniforms_stay_inside():
    parameters = torch.tensor([[0.0, -200.0, -200.0]]).expand(2, 3)
    assert draw_levels(parameters, torch.tensor([0.0, 1.0 - 2**-24])).max() <= 2


@pytest.mark.parametrize("levels", [2, 4])
def test_marginals(levels):
    x = torch.randint(0, levels, (50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x[:, 0] = 1
    parameters = marginal_parameters(x, levels, 1 if levels == 2 else levels)
    counts = torch.stack([(x == level).sum(0) for level in range(levels)], 1) + 0.5
    assert torch.allclose(every_log_prob(parameters).exp(), counts / counts.sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("levels", [2, 5])
def test_discretised_logistics_are_differences_of_the_distribution_function(levels, low):
    """By scipy's: the mass between the middles of levels, and all that lies beyond at the two ends."""
    mean, scale = torch.tensor([-1.3, 0.2, 0.9, 1.6], dtype=torch.float64)[:, None], 0.35
    x = torch.arange(levels)
    centres = torch.linspace(low, 1, levels, dtype=torch.float64)
    edges = (centres[1:] + centres[:-1]) / 2
    cdf = torch.tensor(stats.logistic.cdf(edges, loc=mean, scale=scale))
    expected = torch.diff(cdf, dim=1, prepend=torch.zeros(4, 1), append=torch.ones(4, 1))
    log_scale = torch.full((4, 1), scale, dtype=torch.float64).log()
    found = logistic_log_prob(x.expand(4, -1), mean, log_scale, levels=levels, low=low)
    assert torch.allclose(found.exp(), expected)


def test_a_category_is_where_the_cumulative_sum_passes_the_uniform():
    """Counted one by one; a uniform on an edge belongs to the category that begins there."""
    torch.manual_seed(0)
    logits = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64).log().expand(5, 3)
    edges = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    cdf = logits.softmax(-1).cumsum(-1)
    assert draw_categories(logits, edges).tolist() == [
        sum(u >= c for c in row[:-1]) for u, row in zip(edges, cdf, strict=True)
    ]
    logits, uniform = 3 * torch.randn(200, 7), torch.rand(200)
    cdf = logits.softmax(-1).cumsum(-1)
    assert draw_categories(logits, uniform).tolist() == [
        sum(bool(u >= c) for c in row[:-1]) for u, row in zip(uniform, cdf, strict=True)
    ]
    assert draw_categories(torch.zeros(3, 1), torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 0, 0]
