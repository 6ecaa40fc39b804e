"""Observation models against sums, integrals and frequencies."""

import math

import pytest
import torch
from scipy import stats

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.observation import LEAST_LOG_SIGMA, build_observation, log_normal_mass, soft_floor


def levels_of(spec):
    return torch.arange(spec.levels, dtype=torch.uint8)[:, None]


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_logistic_mixture_sums_to_one(levels, spread):
    torch.manual_seed(levels)
    spec = DataSpec((1,), "discrete", levels)
    observation = build_observation("auto", spec, components=3)
    parameters = spread * torch.randn(20, 9, 1, dtype=torch.float64)
    total = observation.log_prob(parameters[:, None], levels_of(spec)).exp().sum(1)
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_logistic_mixture_mass_is_the_difference_of_cdfs():
    torch.manual_seed(0)
    spec = DataSpec((1,), "discrete", 17)
    observation = build_observation("auto", spec, components=2)
    parameters = torch.randn(6, 1, dtype=torch.float64)
    weight = parameters[:2, 0].softmax(0).numpy()
    mean = parameters[2:4, 0].numpy()
    scale = soft_floor(parameters[4:, 0], LEAST_LOG_SIGMA).exp().numpy()
    for level in range(17):
        low = -math.inf if level == 0 else (level - 0.5) / 8 - 1
        high = math.inf if level == 16 else (level + 0.5) / 8 - 1
        mass = (weight * (stats.logistic.cdf(high, mean, scale) - stats.logistic.cdf(low, mean, scale))).sum()
        got = observation.log_prob(parameters, torch.tensor([level], dtype=torch.uint8)).exp().item()
        assert got == pytest.approx(mass, rel=1e-9)


def test_logistic_mixture_is_finite_far_from_the_data():
    spec = DataSpec((1,), "discrete", 256)
    observation = build_observation("auto", spec, components=1)
    parameters = torch.tensor([[0.0], [1.0], [-30.0]], requires_grad=True)  # mean at level 255, least scale
    log_prob = observation.log_prob(parameters, torch.tensor([100], dtype=torch.uint8))
    log_prob.backward()
    assert torch.isfinite(log_prob)
    assert log_prob < -100
    assert torch.isfinite(parameters.grad).all()
    assert parameters.grad[1] != 0


