"""The Frechet distance against closed forms, scipy, simulation of its bias and of its standard error."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.frechet import (
    FrechetDistance,
    Moments,
    _drawn_factors,
    extrapolated,
    frechet,
    frechet_distance,
    null_bias,
    simulated_bias,
    usable_parts,
)

DOUBLE = torch.float64


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def gaussian(mean: Tensor, covariance: Tensor) -> Moments:
    return Moments(2, mean.to(DOUBLE), covariance.to(DOUBLE))  # n - 1 = 1: the scatter is the covariance


def spd(d: int, seed: int) -> Tensor:
    a = normal(d, 2 * d, seed=seed)
    return a @ a.T / d


# ---------------------------------------------------------------------- closed forms


def test_equal_covariances_leave_the_means() -> None:
    s, m = spd(6, 0), normal(6, seed=1)
    assert frechet_distance(gaussian(torch.zeros(6), s), gaussian(m, s)) == pytest.approx(float(m @ m), rel=1e-10)


def test_diagonal_covariances() -> None:
    a, b = torch.tensor([1.0, 4.0, 0.25]), torch.tensor([9.0, 4.0, 0.0])
    expected = (3 - 1) ** 2 + 0 + 0.5**2
    zero = torch.zeros(3)
    assert frechet_distance(gaussian(zero, a.diag()), gaussian(zero, b.diag())) == pytest.approx(expected)


def test_commuting_covariances() -> None:
    q, _ = torch.linalg.qr(normal(5, 5, seed=0))
    a, b = torch.tensor([1.0, 2, 3, 4, 5], dtype=DOUBLE), torch.tensor([0.5, 2, 8, 1, 3], dtype=DOUBLE)
    found = frechet_distance(gaussian(torch.zeros(5), q @ a.diag() @ q.T), gaussian(torch.zeros(5), q @ b.diag() @ q.T))
    assert found == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-10)


def test_one_dimensional_covariances_of_rank_one() -> None:
    # S_1 = a a^T, S_2 = b b^T: tr (S_1 S_2)^(1/2) = |a . b|
    a, b = normal(7, seed=2), normal(7, seed=3)
    found = frechet_distance(gaussian(torch.zeros(7), torch.outer(a, a)), gaussian(torch.zeros(7), torch.outer(b, b)))
    assert found == pytest.approx(float(a @ a + b @ b - 2 * (a @ b).abs()), rel=1e-7)


@pytest.mark.parametrize("d", [3, 40])
def test_agrees_with_scipys_matrix_root(d: int) -> None:
    s, t = spd(d, 4), spd(d, 5)
    root = np.trace(scipy.linalg.sqrtm(s.numpy() @ t.numpy()).real)
    expected = float(s.trace() + t.trace()) - 2 * root
    assert frechet_distance(gaussian(torch.zeros(d), s), gaussian(torch.zeros(d), t)) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("n", [4, 200])
def test_identical_sets_are_at_zero_also_with_fewer_examples_than_features(n: int) -> None:
    x = normal(n, 20, seed=0)
    assert abs(frechet(x, x).value) < 1e-6
    assert abs(frechet(x, x.flip(0)).value) < 1e-6


def test_fewer_examples_than_features_agree_with_the_nuclear_norm_of_the_examples() -> None:
    x, y = normal(12, 50, seed=0), 2 * normal(9, 50, seed=1) + 0.3
    a, b = x - x.mean(0), y - y.mean(0)
    root = torch.linalg.svdvals(a @ b.T).sum() / math.sqrt(11 * 8)
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() / 11 + b.square().sum() / 8 - 2 * root
    assert frechet(x, y).value == pytest.approx(float(expected), rel=1e-6)


def test_rotation_and_shift_change_nothing_and_scale_enters_squared() -> None:
    x, y = normal(300, 8, seed=0) @ spd(8, 1), normal(200, 8, seed=2) + 1
    q, _ = torch.linalg.qr(normal(8, 8, seed=3))
    found = frechet(x, y)
    moved, scaled = frechet(x @ q + 5, y @ q + 5), frechet(3 * x, 3 * y)
    for name in ("value", "se", "bias"):
        assert getattr(moved, name) == pytest.approx(getattr(found, name), rel=1e-8)
        assert getattr(scaled, name) == pytest.approx(9 * getattr(found, name), rel=1e-8)
    assert frechet(y, x).value == pytest.approx(found.value, rel=1e-9)


# ---------------------------------------------------------------------- what chance does


def test_bias_formula_at_unit_covariance_and_against_simulation() -> None:
    d, n = 16, 2000
    assert null_bias(torch.eye(d), n, n) == pytest.approx((2 * d + d * (d + 1) / 2) / n)
    scale = torch.linspace(0.1, 2, 8, dtype=DOUBLE)
    values = [
        frechet(normal(300, 8, seed=2 * i) * scale, normal(600, 8, seed=2 * i + 1) * scale).value for i in range(60)
    ]
    expected = null_bias(scale.square().diag(), 300, 600)
    error = np.std(values, ddof=1) / math.sqrt(60)
    # the next order in 1/N is some d/N of the first
    assert abs(np.mean(values) - expected) < 4 * error + 0.05 * expected


@pytest.mark.parametrize(
    ("d", "n", "m", "decay"), [(32, 64, 64, 0.0), (32, 64, 200, -1.5), (64, 200, 128, 0.0), (16, 16, 32, -1.0)]
)
def test_bias_at_few_examples_is_that_of_simulated_sets(d: int, n: int, m: int, decay: float) -> None:
    scale = torch.logspace(0, decay, d, dtype=DOUBLE)
    found, first, values = [], [], []
    for i in range(40):
        data = Moments.of(normal(n, d, seed=2 * i) * scale)
        values.append(frechet_distance(data, Moments.of(normal(m, d, seed=2 * i + 1) * scale)))
        found.append(simulated_bias(data.covariance, n, m, torch.Generator().manual_seed(i)))
        first.append(null_bias(data.covariance, n, m))
    error = math.hypot(np.std(values, ddof=1), np.std(found, ddof=1)) / math.sqrt(40)
    expected = np.mean(values)
    # what it may lack at so few examples; the first order alone lacks twice as much and more
    assert abs(np.mean(found) - expected) < 4 * error + (0.08 if n >= 2 * d else 0.12) * expected
    assert expected - np.mean(first) > 1.5 * abs(expected - np.mean(found))


@pytest.mark.parametrize("n", [3, 4, 9, 50])
def test_drawn_covariances_are_those_of_samples(n: int) -> None:
    roots = torch.tensor([2.0, 1.0, 0.5], dtype=DOUBLE)
    factor = _drawn_factors(roots, n, 40_000, torch.Generator().manual_seed(0))
    found = factor @ factor.mT
    expected = roots.square().diag()
    # Wishart: the variance of S_ij is (S_ii S_jj + S_ij^2) / (n - 1)
    variance = (torch.outer(roots, roots).square() + expected.square()) / (n - 1)
    assert ((found.mean(0) - expected).abs() < 5 * (variance / 40_000).sqrt()).all()
    torch.testing.assert_close(found.var(0), variance, rtol=0.12, atol=0)
    determinants = torch.linalg.det(found)
    if n == 3:  # of rank 2
        assert determinants.abs().max() < 1e-9
    else:  # E det S = det(expected) (n - 1)(n - 2)(n - 3) / (n - 1)^3
        exact = float(expected.det()) * (n - 2) * (n - 3) / (n - 1) ** 2
        assert abs(float(determinants.mean()) - exact) < 5 * float(determinants.std()) / 200


def test_standard_error_of_skewed_features_is_the_spread_over_repetitions() -> None:
    # exponential features: mean and covariance of a set move together, which Gaussian ones do not show
    values, free, errors, free_errors = [], [], [], []
    for i in range(120):
        g = torch.Generator().manual_seed(i)
        x = -torch.rand((400, 5), generator=g, dtype=DOUBLE).log()
        y = -1.5 * torch.rand((300, 5), generator=g, dtype=DOUBLE).log() + 0.3
        found = frechet(x, y)
        values.append(found.value)
        errors.append(found.se)
        if i < 60:
            more = extrapolated(x, y, whole=found, generator=g)
            free.append(more.value)
            free_errors.append(more.se)
    assert np.std(values, ddof=1) / np.mean(errors) == pytest.approx(1, abs=0.26)
    assert np.std(free, ddof=1) / np.mean(free_errors) == pytest.approx(1, abs=0.37)
    error = np.std(free, ddof=1) / math.sqrt(60)
    assert abs(np.mean(free) - 5 * (0.5**2 + (1.5 + 0.3 - 1) ** 2)) < 4 * error


@pytest.mark.parametrize(("shift", "widths"), [(0.5, [0.5, 1, 1, 2, 1]), (2.0, [1, 1, 1, 1, 1])])
def test_standard_error_is_the_spread_over_repetitions(shift: float, widths: list[float]) -> None:
    values, errors = [], []
    for i in range(150):
        x = normal(400, 5, seed=2 * i)
        y = normal(300, 5, seed=2 * i + 1) * torch.tensor(widths, dtype=DOUBLE) + shift
        found = frechet(x, y)
        values.append(found.value)
        errors.append(found.se)
    # the relative error of a standard deviation from 150 values is 1 / sqrt(2 * 149) = 6%
    assert np.std(values, ddof=1) / np.mean(errors) == pytest.approx(1, abs=0.25)


def test_extrapolation_takes_the_bias_away() -> None:
    exact, plain, free, errors = 6 * 0.5**2, [], [], []
    for i in range(80):
        x, y = normal(400, 6, seed=2 * i), normal(400, 6, seed=2 * i + 1) + 0.5
        found = extrapolated(x, y, generator=torch.Generator().manual_seed(i))
        plain.append(frechet(x, y).value)
        free.append(found.value)
        errors.append(found.se)
    error = np.std(free, ddof=1) / math.sqrt(80)
    assert np.mean(plain) - exact > 0.7 * null_bias(torch.eye(6), 400, 400) - 4 * error
    assert abs(np.mean(free) - exact) < 4 * error
    assert np.std(free, ddof=1) / np.mean(errors) == pytest.approx(1, abs=0.35)


def test_extrapolation_of_equal_distributions_is_zero_within_its_error() -> None:
    values, errors = [], []
    for i in range(60):
        found = extrapolated(normal(300, 10, seed=2 * i), normal(300, 10, seed=2 * i + 1))
        values.append(found.value)
        errors.append(found.se)
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values)) < 4 * spread / math.sqrt(60) + 0.03 * null_bias(torch.eye(10), 300, 300)
    assert spread < 1.5 * np.mean(errors)


def test_extrapolation_has_the_noise_of_how_sets_are_shared_out() -> None:
    x, y = normal(300, 10, seed=0), normal(300, 10, seed=1)
    whole = frechet(x, y)._replace(se=0.0)  # without the draw of the sets themselves
    found = [extrapolated(x, y, whole=whole, generator=torch.Generator().manual_seed(i)) for i in range(80)]
    spread, claimed = np.std([f.value for f in found], ddof=1), np.sqrt(np.mean([f.se**2 for f in found]))
    # least squares weighs the three levels so; the whole set's own noise is claimed as well, and is not seen here
    w = [1 / 3 - (7 / 3) * (k - 7 / 3) / sum((j - 7 / 3) ** 2 for j in (1, 2, 4)) for k in (1, 2, 4)]
    shares = (2 * w[1] ** 2 + 4 * w[2] ** 2) / (w[0] ** 2 + 2 * w[1] ** 2 + 4 * w[2] ** 2)
    assert spread / (claimed * math.sqrt(shares)) == pytest.approx(1, abs=0.4)


def test_extrapolation_refuses_what_it_cannot_do() -> None:
    assert usable_parts(100, 300, 10) == (1, 2, 4)
    assert usable_parts(79, 300, 10) == (1, 2)
    with pytest.raises(UserError, match="at least 40 examples on both sides for 10 features; there are 39 and 300"):
        extrapolated(normal(39, 10, seed=0), normal(300, 10, seed=1))


# ---------------------------------------------------------------------- few examples, many features


def dense(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The distance and its standard error by (d, d) matrices: T = S^-1/2 (S^1/2 R S^1/2)^1/2 S^-1/2 of either set."""

    def root(matrix: Tensor, power: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        kept = values > values.max() * 1e-12
        return (vectors[:, kept] * values[kept].pow(power)) @ vectors[:, kept].T

    s, t = (torch.cov(each.T) for each in (x, y))
    value = (x.mean(0) - y.mean(0)).square().sum() + s.trace() + t.trace()
    value -= 2 * torch.linalg.eigvalsh(root(s, 0.5) @ t @ root(s, 0.5)).clamp_min(0).sqrt().sum()
    variance = 0.0
    for own, cov, other, its in ((x, s, y, t), (y, t, x, s)):
        half, inverse = root(cov, 0.5), root(cov, -0.5)
        centred, step = own - own.mean(0), own.mean(0) - other.mean(0)
        transport = inverse @ root(half @ its @ half, 0.5) @ inverse
        influence = centred.square().sum(1) - ((centred @ transport) * centred).sum(1) + 2 * centred @ step
        variance += float(influence.var()) / len(own)
    return float(value), math.sqrt(variance)


@pytest.mark.parametrize(
    ("n", "m", "d"), [(300, 200, 8), (12, 9, 50), (9, 12, 50), (30, 200, 20), (200, 15, 20), (20, 20, 20)]
)
def test_the_space_of_the_fewer_examples_gives_what_dense_matrices_give(n: int, m: int, d: int) -> None:
    x, y = normal(n, d, seed=0) * torch.linspace(0.2, 2, d, dtype=DOUBLE), normal(m, d, seed=1) + 0.3
    found = frechet(x, y)
    value, error = dense(x, y)
    assert found.value == pytest.approx(value, rel=1e-7)  # the dense root loses half of all digits
    assert found.se == pytest.approx(error, rel=1e-7)
    assert found.bias == pytest.approx(simulated_bias(torch.cov(x.T), n, m, torch.Generator().manual_seed(0)), rel=1e-9)
    moments = frechet_distance(Moments.of(x), Moments.of(y))
    assert moments == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 60), (60, 5), (40, 30)])
