"""Sums of means of log-normal draws, whose tails are known: what is decided, and what is left open."""

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.verify.means import MOST, Means, estimate, follow_means, sums_to_one
from dgmbench.verify.support import Support, support_of

CELLS = 40


def space() -> Support:
    """The values 0 ... CELLS - 1."""
    support = support_of(DataSpec((1,), "discrete", levels=CELLS), torch.zeros(1, 1))
    assert isinstance(support, Support)
    return support


def truth(g: torch.Generator) -> Tensor:
    """p of each cell; the first eight have a tenth of the mass."""
    p = torch.rand(CELLS, generator=g, dtype=torch.float64) + 0.2
    p[:8] *= 0.1 / p[:8].sum()
    p[8:] *= 0.9 / p[8:].sum()
    return p


def weights(p: Tensor, sigma: Tensor, g: torch.Generator) -> Means:
    """Means of log-normal weights with mean p and log-deviations sigma."""

    def draw(cells: Tensor, k: int) -> Tensor:
        noise = torch.randn(k, len(cells), generator=g, dtype=torch.float64)
        return p[cells].log() + sigma[cells] * noise - sigma[cells] ** 2 / 2

    return estimate(draw, CELLS)


def verdict(seed: int, *, factor: float, sigma: float, heavy: float = 0.0, samples: bool = True) -> bool | None:
    """Of weights that are ``factor`` times too large, with one deviation in the first eight cells, one elsewhere."""
    g = torch.Generator().manual_seed(seed)
    p = truth(g)
    means = weights(factor * p, torch.full((CELLS,), sigma).index_fill(0, torch.arange(8), heavy or sigma), g)
    x = torch.multinomial(p, 5000, replacement=True, generator=g)[:, None]
    return sums_to_one("sum", means, space(), x if samples else None, "").passed


@pytest.mark.parametrize(
    ("case", "passed"),
    [
        ({"factor": 1.0, "sigma": 0.5}, True),
        ({"factor": 1.05, "sigma": 0.5}, False),
        ({"factor": 0.95, "sigma": 0.5}, False),
        ({"factor": 1.0, "sigma": 8.0}, None),
        ({"factor": 0.5, "sigma": 8.0}, None),
        ({"factor": 1.0, "sigma": 0.5, "heavy": 8.0}, None),
        ({"factor": 1.3, "sigma": 0.5, "heavy": 8.0}, False),
        ({"factor": 0.8, "sigma": 0.5, "heavy": 8.0}, False),
        ({"factor": 0.8, "sigma": 0.5, "heavy": 8.0, "samples": False}, None),
    ],
    ids=str,
)
def test_a_sum_fails_for_an_excess_and_for_a_shortfall_that_no_tail_can_hide(
    case: dict[str, float], passed: bool | None
) -> None:
    assert [verdict(seed, **case) for seed in range(3)] == [passed] * 3  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0, 4.0])
def test_weights_of_growing_tails_never_fail(sigma: float) -> None:
    assert False not in [verdict(seed, factor=1.0, sigma=sigma) for seed in range(8)]


@pytest.mark.parametrize(("sigma", "heavy"), [(0.5, 0.5), (0.5, 8.0), (1.0, 1.0)])
def test_samples_are_compared_where_the_weights_are_known(sigma: float, heavy: float) -> None:
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        p = truth(g)
        means = weights(p, torch.full((CELLS,), sigma).index_fill(0, torch.arange(8), heavy), g)
        right = torch.multinomial(p, 5000, replacement=True, generator=g)[:, None]
        wrong = torch.multinomial(p.roll(1), 5000, replacement=True, generator=g)[:, None]
        hidden = torch.multinomial(p.index_fill(0, torch.arange(8), 0.2), 5000, replacement=True, generator=g)[:, None]
        assert follow_means("samples", means, space(), right, "").passed is True
        assert follow_means("samples", means, space(), wrong, "").passed is False
        assert follow_means("samples", means, space(), hidden, "").passed is False


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
def test_samples_never_fail_for_the_noise_of_the_weights(sigma: float) -> None:
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        p = truth(g)
        means = weights(p, torch.full((CELLS,), sigma), g)
        x = torch.multinomial(p, 5000, replacement=True, generator=g)[:, None]
        assert follow_means("samples", means, space(), x, "").passed is not False


def test_moments_of_draws_are_theirs_and_survive_underflow() -> None:
    g = torch.Generator().manual_seed(0)
    log_w = torch.randn(50, 3, generator=g, dtype=torch.float64)
    w, means = log_w.exp(), Means.of(log_w)
    assert torch.allclose(means.mean, w.mean(0))
    assert torch.allclose(means.variance, w.var(0, correction=0) / 50)
    assert torch.allclose(means.skewness, ((w - w.mean(0)) ** 3).mean(0).abs() / 50**2)
    assert torch.allclose(means.effective, w.sum(0) ** 2 / w.square().sum(0))
    assert torch.allclose(Means.of(log_w - 5000).effective, means.effective)
    nothing = Means.of(torch.full((4, 2), -torch.inf))
    assert nothing.mean.tolist() == nothing.variance.tolist() == nothing.effective.tolist() == [0, 0]


def test_what_is_hopeless_costs_little() -> None:
    g = torch.Generator().manual_seed(0)
    p = truth(g)
    known = weights(p, torch.full((CELLS,), 1.0), g)
    hopeless = weights(p, torch.full((CELLS,), 12.0), g)
    assert float(hopeless.draws.sum()) < MOST / 8 <= float(known.draws.sum()) <= MOST
