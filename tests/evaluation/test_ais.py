"""Annealed importance sampling against log Z by enumeration, and against importance sampling by hand."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Generator

from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import (
    Bracket,
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

    def state_from(self, x, *, generator=None):
        return self.inner.state_from(x, generator=generator)

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
    assert (sides.burn_in, sides.exact, sides.from_data) == (60, None, 0)
    low, high = sides.interval(width=3)
    assert low < exact < high


def test_exact_starts_are_preferred_to_data():
    one, data = path(6, 4), torch.zeros(5, 6)
    with_data, without = (
        bracket(one, x, chains=50, temperatures=5, generator=Generator().manual_seed(0)) for x in (data, None)
    )
    assert with_data.exact_start
    assert with_data.origins is None
    assert torch.equal(with_data.reverse.log_weights, without.reverse.log_weights)


def ferromagnet():
    """Twenty visible units that are all on with probability 0.9975, all off otherwise; the base is at the off side.

    Returns the path, log Z, log of the part of Z where most units are off, and exact samples of either mode.
    """
    visible, hidden, strength = 20, 10, 1.2
    couplings = Couplings(
        strength * torch.ones(visible, hidden).double(),
        torch.full((visible,), -0.5 * strength * hidden).double(),
        torch.full((hidden,), -0.5 * strength * visible + 0.6).double(),
    )
    one = GeometricPath(couplings, torch.full((visible,), -3.0).double())
    size = torch.arange(visible + 1).double()  # p(v) depends on the number of units alone
    states = (torch.arange(visible) < size[:, None]).double()
    log_ways = torch.lgamma(torch.tensor(visible + 1.0)) - torch.lgamma(size + 1) - torch.lgamma(visible - size + 1)
    log_p = one.log_unnormalised(states, 1.0) + log_ways
    assert abs(log_p.logsumexp(0) - one.exact_log_partition()) < 1e-5
    g = Generator().manual_seed(7)
    modes = []
    for where in (size < 10, size > 10):
        number = torch.multinomial((log_p - log_p.max()).exp() * where, 50, replacement=True, generator=g)
        places = torch.rand(50, visible, generator=g).argsort(1)
        modes.append((places < number[:, None]).double())
    return WithoutEnumeration(one), float(one.exact_log_partition()), float(log_p[:10].logsumexp(0)), *modes


def test_a_mode_that_only_data_show_makes_the_bracket_wide():
    """Starts from the forward runs alone give a closed bracket that is wrong by six nats."""
    one, exact, off, down, up = ferromagnet()
    assert exact - off > 5
    settings = {"chains": 100, "temperatures": 300, "burn_in": 100}

    def sides(data):
        return bracket(one, data, **settings, generator=Generator().manual_seed(0))

    blind = sides(None)
    assert blind.reverse.log_z + 3 * blind.reverse.se < exact - 5
    assert abs(blind.gap) < 0.1
    assert not blind.wide  # nothing that it could know
    assert "nothing but forward runs was looked at" in blind.trouble
    # data of both modes: the runs of the other mode come back with next to no weight, so the estimates move by log 2
    both = sides(torch.cat([down[:25], up[:25]]))
    assert both.wide
    assert both.from_data == 50
    assert both.missed == 0.5
    assert both.origins[0].log_z - both.origins[1].log_z == pytest.approx(math.log(2), abs=0.1)
    assert abs(both.gap) < both.tolerance  # the gap alone would not have told
    assert "above those from forward states" in both.trouble
    assert "do not reach 50% of the runs from data" in both.trouble
    # data of the other mode alone: the larger estimate is taken, and the bracket encloses log Z
    other = sides(up)
    assert other.wide
    assert other.reverse is other.origins[0]
    assert other.forward.log_z < exact < other.reverse.log_z
    assert f"gap {other.gap:.2g} nats" in other.trouble
    # a share too small for the standard errors is seen by its weights, even with few chains
    few = bracket(one, torch.cat([up[:2], down[:8]]), **settings | {"chains": 20}, generator=Generator().manual_seed(0))
    assert few.missed == 0.2
    assert few.trouble == "forward runs do not reach 20% of the runs from data"
    # data that know no more than the forward runs: nothing is left to tell
    same = sides(down)
    assert not same.wide
    assert torch.equal(same.reverse.states, torch.cat([half.states for half in same.origins]))


@pytest.mark.parametrize("chains", [2, 5])
def test_the_share_that_forward_runs_miss_is_that_of_their_largest_weights(chains):
    """Of exact samples: the share of Z that comes from weights above chains Z, once from runs forth, once back."""
    one, runs, g = path(8, 6, scale=1.2), 40_000, Generator().manual_seed(0)
    exact = float(one.exact_log_partition())
    forward = annealed_importance_sampling(one, chains=runs, temperatures=4, generator=g)
    reverse = reverse_ais(one, start=one.sample_target(runs, generator=g), temperatures=4, generator=g)
    few = dataclasses.replace(forward, log_z=exact, chains=chains)
    missed = Bracket(few, reverse, False, 0, None, 1.0, (reverse, reverse)).missed
    ratio = (forward.log_weights - exact).exp()
    share = ratio * (ratio > chains)
    assert missed > 0.02
    error = math.hypot(float(share.std()), math.sqrt(missed * (1 - missed))) / math.sqrt(runs)
    assert abs(float(share.mean()) - missed) < 4.5 * error


@pytest.mark.parametrize("seed", range(4))
def test_both_halves_of_the_reverse_runs_agree_after_burn_in_and_not_without(seed):
    """Data of a single state, far from the model, and few forward temperatures, so that both halves start wrongly."""
    one = path(8, 6, scale=1.0, seed=seed)
    states = (torch.arange(256)[:, None] >> torch.arange(8) & 1).double()
    unlikely = states[one.log_unnormalised(states, 1.0).argmin()][None]
    found = {
        burn_in: bracket(
            WithoutEnumeration(one),
            unlikely,
            chains=400,
            temperatures=30,
            burn_in=burn_in,
            generator=Generator().manual_seed(seed),
        )
        for burn_in in (0, 200)
    }
    exact, long = float(one.exact_log_partition()), found[200]
    assert long.trouble is None
    assert long.reverse.chains == 400
    assert long.interval()[0] < exact < long.interval()[1]
    for half in long.origins:
        assert abs(half.log_z - exact) < 4 * half.se
    data, forward = found[0].origins
    assert abs(data.log_z - exact) > 5 * data.se
    assert found[0].reverse is max(data, forward, key=lambda half: half.log_z)


class Remembering(WithoutEnumeration):
    """Keeps the states before each transition."""

    def __init__(self, inner):
        super().__init__(inner)
        self.states = []

    def transition(self, v, beta, *, generator=None):
        self.states.append(v)
        return self.inner.transition(v, beta, generator=generator)


def test_starts_from_forward_states_are_drawn_by_their_weights():
    """Few steps find two modes in the wrong proportions, which the weights put right."""
    weight, a, b = torch.ones(8, 6), torch.full((8,), -3.0), torch.full((6,), -4 + 1 / 3)
    one = GeometricPath(Couplings(weight.double(), a.double(), b.double()), torch.zeros(8).double())
    states = (torch.arange(256)[:, None] >> torch.arange(8) & 1).double()
    exact = torch.softmax(one.log_unnormalised(states, 1.0), 0) @ states.mean(1)  # units that are on
    spy = Remembering(one)
    sides = bracket(spy, chains=10_000, temperatures=5, burn_in=1, generator=Generator().manual_seed(0))
    starts, final = spy.states[5], sides.forward.states
    error = 0.5 / math.sqrt(sides.forward.ess)
    assert exact - final.mean() > 10 * error
    assert abs(starts.mean() - exact) < 4.5 * error


def test_fewer_than_two_effective_chains_are_wide_even_without_a_gap():
    a = torch.randn(5, dtype=torch.float64, generator=Generator().manual_seed(0))
    still = GeometricPath(Couplings(torch.zeros(5, 2).double(), a, torch.zeros(2).double()), a)
    alone, two = (
        bracket(still, chains=chains, temperatures=3, generator=Generator().manual_seed(1)) for chains in (1, 2)
    )
    assert abs(alone.gap) < 1e-12
    assert alone.ess == 1
    assert alone.wide
    assert "1.0 effective chains" in alone.trouble
    assert not two.wide


def test_halves_that_differ_by_little_agree_however_small_their_errors():
    """Without a burn-in, from the state that none is in: off by 0.02 nats and many standard errors, but not by 0.1."""
    a = torch.zeros(5, dtype=torch.float64)
    near = GeometricPath(Couplings(torch.zeros(5, 2).double(), a + 0.01, torch.zeros(2).double()), a)
    settings = {"chains": 100, "temperatures": 1, "burn_in": 0}
    sides = bracket(WithoutEnumeration(near), torch.zeros(1, 5), **settings, generator=Generator().manual_seed(0))
    data, forward = sides.origins
    assert 0.01 < abs(data.log_z - forward.log_z) < 0.1
    assert abs(data.log_z - forward.log_z) > 5 * math.hypot(data.se, forward.se)
    assert sides.trouble is None
    assert sides.reverse.chains == 100


def test_data_may_be_too_few_or_none():
    one = WithoutEnumeration(path(6, 4))
    settings = {"chains": 7, "temperatures": 5, "burn_in": 3}
    few = bracket(one, torch.zeros(2, 2, 3, dtype=torch.uint8), **settings)
    assert (few.from_data, few.origins[0].states.shape, few.origins[1].states.shape) == (3, (3, 6), (4, 6))
    assert bracket(one, torch.zeros(0, 2, 3, dtype=torch.uint8), **settings).from_data == 0
    assert bracket(one, torch.zeros(2, 6), **settings | {"chains": 1}).from_data == 0


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


class Early:
    """One bit whose log-odds go from 0 to 8 in the first hundredth of the way, and stay there."""

    def sample_base(self, n, *, generator=None):
        return torch.bernoulli(torch.full((n, 1), 0.5).double(), generator=generator)

    def log_unnormalised(self, v, beta):
        return 8 * min(100 * beta, 1.0) * v[:, 0]

    def transition(self, v, beta, *, generator=None):
        p = torch.tensor(8 * min(100 * beta, 1.0)).double().sigmoid()
        return torch.bernoulli(p.expand(len(v), 1), generator=generator)


def test_no_adaptive_step_is_longer_than_ten_times_the_mean():
    """Else a change that the first run has missed would be crossed in one step."""
    betas = adaptive_schedule(Early(), 100, chains=50, generator=Generator().manual_seed(0))
    steps = [b - a for a, b in pairwise(betas)]
    assert max(steps) <= 10 / 100 + 1e-9
    assert max(steps) > 9 / 100
    assert sum(step < 1 / 400 for step in steps) > 60


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
