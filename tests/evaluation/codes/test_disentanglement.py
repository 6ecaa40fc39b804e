"""Scores of codes whose disentanglement is known."""

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from dgmbench.errors import UserError
from dgmbench.evaluation.codes.disentanglement import (
    _discriminant,
    attribute_predictability,
    beta_vae_score,
    dci,
    discretised,
    factor_vae_score,
    mutual_information,
    mutual_information_gap,
)

SIZES = (3, 4, 5)


@pytest.fixture(scope="module")
def factors() -> np.ndarray:
    """3000 examples of three independent factors with three, four and five values."""
    rng = np.random.RandomState(0)
    return np.column_stack([rng.randint(size, size=3000) for size in SIZES])


def everything(codes: np.ndarray, factors: np.ndarray) -> dict[str, float]:
    found = dci(codes, factors, trees=20)
    return {
        "mig": mutual_information_gap(codes, factors),
        "beta_vae": beta_vae_score(codes, factors, points=400),
        "factor_vae": factor_vae_score(codes, factors, votes=400),
        "sap": attribute_predictability(codes, factors),
        "disentanglement": found.disentanglement,
        "completeness": found.completeness,
        "informativeness": found.informativeness,
    }


def test_mutual_information_against_scikit_learn(factors: np.ndarray) -> None:
    rng = np.random.RandomState(1)
    noisy = (factors[:, 0] + (rng.rand(3000) < 0.3) * rng.randint(3, size=3000)) % 3
    assert mutual_information(noisy, factors[:, 0]) == pytest.approx(mutual_info_score(noisy, factors[:, 0]))
    counts = np.bincount(factors[:, 2])
    assert mutual_information(factors[:, 2], factors[:, 2]) == pytest.approx(entropy(counts))