def test_few_examples_of_many_features_never_meet_a_matrix_of_all_features(n: int, m: int, largest: Any) -> None:
    d = 3072
    x, y = normal(n, d, seed=0).float(), normal(m, d, seed=1).float() + 0.1
    with largest:
        found = frechet(x, y)
    assert largest.elements <= max(n, m) * d
    # of Gaussians with unit covariance, whose sets are nearly orthogonal: means, traces, and a nuclear norm
    a, b = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    root = torch.linalg.svdvals(a @ b.T).sum() / math.sqrt((n - 1) * (m - 1))
    means = (x.double().mean(0) - y.double().mean(0)).square().sum()
    expected = means + a.square().sum() / (n - 1) + b.square().sum() / (m - 1) - 2 * root
    assert found.value == pytest.approx(float(expected), rel=1e-12)


def test_the_bias_beside_few_samples_is_found_from_a_part_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(400, 64, seed=0), normal(20, 64, seed=1)
    whole = frechet(x, y).bias
    monkeypatch.setattr("dgmbench.evaluation.quality.frechet.MOST_SPECTRUM", 50)
    part = [frechet(x, y, generator=torch.Generator().manual_seed(i)).bias for i in range(10)]
    assert np.mean(part) == pytest.approx(whole, rel=0.2)  # fewer examples than features, all alike: the hardest case


