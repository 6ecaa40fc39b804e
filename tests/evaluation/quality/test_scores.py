"""KID, MMD, sliced Wasserstein, inception score, neighbourhoods, memorisation: closed forms, chance, failures."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import nearest, shuffled
from dgmbench.evaluation.quality.inception_score import InceptionScore, inception_score
from dgmbench.evaluation.quality.kid import KernelDistance, cubic_kernel, cubic_mmd, kid
from dgmbench.evaluation.quality.memorisation import memorisation
from dgmbench.evaluation.quality.mmd import GaussianDistance, mmd
from dgmbench.evaluation.quality.prdc import (
    PrecisionRecall,
    expected_coverage,
    jackknifed_neighbourhoods,
    neighbourhoods,
)
from dgmbench.evaluation.quality.sliced_wasserstein import (
    SlicedWasserstein,
    _potential,
    _transport,
    sliced_wasserstein,
    squared_wasserstein,
)

DOUBLE = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


# ---------------------------------------------------------------------- kernels


def expected_cubic(a: Tensor, s: Tensor, b: Tensor, t: Tensor) -> float:
    """E (x^T y / d + 1)^3 for independent x ~ N(a, s), y ~ N(b, t), from the raw moments of both."""
    d = len(a)

    def second(m: Tensor, c: Tensor) -> Tensor:
        return torch.outer(m, m) + c

    def third(m: Tensor, c: Tensor) -> Tensor:
        value = torch.einsum("i,j,k->ijk", m, m, m)
        for pattern in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
            value = value + torch.einsum(pattern, m, c)
        return value

    moments = [1.0, float(a @ b), float((second(a, s) * second(b, t)).sum()), float((third(a, s) * third(b, t)).sum())]
    return sum(math.comb(3, i) * moments[i] / d**i for i in range(4))


def gaussians() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    root = 0.5 * normal(3, 3, seed=9)
    return (
        torch.zeros(3, dtype=DOUBLE),
        torch.eye(3, dtype=DOUBLE),
        torch.tensor([0.5, 0, -0.5], dtype=DOUBLE),
        root @ root.T,
    )


def test_kid_of_gaussians_is_its_closed_form() -> None:
    a, s, b, t = gaussians()
    exact = expected_cubic(a, s, a, s) + expected_cubic(b, t, b, t) - 2 * expected_cubic(a, s, b, t)
    found = []
    for i in range(20):
        x = normal(1000, 3, seed=2 * i)
        y = (
            torch.distributions.MultivariateNormal(b, t).mean
            + normal(1000, 3, seed=2 * i + 1) @ (0.5 * normal(3, 3, seed=9)).T
        )
        found.append(kid(x, y, block=100, generator=seeded(i)))
    values = [f.value for f in found]
    error = np.std(values, ddof=1) / math.sqrt(20)
    assert abs(np.mean(values) - exact) < 4 * error
    assert error < 0.1 * exact
    assert np.mean([f.se for f in found]) == pytest.approx(np.std(values, ddof=1), rel=0.5)
    assert (found[0].block, found[0].blocks) == (100, 10)


def test_kid_is_zero_on_average_where_nothing_differs_and_symmetric() -> None:
    values = [kid(normal(200, 6, seed=2 * i), normal(200, 6, seed=2 * i + 1)).value for i in range(100)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / 10
    x, y = normal(60, 4, seed=0), normal(60, 4, seed=1) + 1
    torch.testing.assert_close(cubic_mmd(x, y), cubic_mmd(y, x))


def test_the_biased_statistic_exceeds_the_unbiased_by_its_diagonal() -> None:
    x, y = normal(30, 4, seed=0), normal(40, 4, seed=1)
    kx, ky = cubic_kernel(x, x), cubic_kernel(y, y)
    biased = kx.mean() + ky.mean() - 2 * cubic_kernel(x, y).mean()
    gap = (kx.trace() / 30 - (kx.sum() - kx.trace()) / (30 * 29)) / 30
    gap += (ky.trace() / 40 - (ky.sum() - ky.trace()) / (40 * 39)) / 40
    torch.testing.assert_close(biased - cubic_mmd(x, y), gap)


def test_a_small_set_has_smaller_blocks_and_a_tiny_one_is_refused() -> None:
    found = kid(normal(53, 4, seed=0), normal(100, 4, seed=1))
    assert (found.block, found.blocks) == (10, 5)
    with pytest.raises(UserError, match="9 data examples, but this measure needs at least 10"):
        kid(normal(9, 4, seed=0), normal(100, 4, seed=1))
    with pytest.raises(UserError, match=r"blocks\.block=1 must be at least 2"):
        kid(normal(20, 4, seed=0), normal(20, 4, seed=1), block=1)


def test_mmd_of_gaussians_is_its_closed_form() -> None:
    # E exp(-|x - y|^2 / (2 s^2)) for x - y ~ N(m, 2 I) is (1 + 2 / s^2)^(-d/2) exp(-|m|^2 / (2 (s^2 + 2)))
    d, shift = 2, 1.0
    values, exact = [], []
    for i in range(20):
        x, y = normal(1000, d, seed=2 * i), normal(1000, d, seed=2 * i + 1) + shift / math.sqrt(d)
        g = seeded(i)
        middle = float(torch.pdist(shuffled(x, seeded(i))[:1000]).median())
        widths = [middle * scale for scale in (0.5, 1.0, 2.0)]
        terms = [(1 + 2 / s**2) ** (-d / 2) * (2 - 2 * math.exp(-(shift**2) / (2 * (s**2 + 2)))) for s in widths]
        exact.append(sum(terms) / 3)
        values.append(mmd(x, y, generator=g).value)
    differences = np.array(values) - np.array(exact)
    assert abs(differences.mean()) < 4 * differences.std(ddof=1) / math.sqrt(20)
    assert differences.std(ddof=1) < 0.2 * np.mean(exact)


def test_mmd_does_not_depend_on_the_scale_and_refuses_equal_data() -> None:
    x, y = normal(100, 3, seed=0), normal(100, 3, seed=1) + 1
    assert mmd(x, y, generator=seeded(0)).value == pytest.approx(mmd(7 * x, 7 * y, generator=seeded(0)).value)
    with pytest.raises(UserError, match="More than half of the data examples have equal features"):
        mmd(torch.zeros(50, 3), y)


@pytest.mark.parametrize(("d", "repeated"), [(16, 80), (64, 80), (128, 80), (128, 100)])
def test_mmd_refuses_data_that_coincide_wherever_the_origin_is(d: int, repeated: int) -> None:
    x = torch.rand((100, d), generator=seeded(d))
    x[:repeated] = x[0].clone()
    apart, y = x.clone(), torch.rand((100, d), generator=seeded(0))
    apart[:repeated] += 1e-3 * torch.rand((repeated, d), generator=seeded(1))
    rounded = x * (1 + 1e-7 * torch.rand((100, d), generator=seeded(2)))  # as a network in other batches may
    for same in (x, x + 10, 1000 * x, rounded):
        with pytest.raises(UserError, match="More than half of the data examples have equal features"):
            mmd(same, y, generator=seeded(0))
    assert math.isfinite(mmd(apart, y, generator=seeded(0)).value)


def test_mmd_does_not_depend_on_the_origin() -> None:
    x, y = normal(100, 3, seed=0), normal(100, 3, seed=1) + 1
    near, far = (mmd(x + to, y + to, generator=seeded(0)).value for to in (0.0, 1e5))
    assert far == pytest.approx(near, rel=1e-6)


def test_kid_of_samples_that_drown_the_data_is_no_number() -> None:
    x, y = normal(100, 8, seed=0), normal(100, 8, seed=1)
    for huge in (1e5, 1e30, 1e37, 1e150):
        for wild in (huge * y, torch.cat([huge * y[:1], y[1:]])):
            with pytest.raises(UserError, match=r"samples are up to \S+ times as large as those of data"):
                kid(x, wild, generator=seeded(0))
    large = kid(x, 50 * y, generator=seeded(0))
    assert math.isfinite(large.value)
    assert 0 < large.se < math.inf
    # pairs of different examples are not lost beside one example's kernel with itself
    one = torch.cat([torch.full((1, 2), 1e6, dtype=DOUBLE), normal(9, 2, seed=2)])
    exact = sum((float(one[i] @ one[j]) / 2 + 1) ** 3 for i in range(10) for j in range(10) if i != j) / 90
    zero = torch.zeros((2, 2), dtype=DOUBLE)
    assert float(cubic_mmd(zero, one)) == pytest.approx(exact + 1 - 2, rel=1e-12)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 0.9), (5.0, 2.0)])
def test_kid_of_single_products_is_that_of_double_ones(shift: float, scale: float) -> None:
    x, y = normal(400, 256, seed=0).float(), (scale * normal(400, 256, seed=1) + shift).float()
    exact = kid(x.double(), y.double(), block=80, generator=seeded(0))
    found = kid(x, y, block=80, generator=seeded(0))
    assert found.value != exact.value
    assert abs(found.value - exact.value) < 1e-3 * exact.se
    assert found.se == pytest.approx(exact.se, rel=1e-3)


def test_kid_that_single_products_would_blur_is_of_double_ones() -> None:
    x, y = 30 + normal(400, 16, seed=0).float(), 30 + normal(400, 16, seed=1).float()
    x[0] = 3e3  # its kernels are 10^12 times as large as the others
    found, exact = kid(x, y, generator=seeded(0)), kid(x.double(), y.double(), generator=seeded(0))
    assert found == exact


# ---------------------------------------------------------------------- sliced Wasserstein


@pytest.mark.parametrize(("n", "m"), [(50, 50), (40, 60), (7, 13)])
def test_one_direction_against_a_fine_grid_and_scipy(n: int, m: int) -> None:
    x, y = normal(n, 1, seed=0), normal(m, 1, seed=1) * 2 + 1
    lcm = math.lcm(n, m)
    repeated = (
        x.sort(0).values.repeat_interleave(lcm // n, 0) - y.sort(0).values.repeat_interleave(lcm // m, 0)
    ).square()
    assert float(squared_wasserstein(x, y)) == pytest.approx(float(repeated.mean()), rel=1e-12)
    ordered = torch.linspace(0, 1, n)[:, None], torch.linspace(2, 3, m)[:, None]  # apart: W_1 is a shift of means
    assert wasserstein_distance(ordered[0][:, 0], ordered[1][:, 0]) == pytest.approx(2, rel=1e-6)


def test_a_shift_is_its_length_over_the_root_of_the_dimension() -> None:
    x, shift = normal(100, 6, seed=0), normal(6, seed=1)
    found = sliced_wasserstein(x, x + shift, directions=2000, generator=seeded(0))
    assert abs(found.value - float(shift.norm()) / math.sqrt(6)) < 4 * found.se
    assert sliced_wasserstein(x, x).value == 0
    assert sliced_wasserstein(3 * x, 3 * x + 3 * shift, generator=seeded(0)).value == pytest.approx(
        3 * sliced_wasserstein(x, x + shift, generator=seeded(0)).value
    )


@pytest.mark.parametrize("directions", [4, 512])
def test_the_error_is_of_few_directions_or_of_few_examples(directions: int) -> None:
    """Anisotropic sets, a hundred times: with four directions these are most of the noise, with many the sets are."""
    widths, found = torch.tensor([0.2, 0.5, 1, 1, 2, 4], dtype=DOUBLE), []
    for i in range(100):
        x, y = normal(60, 6, seed=2 * i), normal(50, 6, seed=2 * i + 1) * widths + 0.5
        found.append(sliced_wasserstein(x, y, directions=directions, generator=seeded(i)))
    # the relative error of a standard deviation from 100 values is 7%
    assert np.std([f.value for f in found], ddof=1) / np.mean([f.se for f in found]) == pytest.approx(1, abs=0.3)


def test_the_error_is_of_the_draw_of_either_set() -> None:
    """The sets may change places, though one is much wider and nearly all of the noise is its own."""
    x, y = normal(60, 6, seed=0), 4 * normal(50, 6, seed=1)
    there, back = (sliced_wasserstein(a, b, generator=seeded(0)) for a, b in ((x, y), (y, x)))
    assert there == pytest.approx(back, rel=1e-9)


@pytest.mark.parametrize("d", [1, 4, 50])
def test_a_direction_has_length_one_whatever_the_dimension(d: int) -> None:
    """White sets of widths 1 and 3 are exactly 2 apart in every direction; a shift by 5 is 5 / sqrt(d)."""
    x = torch.linalg.qr(normal(200, d, seed=0)).Q * math.sqrt(200)
    assert sliced_wasserstein(x, 3 * x, directions=8, generator=seeded(0)).value == pytest.approx(2, rel=1e-9)
    shift = torch.zeros(d, dtype=DOUBLE)
    shift[0] = 5.0
    few = x[:50]
    along = sliced_wasserstein(few, few + shift, directions=4000, generator=seeded(0))
    assert abs(along.value - 5 / math.sqrt(d)) < 4 * along.se + 1e-9


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.7), (3.0, 0.0)])
def test_potentials_of_linear_transports(scale: float, shift: float) -> None:
    """T(s) = a s + c has the potential psi(t) = (1 - a) t^2 - 2 c t, but for a constant."""
    x = normal(40, 2, seed=0)
    ordered, order = x.sort(0)
    expected = ((1 - scale) * x.square() - 2 * shift * x).sum(1)
    found = _potential(ordered, order, _transport(ordered, scale * ordered + shift)[1])
    torch.testing.assert_close(found - found.mean(), expected - expected.mean())


# ---------------------------------------------------------------------- inception score


def test_inception_score_of_known_opinions() -> None:
    sure = 1e3 * torch.eye(4).repeat(5, 1)
    assert inception_score(sure, splits=1).value == pytest.approx(4)
    assert inception_score(torch.zeros(20, 4), splits=1).value == pytest.approx(1)
    assert inception_score(sure[:1].repeat(20, 1), splits=1).value == pytest.approx(
        1
    )  # one class only: no error, no NaN
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=DOUBLE)
    middle = p.mean(0)
    expected = math.exp(float((p * (p / middle).log()).sum(1).mean()))
    assert inception_score(p.log(), splits=1).value == pytest.approx(expected)


def test_inception_score_bounds_order_and_splits() -> None:
    logits = 3 * normal(500, 7, seed=0)
    whole = inception_score(logits, splits=1)
    assert 1 < whole.value < 7
    assert whole.se is None
    assert inception_score(logits.flip(0), splits=1).value == pytest.approx(whole.value, rel=1e-12)
    parts = inception_score(logits, splits=10)
    values = [inception_score(logits[i::10], splits=1).value for i in range(10)]
    assert parts.value == pytest.approx(np.mean(values))
    assert parts.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(10))
    assert parts.value < whole.value  # Jensen: mutual information with the split's own marginal is smaller
    with pytest.raises(UserError, match="5 samples for 10 splits"):
        inception_score(logits[:5], splits=10)


# ---------------------------------------------------------------------- neighbourhoods


def naive(data: np.ndarray, samples: np.ndarray, k: int) -> dict[str, float]:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    rr, ff, rf = distances(data, data), distances(samples, samples), distances(data, samples)
    ball_r, ball_f = np.sort(rr, 1)[:, k], np.sort(ff, 1)[:, k]
    own_r, own_f = np.sort(rr, 1)[:, 1], np.sort(ff, 1)[:, 1]
    return {
        "precision": (rf <= ball_r[:, None]).any(0).mean(),
        "recall": (rf <= ball_f[None]).any(1).mean(),
        "density": (rf <= ball_r[:, None]).sum() / k / len(samples),
        "coverage": (rf.min(1) <= ball_r).mean(),
        "two_sample": np.concatenate([own_r < rf.min(1), own_f < rf.min(0)]).mean(),
    }


@pytest.mark.parametrize(("n", "m", "k"), [(60, 40, 3), (700, 900, 5), (30, 30, 1)])
def test_neighbourhoods_in_blocks_agree_with_all_distances(n: int, m: int, k: int) -> None:
    x, y = normal(n, 4, seed=0), 0.7 * normal(m, 4, seed=1) + 0.5
    expected = naive(x.numpy(), y.numpy(), k)
    for name, value in neighbourhoods(x, y, k=k).means().items():
        assert value == pytest.approx(expected[name]), name


@pytest.mark.parametrize("measure", [neighbourhoods, nearest, kid, mmd, sliced_wasserstein])
def test_no_measure_holds_all_distances(measure: Callable[..., Any], largest: Any) -> None:
    n = 4000
    x, y = normal(n, 3, seed=0), normal(n, 3, seed=1)
    with largest:
        measure(x, y)
    assert n * 3 <= largest.elements <= n * n // 4


def test_the_same_set_is_all_precise_and_covered_even_with_repetitions() -> None:
    x = normal(200, 5, seed=0)
    for same in (x, x[:20].repeat(10, 1), 1e4 + x.float()):
        found = neighbourhoods(same, same).means()
        assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert neighbourhoods(x, x).means()["two_sample"] == 0


def test_coverage_and_density_of_equal_distributions() -> None:
    pairs = [(normal(500, 16, seed=2 * i), normal(500, 16, seed=2 * i + 1)) for i in range(30)]
    found = [jackknifed_neighbourhoods(x, y).means() for x, y in pairs]
    for name, expected in (("coverage", expected_coverage(500, 500, 5)), ("density", 1.0), ("two_sample", 0.5)):
        values = [f[name] for f in found]
        assert abs(np.mean(values) - expected) < 4 * np.std(values, ddof=1) / math.sqrt(30), name
    assert expected_coverage(500, 500, 5) == pytest.approx(0.9692, abs=5e-5)


def test_a_tight_cluster_in_a_wide_cloud() -> None:
    wide, tight = normal(1000, 8, seed=0), 0.1 * normal(1000, 8, seed=1)
    found, turned = neighbourhoods(wide, tight).means(), neighbourhoods(tight, wide).means()
    assert found["precision"] > 0.8
    assert found["recall"] < 0.3
    assert turned["precision"] == found["recall"]  # the two change places
    assert turned["recall"] == found["precision"]
    assert found["coverage"] < 0.3


@pytest.mark.parametrize(
    ("n", "d", "shift", "scale"), [(200, 8, 0.0, 1.0), (200, 32, 0.0, 1.0), (200, 8, 0.5, 1.0), (100, 8, 0.3, 0.8)]
)
def test_errors_of_neighbourhoods_are_the_spread_over_repetitions(n: int, d: int, shift: float, scale: float) -> None:
    values, errors, jackknife = [], [], []
    for i in range(100):
        x, y = normal(n, d, seed=2 * i), scale * normal(n, d, seed=2 * i + 1) + shift
        found = neighbourhoods(x, y, generator=seeded(i)) if i < 25 else jackknifed_neighbourhoods(x, y)
        values.append([m.value for m in found])
        if i < 25:
            errors.append([m.se for m in found])
            jackknife.append([m.se for m in jackknifed_neighbourhoods(x, y)])
    spread, claimed = np.std(values, axis=0, ddof=1), np.mean(errors, 0)
    # the relative error of a standard deviation from 100 values is 7%, that of the mean of 25 calibrations some 5%
    np.testing.assert_allclose(spread / claimed, 1, atol=0.35)
    assert (np.mean(jackknife, 0) > claimed).all()
    assert (np.mean(jackknife, 0) > 0.9 * spread).all()


def test_errors_of_neighbourhoods_do_not_depend_on_the_order_and_stay_those_of_the_jackknife_in_tiny_sets() -> None:
    x, y = normal(150, 4, seed=0), normal(140, 4, seed=1)
    found = neighbourhoods(x, y, generator=seeded(0))
    turned = neighbourhoods(x.flip(0), y.flip(0), generator=seeded(0))
    assert [m.se for m in turned] == pytest.approx([m.se for m in found])
    assert found.means() == jackknifed_neighbourhoods(x, y).means()
    assert neighbourhoods(x[:90], y[:90]) == jackknifed_neighbourhoods(x[:90], y[:90])


def test_k_must_leave_neighbours() -> None:
    x = normal(5, 2, seed=0)
    for k in (5, 0, -1):
        with pytest.raises(UserError, match=f"k={k} nearest neighbours need more than k examples"):
            neighbourhoods(x, x, k=k)
    assert neighbourhoods(x, x, k=4).means()["precision"] == 1


@pytest.mark.parametrize("d", [4, 300])
def test_neighbourhoods_by_single_products_are_those_by_double_ones(d: int) -> None:
    x, y = (100 + normal(n, d, seed=n).float() for n in (600, 500))
    exact, single = (jackknifed_neighbourhoods(x, y, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for name, measure in exact._asdict().items():
        # of a thousand comparisons a few are of distances that agree to six digits
        assert abs(getattr(single, name).value - measure.value) < 0.1 * measure.se + 1e-12, name
        assert getattr(single, name).se == pytest.approx(measure.se, rel=0.02), name


def test_single_precision_distances_agree_on_features_far_from_the_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = 100 + normal(300, 6, seed=0), 100 + normal(200, 6, seed=1)
    exact, which = nearest(x, y)
    monkeypatch.setattr("dgmbench.evaluation.quality.feature_set.DOUBLE", 0)
    single, same = nearest(x, y)
    torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-5)
    assert (which == same).double().mean() > 0.99
    naive_loss = (x.float().square().sum(1)[:, None] + y.float().square().sum(1) - 2 * x.float() @ y.float().T).min(1)[
        0
    ]
    assert float((naive_loss - exact).abs().max()) > 10 * float((single - exact).abs().max())


def test_real_data_drawn_again_and_again_are_told_apart() -> None:
    """Samples drawn with replacement lie upon their own copies, and leave fewer others: not the 1/2 of fresh data."""
    n, fresh, repeated = 400, [], []
    for i in range(10):
        x, pool = normal(n, 4, seed=2 * i), normal(n, 4, seed=2 * i + 1)
        again = pool[torch.randint(0, n, (n,), generator=seeded(i))]
        fresh.append(jackknifed_neighbourhoods(x, pool).two_sample)
        repeated.append(jackknifed_neighbourhoods(x, again).two_sample)
    distinct = 1 - math.exp(-1)
    alone = distinct / (1 + distinct)  # of an example that has no copy
    expected = 0.5 * ((distinct + (1 - distinct) * alone) + (1 - alone))
    assert expected == pytest.approx(0.694, abs=5e-4)
    for found, exact in ((fresh, 0.5), (repeated, expected)):
        values = [measure.value for measure in found]
        assert abs(np.mean(values) - exact) < 4 * np.std(values, ddof=1) / math.sqrt(10)


# ---------------------------------------------------------------------- memorisation


def test_memorisation_is_zero_by_chance_for_fresh_blurred_and_collapsed_samples() -> None:
    found: dict[str, list] = {"fresh": [], "blurred": [], "collapsed": []}
    for i in range(60):
        train, held_out, fresh = (normal(n, 6, seed=3 * i + j) for j, n in enumerate((300, 100, 200)))
        kinds = {"fresh": fresh, "blurred": 0.2 * fresh, "collapsed": fresh[:3].repeat(50, 1)}
        for kind, samples in kinds.items():
            found[kind].append(memorisation(train, held_out, samples))
    for kind, all_of in found.items():
        values = np.array([f.excess for f in all_of])
        spread = values.std(ddof=1)
        assert abs(values.mean()) < 4 * spread / math.sqrt(60), kind
        assert np.mean([f.se for f in all_of]) == pytest.approx(spread, rel=0.4), kind
    ratios = {kind: np.mean([f.distance_ratio for f in all_of]) for kind, all_of in found.items()}
    assert ratios["fresh"] == pytest.approx(1, abs=0.05)
    assert ratios["blurred"] < 0.8  # nearer to everything, which the excess is not taken in by


def test_memorisation_of_copies_and_near_copies_is_one() -> None:
    train, held_out = normal(300, 6, seed=0), normal(100, 6, seed=1)
    copies = memorisation(train, held_out, train[:50])
    assert copies.excess == pytest.approx(1)
    assert copies.distance_ratio == 0
    half = memorisation(train, held_out, torch.cat([train[:100], normal(100, 6, seed=2)]))
    assert abs(half.excess - 0.5) < 4 * half.se
    assert memorisation(train, held_out, train + 0.01 * normal(300, 6, seed=3)).excess == pytest.approx(1)
    # half of each held-out example's twins in training: a tie is no evidence
    assert memorisation(train, train, train[:50]).excess == pytest.approx(0)
    assert memorisation(train, train, train[:50]).distance_ratio is None


def test_training_examples_in_parts_are_searched_as_one() -> None:
    train, held_out = (torch.randint(0, 3, (n, 5), generator=seeded(n)).float() for n in (300, 100))
    samples = torch.cat([train[250:270], normal(40, 5, seed=2).float()])
    whole = memorisation(train, held_out, samples)
    for size in (7, 120, 300):
        assert memorisation(iter(train.split(size)), held_out, samples) == pytest.approx(whole)
        turned = memorisation(iter(train.flip(0).split(size)), held_out.flip(0), samples.flip(0))
        assert turned == pytest.approx(whole)
    assert (whole.train, whole.held_out) == (300, 100)
    with pytest.raises(UserError, match="no training examples"):
        memorisation(iter([]), held_out, samples)


# ---------------------------------------------------------------------- streams


def test_streams_depend_neither_on_batches_nor_on_order() -> None:
    x, y = normal(130, 5, seed=0), normal(110, 5, seed=1) + 0.3
    for metric in (KernelDistance(block=20, seed=3), GaussianDistance(block=20, seed=3), SlicedWasserstein(seed=3)):
        values = []
        for size, flip in product((130, 17), (False, True)):
            metric.reset()
            for part in (x.flip(0) if flip else x).split(size):
                metric.update(part, real=True)
            for part in (y.flip(0) if flip else y).split(size):
                metric.update(part, real=False)
            values.append(float(metric.compute()))
        assert values == pytest.approx([values[0]] * 4, rel=1e-10)
    many = PrecisionRecall()
    for part in x.split(17):
        many.update(part, real=True)
    many.update(y, real=False)
    assert {k: float(v) for k, v in many.compute().items()} == pytest.approx(neighbourhoods(x, y).means())
    for splits in (1, 3):  # a batch of 17 starts in another of the three splits each time
        score = InceptionScore(classes=5, splits=splits)
        for part in x.split(17):
            score.update(part)
        assert float(score.compute()) == pytest.approx(inception_score(x, splits=splits).value, rel=1e-12)


def test_measuring_leaves_the_global_generator_alone() -> None:
    x, y = normal(130, 5, seed=0), normal(110, 5, seed=1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for metric in (KernelDistance(), GaussianDistance(), SlicedWasserstein()):
        metric.update(x, real=True)
        metric.update(y, real=False)
        metric.compute()
    assert torch.equal(before, torch.get_rng_state())
