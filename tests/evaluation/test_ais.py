"""Annealed importance sampling against log Z by enumeration, and against importance sampling by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Generator

from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import (
    adaptive_schedule,
    annealed_importance_sampling,
    bracket,
    reverse_ais,
    schedule,
)
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.contract import AnnealingPath


def path(visible=6, hidden=4, scale=1.0, seed=0):
    g = Generator().manual_seed(seed)
    weight, a, b, base = (
        scale * torch.randn(size, generator=g, dtype=torch.float64)
        for size in ((visible, hidden), (visible,), (hidden,), (visible,))
    )
    return GeometricPath(Couplings(weight, a, b), base)


class WithoutEnumeration:
    """The same path, as one too large to enumerate."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name == "sample_target":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def exact_log_partition(self):
        return None


def test_the_path_joins_its_ends():
    one = path(5, 3)
    v = (torch.arange(32)[:, None] >> torch.arange(5) & 1).double()
    torch.testing.assert_close(one.log_unnormalised(v, 1.0), -one.couplings.free_energy(v), rtol=0, atol=1e-12)
    torch.testing.assert_close(one.log_unnormalised(v, 0.0), v @ one.base_logits + 3 * math.log(2), rtol=0, atol=1e-12)
    assert abs(one.log_unnormalised(v, 0.0).logsumexp(0) - one.log_base_partition()) < 1e-12
    assert abs(one.log_unnormalised(v, 1.0).logsumexp(0) - one.exact_log_partition()) < 1e-12
    h = (torch.arange(8)[:, None] >> torch.arange(3) & 1).double()
    energy = one.couplings.energy(v.repeat_interleave(8, 0), h.repeat(32, 1)).view(32, 8)
    for beta in (0.3, 0.8):
        tempered = (1 - beta) * (v @ one.base_logits) + (-beta * energy).logsumexp(1)
        torch.testing.assert_close(one.log_unnormalised(v, beta), tempered, rtol=0, atol=1e-12)
    assert isinstance(one, AnnealingPath)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_transitions_leave_every_distribution_of_the_path_unchanged_and_are_reversible(beta):
    one = path(3, 2)
    v = (torch.arange(8)[:, None] >> torch.arange(3) & 1).double()
    p = torch.softmax(one.log_unnormalised(v, beta), 0)
    repeats = 40_000
    end = one.transition(v.repeat_interleave(repeats, 0), beta, generator=Generator().manual_seed(0))
    code = (end.long() * torch.tensor([1, 2, 4])).sum(1).view(8, repeats)
    matrix = torch.stack([torch.bincount(row, minlength=8) for row in code]).double() / repeats
    flow = p[:, None] * matrix
    error = (p[:, None] ** 2 * matrix * (1 - matrix) / repeats).sqrt()
    assert ((flow - flow.T).abs() <= 4.5 * (error**2 + error.T**2).sqrt() + 1e-12).all()
    assert ((p @ matrix - p).abs() <= 4.5 * error.square().sum(0).sqrt()).all()


def test_one_step_equals_plain_importance_sampling():
    one = path()
    estimate = annealed_importance_sampling(one, chains=500, temperatures=1, generator=Generator().manual_seed(0))
    v = one.sample_base(500, generator=Generator().manual_seed(0))
    ratio = (-one.couplings.free_energy(v) - (v @ one.base_logits + 4 * math.log(2))).exp()
    log_z = math.log(float(ratio.mean())) + float(one.log_base_partition())
    assert abs(estimate.log_z - log_z) < 1e-12
    assert estimate.se == pytest.approx(float(ratio.std() / ratio.mean()) / math.sqrt(500), rel=1e-12)
    assert estimate.ess == pytest.approx(float(ratio.sum() ** 2 / ratio.square().sum()), rel=1e-12)
    assert (estimate.chains, estimate.temperatures, estimate.direction) == (500, 1, "forward")
    assert estimate.log_weights.dtype == torch.float64