# ---------------------------------------------------------------------- streams


def test_moments_keep_the_digits_that_a_sum_of_squares_loses() -> None:
    x = (1000 + 0.01 * normal(20_000, 3, seed=0)).float()
    exact = np.cov(x.double().numpy().T)
    np.testing.assert_allclose(Moments.of(x).covariance.numpy(), exact, rtol=1e-9)
    sums = (x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))).numpy()
    assert abs(np.trace(sums) - np.trace(exact)) > 0.1 * np.trace(exact)


def test_streaming_equals_one_batch_in_any_order() -> None:
    x, y = normal(500, 7, seed=0), normal(333, 7, seed=1) * 2
    expected = frechet(x, y).value
    for size, flip in ((500, False), (7, False), (64, True)):
        metric = FrechetDistance(7)
        for part in (x.flip(0) if flip else x).split(size):
            metric.update(part, real=True)
        for part in y.split(size):
            metric.update(part, real=False)
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-10)
    metric.reset()
    metric.update(x, real=True)
    with pytest.raises(UserError, match="at least 2 examples, and there are 0"):
        metric.compute()


def test_bad_features_are_refused() -> None:
    x = normal(10, 3, seed=0)
    broken = x.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(UserError, match="features of 1 of 10 samples are not finite"):
        frechet(x, broken)
    with pytest.raises(UserError, match="1 samples, but this measure needs at least 2"):
        frechet(x, x[:1])
    with pytest.raises(UserError, match="3 features and samples 2"):
        frechet(x, x[:, :2])
    with pytest.raises(UserError, match=r"shape \(10,\); they must be \(n, d\)"):
        frechet(x[:, 0], x)