@pytest.mark.parametrize(("kind", "name"), [("discrete", "logistic_mixture"), ("binary", "bernoulli")])
def test_samples_and_mean_agree_with_the_probabilities(kind, name):
    torch.manual_seed(1)
    spec = DataSpec((1,), kind, 17 if kind == "discrete" else None)
    observation = build_observation("auto", spec, components=3)
    parameters = torch.randn(observation.parameters_per_dim, 1, dtype=torch.float64)
    probability = observation.log_prob(parameters, levels_of(spec)).exp()
    n = 40_000
    x = observation.sample(parameters.expand(n, -1, 1), generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.uint8
    assert x.shape == (n, 1)
    counts = torch.bincount(x[:, 0].long(), minlength=spec.levels)
    assert stats.chisquare(counts.numpy(), (n * probability).numpy()).pvalue > 1e-3
    mean = (probability * torch.arange(spec.levels)).sum()
    assert torch.allclose(observation.mean(parameters)[0], mean, rtol=1e-10)


def test_bernoulli_constant():
    spec = DataSpec((1, 28, 28), "binary")
    x = torch.randint(0, 2, (3, 1, 28, 28), dtype=torch.uint8)
    log_prob = build_observation("auto", spec).log_prob(torch.zeros(3, 1, 1, 28, 28), x)
    assert torch.allclose(log_prob, torch.full((3,), -784 * math.log(2)))


@pytest.mark.parametrize("sigma", [None, 0.7])
def test_gaussian_density_of_real_data(sigma):
    torch.manual_seed(2)
    spec = DataSpec((2, 3), "real")
    observation = build_observation("auto", spec, sigma=sigma)
    assert observation.parameters_per_dim == (2 if sigma is None else 1)
    parameters = torch.randn(4, observation.parameters_per_dim, 2, 3, dtype=torch.float64)
    x = torch.randn(4, 2, 3)
    scale = (
        soft_floor(parameters[:, 1], LEAST_LOG_SIGMA).exp()
        if sigma is None
        else torch.tensor(sigma, dtype=torch.float64)
    )
    expected = stats.norm.logpdf(x.double().numpy(), parameters[:, 0].numpy(), scale.numpy()).sum((1, 2))
    assert torch.allclose(observation.log_prob(parameters, x), torch.from_numpy(expected), rtol=1e-10)
    draws = observation.sample(parameters[0].expand(20_000, -1, -1, -1), generator=torch.Generator().manual_seed(0))
    assert draws.dtype == torch.float32
    z = (draws.double().mean(0) - parameters[0, 0]) / (scale[0] if sigma is None else scale) * 20_000**0.5
    assert z.abs().max() < 4
    ratio = draws.double().var(0) / (scale[0] if sigma is None else scale) ** 2
    assert (ratio - 1).abs().max() < 4 * (2 / 20_000) ** 0.5
    assert torch.equal(observation.mean(parameters), parameters[:, 0])


def gaussian_mass(levels, mean, sigma):
    edges = [-math.inf, *((j - 0.5) * 2 / (levels - 1) - 1 for j in range(1, levels)), math.inf]
    cdf = stats.norm.cdf(edges, mean, sigma)
    return torch.from_numpy(cdf[1:] - cdf[:-1])


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("sigma", [0.002, 0.6, 50.0])
def test_gaussian_of_discrete_data_is_the_mass_of_the_bins(levels, sigma):
    spec = DataSpec((1,), "discrete", levels)
    observation = build_observation("gaussian", spec, sigma=sigma)
    for mean in (0.3, -1.6, 1.0):
        parameters = torch.full((1, 1), mean, dtype=torch.float64)
        probability = observation.log_prob(parameters, levels_of(spec)).exp()
        expected = gaussian_mass(levels, mean, sigma)
        assert torch.allclose(probability, expected, rtol=1e-8, atol=1e-14)
        assert probability.sum().item() == pytest.approx(1, abs=1e-10)
        assert observation.mean(parameters).item() == pytest.approx((expected * torch.arange(levels)).sum().item())


@pytest.mark.parametrize(("levels", "mean"), [(2, 0.3), (17, 0.3), (17, 1.4)])  # at 1.4 most mass is beyond the levels
def test_gaussian_samples_of_discrete_data_follow_the_probabilities(levels, mean):
    observation = build_observation("gaussian", DataSpec((1,), "discrete", levels), sigma=0.6)
    n = 40_000
    x = observation.sample(torch.full((n, 1, 1), mean), generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.uint8
    counts = torch.bincount(x[:, 0].long(), minlength=levels).double()
    expected = n * gaussian_mass(levels, mean, 0.6)
    few = expected < 5
    pooled = [torch.cat([t[~few], t[few].sum()[None]]) if few.any() else t for t in (counts, expected)]
    assert ((pooled[0] - pooled[1]).square() / pooled[1].clamp(min=0.5)).sum() < stats.chi2.isf(
        1e-4, len(pooled[0]) - 1
    )


def test_log_normal_mass_has_no_jump_and_stays_finite_far_out():
    for dtype, accuracy in ((torch.float32, 3e-4), (torch.float64, 1e-8)):
        seam = torch.finfo(dtype).eps ** 0.25
        for centre in (0.0, 0.7, -5.0, 30.0):
            c = torch.tensor(centre, dtype=dtype)
            below, above = (log_normal_mass(c, torch.tensor(seam * f, dtype=dtype)) for f in (0.9999, 1.0001))
            assert (above - below).item() == pytest.approx(math.log(1.0001 / 0.9999), abs=accuracy)
        below, width = (
            log_normal_mass(torch.zeros((), dtype=dtype), torch.tensor(0.99 * seam, dtype=dtype)),
            0.99 * seam,
        )
        assert below.item() == pytest.approx(math.log(math.erf(width / 8**0.5)), abs=accuracy / 50)
        for centre, width in (
            (1e6, 1e-4),
            (-1e6, 1e-4),
            (1e6, 3.0),
            (-1e4, 100.0),
            (1e9, 3.0),
            (0.0, 1e-20),
            (0.0, 1e4),
        ):
            c = torch.tensor(centre, dtype=dtype, requires_grad=True)
            w = torch.tensor(width, dtype=dtype, requires_grad=True)
            mass = log_normal_mass(c, w)
            mass.backward()
            assert torch.isfinite(mass)
            assert torch.isfinite(c.grad)
            assert torch.isfinite(w.grad)


def test_gaussian_of_discrete_data_has_right_gradients():
    torch.manual_seed(0)
    spec = DataSpec((3,), "discrete", 17)
    observation = build_observation("gaussian", spec)
    parameters = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0, 5, 16]] * 4, dtype=torch.uint8)
    assert torch.autograd.gradcheck(lambda p: observation.log_prob(p, x), parameters)


def test_parameters_broadcast_over_samples():
    torch.manual_seed(3)
    for spec in (DataSpec((2, 3), "discrete", 5), DataSpec((2, 3), "binary"), DataSpec((2, 3), "real")):
        observation = build_observation("auto", spec)
        parameters = torch.randn(4, 6, observation.parameters_per_dim, 2, 3)
        x = torch.randn(6, 2, 3) if spec.kind == "real" else torch.randint(0, spec.levels, (6, 2, 3)).to(spec.dtype)
        together = observation.log_prob(parameters, x)
        assert together.shape == (4, 6)
        assert torch.allclose(together, torch.stack([observation.log_prob(p, x) for p in parameters]), rtol=1e-5)
        assert observation.sample(parameters).shape == observation.mean(parameters).shape == (4, 6, 2, 3)


@pytest.mark.parametrize(
    ("kind", "kwargs", "sentence"),
    [
        ("discrete", {"name": "bernoulli"}, "takes binary data"),
        ("real", {"name": "logistic_mixture"}, "data with levels"),
        ("binary", {"name": "auto", "sigma": 0.1}, "setting of observation=gaussian"),
        ("real", {"name": "auto", "sigma": 0.0}, "must be positive"),
        ("discrete", {"name": "auto", "components": 0}, "at least one component"),
        ("counts", {"name": "auto"}, "no observation model for counts"),
    ],
)
def test_wrong_choices_are_explained(kind, kwargs, sentence):
    spec = DataSpec((2,), kind, 17 if kind == "discrete" else None)
    name = kwargs["name"]
    settings = {key: value for key, value in kwargs.items() if key != "name"}
    with pytest.raises(UserError, match=sentence):
        build_observation(name, spec, **settings)


def test_a_soft_floor_is_smooth_and_never_without_a_gradient():
    value = torch.linspace(-20, 20, 101, dtype=torch.float64, requires_grad=True)
    found = soft_floor(value, -7.0)
    expected = torch.logaddexp(value, torch.full_like(value, -7.0))  # log(e^value + e^floor)
    assert torch.allclose(found, expected)
    (slope,) = torch.autograd.grad(found.sum(), value)
    assert torch.allclose(slope, (value + 7).sigmoid())
