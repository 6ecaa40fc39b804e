"""The search for sigma, on functions whose top is known."""

import math
import random
from collections.abc import Callable

import pytest

from dgmbench.evaluation.likelihood.decoder_measure import BLUR_SIGMAS, SIGMAS
from dgmbench.evaluation.likelihood.sigma import TOLERANCE, best_sigma


def gaussian(dim: int, sigma: float) -> Callable[[float], float]:
    """The log-likelihood of residuals of deviation ``sigma`` in ``dim`` dimensions; its top is at ``sigma``."""
    return lambda s: -dim * (math.log(s) + 0.5 * (sigma / s) ** 2)


class Counted:
    def __init__(self, function: Callable[[float], float]) -> None:
        self.function, self.asked = function, []

    def __call__(self, sigma: float) -> float:
        self.asked.append(sigma)
        return self.function(sigma)


@pytest.mark.parametrize("grid", [SIGMAS, BLUR_SIGMAS])
@pytest.mark.parametrize("dim", [1, 10, 784, 3072])
def test_the_top_is_found_to_the_tolerance_wherever_it_lies_in_few_evaluations(
    grid: tuple[float, ...], dim: int
) -> None:
    coarse = 0.0
    for k in range(1, 60):
        sigma = 0.011 * (0.95 / 0.011) ** (k / 60)
        value = Counted(gaussian(dim, sigma))
        found, note = best_sigma(value, grid, dim)
        assert value.function(sigma) - value.function(found) < TOLERANCE
        assert len(value.asked) - len(grid) <= 6
        assert value.asked[: len(grid)] == pytest.approx(grid)
        assert note is None or abs(math.log(found / sigma)) < math.sqrt(TOLERANCE / dim)
        coarse = max(coarse, value.function(sigma) - max(value.function(s) for s in grid))
    assert coarse > dim * 0.05  # what the grid alone would lose


def test_what_is_left_is_below_the_tolerance_where_the_posterior_moves_with_sigma() -> None:
    dim, far, near = 400, 0.4, 0.1

    def mixture(s: float) -> float:  # one sample in exp(300) is near
        a, b = -0.5 * dim * (near / s) ** 2 - 300, -0.5 * dim * (far / s) ** 2
        return -dim * math.log(s) + max(a, b) + math.log1p(math.exp(-abs(a - b)))

    found, _ = best_sigma(mixture, BLUR_SIGMAS, dim)
    assert max(mixture(0.01 * 1.002**k) for k in range(2500)) - mixture(found) < TOLERANCE


def test_a_value_that_is_not_finite_is_never_the_best() -> None:
    top = 0.15
    for bad in (math.nan, math.inf, -math.inf):
        for lost in range(len(SIGMAS)):

            def value(s: float, bad: float = bad, lost: int = lost) -> float:
                return bad if abs(s / SIGMAS[lost] - 1) < 1e-3 else gaussian(100, top)(s)

            found, note = best_sigma(value, SIGMAS, 100)
            assert gaussian(100, top)(top) - gaussian(100, top)(found) < TOLERANCE
            assert note is None
        nothing, note = best_sigma(lambda s, bad=bad: bad, SIGMAS, 100)
        assert math.isnan(nothing)
        assert note == "no sigma of the grid gives the held-out examples a finite likelihood"


def test_an_end_of_the_grid_is_chosen_only_where_the_value_falls_from_it() -> None:
    for rising, end, word in ((1, SIGMAS[-1], "largest"), (-1, SIGMAS[0], "smallest")):
        value = Counted(lambda s, rising=rising: rising * math.log(s))
        found, note = best_sigma(value, SIGMAS, 784)
        assert found == pytest.approx(end)
        assert note == f"sigma is the {word} of its grid"
        assert len(value.asked) == len(SIGMAS) + 1  # one beside the end tells
        inside = end * math.exp(-0.1 * rising)  # nearer to the end than to any other candidate
        found, note = best_sigma(gaussian(784, inside), SIGMAS, 784)
        assert found == pytest.approx(inside, rel=0.02)
        assert note is None


def test_the_search_ends_on_noise_and_steps() -> None:
    for seed in range(200):
        dice = random.Random(seed)
        dim, top = dice.choice((1, 100, 3072)), 10 ** dice.uniform(-2.2, 0.2)
        noise, step = dice.choice((0.1, 10.0, 1e5)), dice.choice((1e-9, 100.0))

        def value(s: float, dim=dim, top=top, noise=noise, step=step, dice=dice) -> float:
            rough = gaussian(dim, top)(s) + noise * dice.gauss(0, 1)
            return dice.choice((math.nan, rough, rough, rough)) if noise > 1e4 else step * round(rough / step)

        asked = Counted(value)
        best_sigma(asked, BLUR_SIGMAS, dim)
        assert len(asked.asked) < 60


def test_a_kink_where_the_interpolation_is_of_no_use_costs_no_endless_search() -> None:
    for left, right in ((1e3, 1.0), (1.0, 1e3)):
        tent = Counted(lambda s, left=left, right=right: (left if s < 0.17 else -right) * math.log(s / 0.17))
        found, _ = best_sigma(tent, BLUR_SIGMAS, 3072)
        assert abs(math.log(found / 0.17)) < math.sqrt(TOLERANCE / 3072)
        assert len(tent.asked) < 50
