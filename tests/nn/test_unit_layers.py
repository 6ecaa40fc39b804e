"""Each type of unit against quadrature, sums over its values, and draws."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch import Generator

from dgmbench.nn.rectified_units import Rectified, SteppedSigmoid
from dgmbench.nn.unit_layers import (
    BERNOULLI,
    Bernoulli,
    Counts,
    Gaussian,
    Independent,
    Joined,
    joined,
)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def compositions(total, parts):
    if parts == 1:
        return [[total]]
    return [[first, *rest] for first in range(total + 1) for rest in compositions(total - first, parts - 1)]


SIGMA = torch.tensor([0.7], dtype=torch.float64)
GAUSSIANS = [Gaussian.of(SIGMA), Gaussian(SIGMA, torch.tensor([1.9], dtype=torch.float64))]


def values(units, eta):
    """All values of one unit that matter, (n, 1), or count vectors of three words."""
    if isinstance(units, Counts):
        return torch.tensor(compositions(int(units.total), len(eta)), dtype=torch.float64)
    return torch.arange(2 if units.binary else 400, dtype=torch.float64)[:, None]


DISCRETE = [
    (BERNOULLI, [-1.3]),
    (SteppedSigmoid(), [-2.0]),
    (SteppedSigmoid(), [0.3]),
    (SteppedSigmoid(), [41.7]),
    (Counts(torch.tensor(5)), [0.2, -1.0, 1.4]),
]


@pytest.mark.parametrize(("units", "eta"), DISCRETE)
def test_log_partition_is_the_sum_over_all_values_and_its_gradient_the_mean(units, eta):
    eta = torch.tensor(eta, dtype=torch.float64, requires_grad=True)
    x = values(units, eta)
    reference = units.log_reference(x)
    log_p = units.feature(x) @ eta + (0.0 if reference is None else reference)
    log_partition = units.log_partition(eta)
    torch.testing.assert_close(log_partition, log_p.logsumexp(0), rtol=0, atol=1e-11)
    mean = torch.softmax(log_p, 0) @ units.feature(x)
    torch.testing.assert_close(units.mean(eta), mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.autograd.grad(log_partition, eta)[0], mean, rtol=0, atol=1e-10)
    p = torch.softmax(log_p, 0)
    entropy = -(p * (log_p - log_partition)).sum() + (0.0 if reference is None else (p * reference).sum())
    torch.testing.assert_close(units.entropy(eta), entropy, rtol=0, atol=1e-10)


@pytest.mark.parametrize("units", GAUSSIANS)
def test_the_gaussians_log_partition_is_the_integral(units):
    eta = torch.tensor([1.4], dtype=torch.float64, requires_grad=True)

    def density(x):
        one = torch.tensor([[x]], dtype=torch.float64)
        return math.exp(float((units.feature(one) @ eta + units.log_reference(one)).detach()))

    total = integrate.quad(density, -60, 60, points=[0, 5])[0]
    assert float(units.log_partition(eta).detach()) == pytest.approx(math.log(total), abs=1e-9)
    mean = integrate.quad(lambda x: x / 0.7 * density(x), -60, 60, points=[0, 5])[0] / total
    assert float(units.mean(eta).detach()) == pytest.approx(mean, abs=1e-8)
    assert float(torch.autograd.grad(units.log_partition(eta), eta)[0]) == pytest.approx(mean, abs=1e-8)


@pytest.mark.parametrize(("units", "eta"), DISCRETE)
def test_draws_have_the_probabilities(units, eta):
    eta = torch.tensor(eta, dtype=torch.float64)
    x, n = values(units, eta), 40_000
    reference = units.log_reference(x)
    p = torch.softmax(units.feature(x) @ eta + (0.0 if reference is None else reference), 0)
    drawn = units.sample(eta.expand(n, -1), seeded())
    kept = p * n > 5
    counts = torch.stack([(drawn == one).all(1).sum() for one in x[kept]]).double()
    statistic = float(((counts - n * p[kept]) ** 2 / (n * p[kept])).sum())
    assert stats.chi2.sf(statistic, max(len(counts) - 1, 1)) > 1e-3
    assert counts.sum() > 0.99 * n


def test_gaussian_draws_have_the_mean_and_the_variance_not_the_mean_alone():
    for units in GAUSSIANS:
        eta, n = torch.tensor([1.4], dtype=torch.float64), 50_000
        x = units.sample(eta.expand(n, -1), seeded())
        width = float(units.width)
        assert abs(float(x.mean()) - float(units.mean(eta) * SIGMA)) < 4 * width / math.sqrt(n)
        assert abs(float(x.var()) / width**2 - 1) < 4 * math.sqrt(2 / n)


def test_rectified_units_are_rectified_normals_of_variance_sigmoid():
    """Mean x Phi(x/s) + s phi(x/s), s^2 = sigmoid(x) (Nair & Hinton 2010)."""
    n = 40_000
    for x in (-4.0, -1.0, 0.0, 2.0, 10.0, 30.0):
        s = math.sqrt(1 / (1 + math.exp(-x)))
        drawn = Rectified().sample(torch.full((n, 1), x, dtype=torch.float64), seeded())
        expected = x * stats.norm.cdf(x / s) + s * stats.norm.pdf(x / s)
        assert abs(float(drawn.mean()) - expected) < 4.5 * float(drawn.std()) / math.sqrt(n) + 1e-12
    x = torch.linspace(-4, 30, 200, dtype=torch.float64)[:, None]
    assert (SteppedSigmoid().mean(x) - torch.nn.functional.softplus(x)).abs().max() < 0.02
    exact = SteppedSigmoid().sample(torch.zeros(n, 1, dtype=torch.float64), seeded())
    assert abs(float(exact.mean()) - 0.683) < 0.02


def test_counts_of_rows_with_totals_of_their_own():
    units = Counts(torch.tensor([0, 3, 7]))
    eta = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    drawn = units.sample(eta.expand(3, -1), seeded())
    assert drawn.sum(1).tolist() == [0, 3, 7]
    torch.testing.assert_close(units.log_partition(eta), units.total.double() * eta.logsumexp(0))
    x = torch.tensor([[0, 0, 0], [1, 2, 0], [3, 3, 1]], dtype=torch.float64)
    assert units.log_reference(x).tolist() == pytest.approx([0.0, math.log(3), math.log(140)])


def test_layers_side_by_side_are_the_layers():
    width = torch.tensor([0.5, 2.0], dtype=torch.float64)
    both = Joined((Bernoulli(), Gaussian.of(width)), (3, 2))
    eta = torch.randn(7, 5, dtype=torch.float64, generator=seeded())
    x = both.sample(eta, seeded(1))
    torch.testing.assert_close(
        both.log_partition(eta), BERNOULLI.log_partition(eta[:, :3]) + both.parts[1].log_partition(eta[:, 3:])
    )
    torch.testing.assert_close(both.log_reference(x), both.parts[1].log_reference(x[:, 3:]))
    torch.testing.assert_close(both.feature(x)[:, 3:], x[:, 3:] / width)
    assert not both.binary
    assert Joined((BERNOULLI, BERNOULLI), (1, 2)).binary


@pytest.mark.parametrize("units", [BERNOULLI, GAUSSIANS[0], Counts(torch.tensor(6)), SteppedSigmoid()])
def test_fitted_units_have_the_datas_moments(units):
    g = seeded(3)
    eta = torch.tensor([0.6, -0.4, 0.1], dtype=torch.float64)[: 1 if units is GAUSSIANS[0] else 3]
    x = units.sample(eta.expand(4000, -1), g)
    base = units.fitted(x)
    assert isinstance(base, Independent)
    again = base.sample(50_000, g)
    tolerance = 0.02 if isinstance(units, SteppedSigmoid) else 0.0
    error = 5 * x.std(0) / math.sqrt(50_000) + 2e-3
    assert ((again.mean(0) - x.mean(0)).abs() < error + tolerance).all()
    if units is GAUSSIANS[0]:
        assert float(again.std() / x.std()) == pytest.approx(1, abs=0.02)
        density = integrate.quad(lambda v: math.exp(float(base.log_prob(torch.tensor([[v]]).double()))), -20, 20)[0]
        assert density == pytest.approx(1, abs=1e-8)
    assert joined([base]) is base


def test_widths_between_two_gaussians_make_the_geometric_mean_of_their_references():
    narrow, wide = GAUSSIANS
    x = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None]
    for beta in (0.0, 0.3, 1.0):
        between = narrow.between(wide, beta)
        expected = (1 - beta) * wide.log_reference(x) + beta * narrow.log_reference(x)
        torch.testing.assert_close(between.log_reference(x), expected)
