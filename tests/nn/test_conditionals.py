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


@pytest.mark.parametrize("density", ["gaussian", "laplace"])
def test_the_marginals_have_the_data_s_scale(density):
    conditionals = Conditionals(DataSpec((2,), "real"), components=400, density=density)
    x = torch.tensor([3.0, -40.0]) + torch.tensor([0.1, 5.0]) * torch.randn(
        4000, 2, generator=torch.Generator().manual_seed(0)
    )
    bias = torch.zeros(2, 1200, dtype=torch.float64)
    conditionals.initialise(bias, x, torch.Generator().manual_seed(1))
    _, mean, log_scale = conditionals.mixture(bias.T)
    spread = DISTRIBUTIONS[density](0, log_scale.exp().numpy()).std()
    assert np.allclose(spread, x.std(0, correction=0).numpy(), rtol=1e-4)
    assert ((mean.mean(0) - x.mean(0)).abs() < 4 * x.std(0) / 20).all()


def test_other_data_are_refused():
    with pytest.raises(UserError, match="not counts"):
        Conditionals(DataSpec((2,), "counts"))