def test_the_gap_by_hand() -> None:
    """Two factors of two values in equal shares: H = log 2; a code that flips a quarter of the values of the first."""
    v = np.array([[i // 2 % 2, i % 2] for i in range(400)])
    z = v.astype(float)
    flipped = np.arange(400) // 4 % 4 == 0  # a quarter of each combination
    z[flipped, 0] = 1 - z[flipped, 0]
    kept = np.log(2) - entropy([0.25, 0.75])
    assert mutual_information_gap(z, v) == pytest.approx((kept / np.log(2) + 1) / 2)


def test_bins_have_equal_width() -> None:
    codes = np.array([[0.0, 7.0], [0.49, 7.0], [0.5, 7.0], [1.0, 7.0]])
    assert discretised(codes, 2).tolist() == [[0, 0], [0, 0], [1, 0], [1, 0]]


def test_an_outlier_does_not_hide_a_factor(factors: np.ndarray) -> None:
    codes = factors.astype(float)
    codes[7] = 1e6
    assert mutual_information_gap(codes, factors) > 0.98


def test_the_gap_is_in_units_of_the_factor_s_entropy() -> None:
    """A perfect code of a factor that is rare: the gap is 1, whatever the number of its values."""
    rare = (np.arange(1000) % 10 == 0).astype(int)[:, None]
    assert mutual_information_gap(rare.astype(float), rare) == pytest.approx(1)


def test_the_scale_of_a_dimension_is_no_merit(factors: np.ndarray) -> None:
    codes = (factors - factors.mean(0)) / factors.std(0) + 0.01 * np.random.RandomState(8).randn(3000, 3)
    scaled = codes * [1.0, 0.01, 1e-4]
    assert factor_vae_score(scaled, factors, votes=400) > 0.95
    assert beta_vae_score(scaled, factors, points=400) > 0.95
    assert mutual_information_gap(scaled, factors) == pytest.approx(mutual_information_gap(codes, factors))


def test_a_code_that_is_the_factors_is_perfect(factors: np.ndarray) -> None:
    codes = factors[:, [2, 0, 1]] * [2.0, -1.0, 0.3] + 0.001 * np.random.RandomState(2).randn(3000, 3)
    found = everything(codes, factors)
    chance = [np.bincount(column).max() / 3000 for column in factors.T]
    for name in ("mig", "beta_vae", "factor_vae", "disentanglement", "completeness", "informativeness"):
        assert found[name] > 0.95, name
    assert found["sap"] == pytest.approx(1 - np.mean(chance), abs=0.03)


def test_a_code_that_says_nothing(factors: np.ndarray) -> None:
    noise = everything(np.random.RandomState(3).randn(3000, 3), factors)
    for name in ("mig", "sap", "disentanglement", "completeness"):
        assert noise[name] < 0.1, name
    se = np.sqrt(1 / 3 * 2 / 3 / 100)  # of the accuracy on a quarter of 400 guesses among three
    assert noise["beta_vae"] < 1 / 3 + 5 * se
    assert noise["factor_vae"] < 1 / 3 + 5 * se
    constant = everything(np.zeros((3000, 3)), factors)
    assert constant["factor_vae"] == constant["disentanglement"] == constant["completeness"] == 0
    assert constant["mig"] == pytest.approx(0, abs=1e-12)
    assert constant["sap"] < 0.02  # the majority's share in the held-out quarter is not quite that of all examples
    assert all(np.isfinite(value) for value in constant.values())


def test_a_factor_in_two_dimensions_has_no_gap(factors: np.ndarray) -> None:
    codes = np.repeat(factors.astype(float), 2, axis=1) + 0.001 * np.random.RandomState(4).randn(3000, 6)
    found = everything(codes, factors)
    assert found["mig"] < 0.05
    assert found["sap"] < 0.05
    assert found["disentanglement"] > 0.95  # each dimension still stands for one factor,
    assert found["completeness"] < 0.8  # but no factor for one dimension


def test_a_rotated_code_is_entangled(factors: np.ndarray) -> None:
    rng = np.random.RandomState(5)
    codes = (factors - factors.mean(0)) / factors.std(0) + 0.05 * rng.randn(3000, 3)
    rotation = np.eye(3) - 2 / 3  # a reflection that gives every dimension a part of every factor
    straight, turned = everything(codes, factors), everything(codes @ rotation, factors)
    for name in ("mig", "sap", "disentanglement", "completeness", "factor_vae"):
        assert turned[name] < straight[name] - 0.2, name


KINDS = {
    "exact": lambda v: v * [2.0, -1.0, 0.3],
    "constant": lambda v: np.full(v.shape, 0.1),  # 0.1 is no binary number: its mean is rounded
    "duplicated": lambda v: np.repeat(v, 2, axis=1) * 0.7,
    "rotated": lambda v: v @ (np.eye(3) - 2 / 3),  # a reflection that gives every dimension a part of every factor
    "one of them": lambda v: np.column_stack([0.1 * v[:, 0], np.full(len(v), 0.7)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_codes_score_as_the_limit_of_noisy_ones(kind: str, factors: np.ndarray) -> None:
    codes = KINDS[kind](factors.astype(float))
    # where a dimension has no spread, noise would be all that it has
    noise = 1e-7 * np.random.RandomState(9).randn(*codes.shape) * (np.ptp(codes, axis=0) > 0)
    found, limit = everything(codes, factors), everything(codes + noise, factors)
    for name, value in found.items():
        # forests choose among equal splits at random, and a value that noise splits between two bins is two values
        assert value == pytest.approx(limit[name], abs=0.02), name
    chance = np.mean([np.bincount(column).max() / 3000 for column in factors.T])
    perfect = {**dict.fromkeys(found, 1.0), "sap": 1 - chance}
    if kind == "exact":
        assert found == pytest.approx(perfect, abs=0.02)
    elif kind == "constant":
        nothing = {"mig": 0, "beta_vae": 1 / 3, "factor_vae": 0, "sap": 0, "disentanglement": 0, "completeness": 0}
        assert {name: found[name] for name in nothing} == pytest.approx(nothing, abs=0.12)
        assert (found["mig"], found["factor_vae"]) == (pytest.approx(0, abs=1e-12), 0)
    elif kind == "duplicated":
        assert (found["mig"], found["sap"]) == (pytest.approx(0, abs=1e-12), 0)
        assert found["completeness"] == pytest.approx(1 - np.log(2) / np.log(6), abs=0.02)
        rest = ("beta_vae", "factor_vae", "disentanglement", "informativeness")
        assert {name: found[name] for name in rest} == pytest.approx(dict.fromkeys(rest, 1.0), abs=0.02)
    elif kind == "rotated":
        assert all(found[name] < perfect[name] - 0.2 for name in ("mig", "sap", "disentanglement", "completeness"))
        assert found["informativeness"] > 0.98
    else:
        assert found["mig"] == pytest.approx(1 / 3, abs=0.01)
        assert found["sap"] == pytest.approx((1 - np.bincount(factors[:, 0]).max() / 3000) / 3, abs=0.03)


def test_two_coins_turned_by_half_a_right_angle_have_no_gap() -> None:
    """z = (v + w, v - w): each tells log 2 / 2 of each factor, and three quarters of its values."""
    v = np.array([[i // 2 % 2, i % 2] for i in range(4000)])
    z = v @ np.array([[1.0, 1.0], [1.0, -1.0]])
    assert mutual_information(z[:, 0].astype(int), v[:, 0]) == pytest.approx(np.log(2) / 2)
    assert mutual_information_gap(z, v) == pytest.approx(0, abs=1e-12)
    assert attribute_predictability(z, v) < 4 * np.sqrt(3 / 16 / 1000) * 2


def test_the_discriminant_is_that_of_scikit_learn(factors: np.ndarray) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.RandomState(10)
    x = factors @ rng.randn(3, 4) + rng.randn(3000, 4)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3).fit(x[:2000], factors[:2000, 2])
    assert _discriminant(x[:2000], factors[:2000, 2], x[2000:]).tolist() == model.predict(x[2000:]).tolist()


def test_a_dimension_that_does_not_vary_has_no_vote(factors: np.ndarray) -> None:
    collapsed = np.column_stack([factors, 1e-6 * np.random.RandomState(6).randn(3000)])
    assert factor_vae_score(collapsed, factors, votes=400) > 0.95


def test_equal_seeds_give_equal_scores(factors: np.ndarray) -> None:
    codes = factors + np.random.RandomState(7).randn(3000, 3)
    for score in (beta_vae_score, factor_vae_score, attribute_predictability, dci):
        assert score(codes, factors, seed=3) == score(codes, factors, seed=3)


def test_a_factor_that_never_varies_does_not_count(factors: np.ndarray) -> None:
    still = np.column_stack([factors, np.ones(3000, np.int64)])
    assert mutual_information_gap(factors, still) == mutual_information_gap(factors, factors)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (np.zeros((200, 2)), np.zeros((100, 2)), "tables of the same examples"),
        (np.full((200, 2), np.nan), np.arange(400).reshape(200, 2) % 3, "NaN or infinite"),
        (np.zeros((200, 2)), np.zeros((200, 2), np.int64), "at least one factor that varies"),
        (np.zeros((50, 2)), np.arange(50)[:, None] % 3, "100 examples"),
    ],
)
def test_what_no_score_can_be_computed_from(codes: np.ndarray, factors: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mutual_information_gap(codes, factors)