def test_a_path_between_equal_ends_is_exact():
    """Base = target (no weights, equal biases): every weight is Z_1 / Z_0, whatever the schedule."""
    a = torch.randn(5, dtype=torch.float64, generator=Generator().manual_seed(0))
    one = GeometricPath(Couplings(torch.zeros(5, 2).double(), a, torch.zeros(2).double()), a)
    sides = bracket(one, chains=7, temperatures=3, generator=Generator().manual_seed(1))
    assert abs(sides.forward.log_z - sides.exact) < 1e-12
    assert abs(sides.reverse.log_z - sides.exact) < 1e-12
    assert sides.ess == pytest.approx(7)
    assert sides.forward.se < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_exact_log_z_lies_in_the_bracket_widened_by_three_standard_errors(seed):
    one = path(8, 6, scale=1.5, seed=seed)
    sides = bracket(one, chains=200, temperatures=100, generator=Generator().manual_seed(seed))
    exact = float(one.exact_log_partition())
    low, high = sides.interval(width=3)
    assert sides.exact == exact
    assert exact - 2 < low < exact < high < exact + 2
    assert sides.exact_start
    assert not sides.wide
    assert 2 < sides.ess <= 200


@pytest.fixture(scope="module")
def many():
    """600 runs of 4 chains over 6 temperatures, forwards and backwards from exact samples."""
    one, runs, chains = path(6, 4, scale=1.2), 600, 4
    g = Generator().manual_seed(0)
    forward = annealed_importance_sampling(one, chains=runs * chains, temperatures=6, generator=g)
    reverse = reverse_ais(one, start=one.sample_target(runs * chains, generator=g), temperatures=6, generator=g)
    return float(one.exact_log_partition()), forward, reverse, runs, chains


def test_weights_are_unbiased_in_both_directions(many):
    exact, forward, reverse, _, _ = many
    for ratio in ((forward.log_weights - exact).exp(), (reverse.log_weights + exact).exp()):
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))


def test_expected_estimates_enclose_log_z_though_single_runs_need_not(many):
    exact, forward, reverse, runs, chains = many
    low = forward.log_weights.view(runs, chains).logsumexp(1) - math.log(chains)
    high = -(reverse.log_weights.view(runs, chains).logsumexp(1) - math.log(chains))
    assert low.mean() + 4 * low.std() / math.sqrt(runs) < exact
    assert high.mean() - 4 * high.std() / math.sqrt(runs) > exact
    assert (low > exact).any()
    assert (high < exact).any()
    assert (low > high).any()


def test_standard_errors_describe_the_spread_of_repeated_estimates():
    one = path(6, 4)
    g, errors, claimed = Generator().manual_seed(0), [], []
    for _ in range(150):
        estimate = annealed_importance_sampling(one, chains=100, temperatures=20, generator=g)
        errors.append(estimate.log_z - float(one.exact_log_partition()))
        claimed.append(estimate.se)
    spread, mean_claim = torch.tensor(errors).std(), torch.tensor(claimed).mean()
    assert 0.8 < float(spread / mean_claim) < 1.25


def test_finer_schedules_narrow_the_bracket():
    one, gaps, sizes = path(10, 8, scale=1.5), [], []
    for steps in (2, 20, 400):
        sides = bracket(one, chains=400, temperatures=steps, generator=Generator().manual_seed(0))
        gaps.append(abs(sides.gap))
        sizes.append(sides.ess)
    assert gaps == sorted(gaps, reverse=True)
    assert sizes == sorted(sizes)
    assert gaps[-1] < 0.1


def test_a_coarse_bracket_is_flagged_as_wide():
    one = path(12, 10, scale=4.0)
    assert bracket(one, chains=20, temperatures=1, generator=Generator().manual_seed(0)).wide


def test_reverse_runs_start_from_long_chains_where_exact_samples_cannot_be_had():
    one = path(6, 4)
    sides = bracket(
        WithoutEnumeration(one), chains=300, temperatures=50, burn_in=60, generator=Generator().manual_seed(0)
    )
    exact = float(one.exact_log_partition())
    assert not sides.exact_start
    assert (sides.burn_in, sides.exact) == (60, None)
    low, high = sides.interval(width=3)
    assert low < exact < high


def test_float32_machines_agree_with_float64():
    one = path(30, 12)
    single = GeometricPath(Couplings(*(t.float() for t in one.couplings)), one.base_logits.float())
    assert abs(single.exact_log_partition() - one.exact_log_partition()) < 1e-4
    sides = bracket(single, chains=200, temperatures=300, generator=Generator().manual_seed(0))
    low, high = sides.interval(width=3)
    assert low < float(one.exact_log_partition()) < high
    assert sides.forward.log_weights.dtype == torch.float64


def test_schedules_and_progress():
    assert schedule(2) == [0.0, 0.5, 1.0]
    assert schedule([0, 0.9, 1]) == [0.0, 0.9, 1.0]
    assert schedule(torch.tensor([0, 0.5, 1.0])) == [0.0, 0.5, 1.0]
    assert schedule([[0.5, 2], [1.0, 1]]) == [0.0, 0.25, 0.5, 1.0]
    published = schedule([[0.5, 500], [0.9, 4000], [1.0, 10_000]])  # Salakhutdinov and Murray 2008
    assert len(published) == 14_501
    assert (published[500], published[4500]) == (0.5, 0.9)
    pieces = ([[0.5, 2]], [[0.5, 0], [1.0, 1]], [[0.5, 1.5], [1.0, 1]], [[0.5, 2, 3], [1.0, 1]], [[1.0, 2], [0.5, 1]])
    for wrong in (0, [], [0.0], [0, 0.5], [0.1, 1], [0, 0.5, 0.5, 1], *pieces):
        with pytest.raises(UserError, match=r"annealing"):
            schedule(wrong)
    calls = []
    given = bracket(
        path(), chains=3, temperatures=[0, 0.5, 1], progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert given.forward.temperatures == given.reverse.temperatures == 2


def test_adaptive_steps_are_short_where_the_path_changes_fast_and_narrow_the_bracket():
    """Strong weights change the path most near beta = 0."""
    one = path(12, 10, scale=3.0)
    betas = adaptive_schedule(one, 40, chains=200, generator=Generator().manual_seed(0))
    steps = [b - a for a, b in pairwise(betas)]
    assert len(steps) == 40
    assert (betas[0], betas[-1]) == (0.0, 1.0)
    assert min(steps) > 0
    assert max(steps) <= 10 / 40 + 1e-9
    # equal lengths: the spread of the weights' increments is the same in every step, but for noise and the floor
    v, lengths = one.sample_base(4000, generator=Generator().manual_seed(1)), []
    for here, there in pairwise(betas):
        lengths.append(float((one.log_unnormalised(v, there) - one.log_unnormalised(v, here)).std()))
        v = one.transition(v, there, generator=Generator().manual_seed(len(lengths)))
    even = []
    v = one.sample_base(4000, generator=Generator().manual_seed(1))
    for here, there in pairwise(schedule(40)):
        even.append(float((one.log_unnormalised(v, there) - one.log_unnormalised(v, here)).std()))
        v = one.transition(v, there, generator=Generator().manual_seed(len(even)))
    assert max(lengths) / min(lengths) < 0.5 * max(even) / min(even)
    gaps = {
        spacing: np.mean(
            [
                abs(bracket(one, chains=50, temperatures=40, spacing=spacing, generator=Generator().manual_seed(i)).gap)
                for i in range(10)
            ]
        )
        for spacing in ("even", "adaptive")
    }
    assert gaps["adaptive"] < 0.8 * gaps["even"]
    with pytest.raises(UserError, match="nothing to adapt"):
        bracket(one, temperatures=[0, 0.5, 1], spacing="adaptive")


def test_adaptive_steps_on_a_path_that_does_not_change_are_even():
    a = torch.zeros(4, dtype=torch.float64)
    still = GeometricPath(Couplings(torch.zeros(4, 2).double(), a, torch.zeros(2).double()), a)
    assert adaptive_schedule(still, 5, chains=3) == pytest.approx(schedule(5))


def test_intervals_are_one_sided_where_the_error_exceeds_the_estimate():
    one = path(12, 10, scale=3.0)
    forward = annealed_importance_sampling(one, chains=5, temperatures=1, generator=Generator().manual_seed(0))
    low, high = forward.interval(width=3)
    assert low == -math.inf
    assert high == pytest.approx(forward.log_z + math.log1p(3 * forward.se))
    reverse = reverse_ais(one, start=one.sample_target(5, generator=Generator().manual_seed(0)), temperatures=1)
    low, high = reverse.interval(width=0.5)
    assert low < reverse.log_z < high
    single = annealed_importance_sampling(one, chains=1, temperatures=2)
    assert single.se == math.inf
