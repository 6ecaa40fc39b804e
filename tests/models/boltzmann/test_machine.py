"""Machines of several layers and types against enumeration and quadrature; the toys are what a new row would write."""

import math
import sys
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.estimators import CD, FPCD, NCE, PCD, PT, Energy, RatioMatching
from dgmbench.models.boltzmann.estimators import Machine as Trained
from dgmbench.models.boltzmann.machine import Machine
from dgmbench.models.contract import HasUnnormalisedElbo, HasUnnormalisedLogProb
from dgmbench.nn.rectified_units import SteppedSigmoid
from dgmbench.nn.unit_layers import BERNOULLI, Counts, Gaussian, Independent

sys.path.insert(0, str(Path(__file__).parent / "machines"))
from toy_machines import CountToy, DeepToy, GaussianToy


def seeded(seed=0):
    return Generator().manual_seed(seed)


def normal(*size, seed=0, scale=1.0):
    return scale * torch.randn(*size, dtype=torch.float64, generator=seeded(seed))


def bits(n):
    return torch.tensor(list(product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def layered(sizes, scale=1.0, lateral=(), seed=0):
    layers = tuple(Independent(BERNOULLI, normal(size, seed=seed + k)) for k, size in enumerate(sizes))
    weights = {(k, k + 1): normal(a, b, seed=10 + seed + k, scale=scale) for k, (a, b) in enumerate(pairwise(sizes))}
    for k in lateral:
        half = normal(sizes[k], sizes[k], seed=20 + seed + k).tril(-1)
        weights[k, k] = half + half.T
    return Machine(layers, weights)


def energy_by_hand(machine, states):
    """From the definition, unit by unit."""
    value = torch.zeros(len(states[0]), dtype=torch.float64)
    for x, layer in zip(states, machine.layers, strict=True):
        for unit in range(x.shape[1]):
            value -= layer.eta[unit] * x[:, unit]
    for (i, j), weight in machine.weights.items():
        for a in range(weight.shape[0]):
            for b in range(weight.shape[1]):
                if i != j or a < b:
                    value -= weight[a, b] * states[i][:, a] * states[j][:, b]
    return value


def all_states(machine):
    every = bits(sum(machine.sizes))
    return every, machine.split(every, range(len(machine.sizes)))


@pytest.mark.parametrize("lateral", [(), (0, 1)])
def test_the_energy_is_that_of_the_definition_and_conditionals_are_its_ratios(lateral):
    machine = layered((3, 2, 2), lateral=lateral)
    _, states = all_states(machine)
    energy = energy_by_hand(machine, states)
    torch.testing.assert_close(machine.energy(states), energy, rtol=0, atol=1e-12)
    for layer in range(3):
        on = [x.clone() for x in states]
        off = [x.clone() for x in states]
        on[layer][:, 0], off[layer][:, 0] = 1, 0
        log_odds = machine.energy(off) - machine.energy(on)
        torch.testing.assert_close(machine.inputs(layer, machine.features(states))[:, 0], log_odds, rtol=0, atol=1e-12)
    assert (machine.parities() is None) == bool(lateral)


@pytest.mark.parametrize("carried", [0, 1])
def test_either_parity_sums_the_other_out(carried):
    """Free energies, log Z and the gradient of a 3-2-4-2 machine against enumeration of all units."""
    machine = layered((3, 2, 4, 2))
    _, states = all_states(machine)
    log_z = (-machine.energy(states)).logsumexp(0)
    sides = machine.sides(carried)
    assert isinstance(sides, Energy)
    which = machine.parities()[carried]
    assert which == ((0, 2), (1, 3))[carried]
    joint = torch.cat([states[n] for n in which], 1)
    small = bits(joint.shape[1])
    for state, free in zip(small, sides.free_energy(small), strict=True):
        rows = (joint == state).all(1)
        assert abs(float(-(-machine.energy([x[rows] for x in states])).logsumexp(0) - free)) < 1e-11
    assert abs(float(sides.log_partition() - log_z)) < 1e-11
    weight = machine.weights[1, 2].requires_grad_()
    path_gradient = torch.autograd.grad((-machine.sides(carried).free_energy(small)).logsumexp(0), weight)[0]
    p = torch.softmax(-machine.energy(states).detach(), 0)
    torch.testing.assert_close(path_gradient, (p[:, None] * states[1]).T @ states[2], rtol=0, atol=1e-12)


def test_annealing_of_either_parity_brackets_log_z():
    machine = layered((6, 5, 4), scale=0.8)
    _, states = all_states(machine)
    log_z = float((-machine.energy(states)).logsumexp(0))
    for carried in (0, 1):
        sides = machine.sides(carried)
        path = GeometricPath(sides, torch.zeros_like(sides.visible_bias))
        assert float(path.exact_log_partition()) == pytest.approx(log_z, abs=1e-10)
        found = bracket(path, chains=300, temperatures=150, generator=seeded())
        low, high = found.interval()
        assert log_z - 1 < low < log_z < high < log_z + 1


def transition_frequencies(step, every, repeats=4000):
    rows = torch.arange(len(every)).repeat_interleave(repeats)
    after = step(every[rows])
    code = (after @ (2.0 ** torch.arange(every.shape[1] - 1, -1, -1, dtype=torch.float64))).long()
    return torch.bincount(rows * len(every) + code, minlength=len(every) ** 2).view(len(every), -1) / repeats


@pytest.mark.parametrize("lateral", [(), (0, 1)])
@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_sweeps_leave_every_temperature_unchanged(lateral, beta):
    """The measured transition matrix of all units leaves exp(-beta E) where it is, lateral couplings or not."""
    machine = layered((2, 2, 1), scale=1.5, lateral=lateral)
    every, states = all_states(machine)
    p = torch.softmax(-beta * machine.energy(states), 0)
    whole, g, repeats = machine.whole(), seeded(), 4000
    matrix = transition_frequencies(
        lambda v: whole.sweep(v, v[:, :0], torch.full((len(v), 1), beta).double(), g)[0], every, repeats
    )
    error = (p[:, None] ** 2 * matrix * (1 - matrix) / repeats).sum(0).sqrt()
    assert ((p @ matrix.double() - p).abs() <= 4.5 * error + 1e-12).all()
    assert (matrix - matrix[0]).abs().max() > 0.1
    torch.testing.assert_close(whole.tempered_energy(every, every[:, :0]), machine.energy(states))


@pytest.mark.parametrize("lateral", [(), (1,)])
def test_the_mean_field_bound_is_below_and_exact_where_hidden_units_are_independent(lateral):
    machine = layered((3, 3, 2), scale=0.7, lateral=lateral)
    _, states = all_states(machine)
    log_joint = -machine.energy(states)
    for v in bits(3):
        rows = (states[0] == v).all(1)
        exact = float(log_joint[rows].logsumexp(0))
        found = machine.mean_field({0: v[None]}, steps=50)
        means = torch.cat(found.means[1:], 1)[0]
        hidden = bits(5)
        q = (hidden * means.log() + (1 - hidden) * (1 - means).log()).sum(1)
        by_hand = float((q.exp() * (log_joint[rows] - q)).sum())
        assert float(-found.free_energy) == pytest.approx(by_hand, abs=1e-9)
        assert by_hand < exact - 1e-6
        both = machine.mean_field({0: v[None], 2: torch.zeros(1, 2).double()}, steps=50)
        if not lateral:
            rows = rows & (states[2] == 0).all(1)
            assert float(-both.free_energy) == pytest.approx(float(log_joint[rows].logsumexp(0)), abs=1e-10)


# ---- other types of unit ----


def gaussian_couplings(visible=1, hidden=3, seed=0):
    sigma = torch.tensor([0.8, 1.3], dtype=torch.float64)[:visible]
    return Couplings(
        normal(visible, hidden, seed=seed),
        normal(visible, seed=seed + 1),
        normal(hidden, seed=seed + 2),
        Gaussian.of(sigma),
    )


def test_a_gaussian_machine_is_the_mixture_over_its_hidden_states():
    """1-D and 2-D by quadrature, and log p(v | h) = N(sigma (a + W h), sigma^2)."""
    for visible, points in ((1, 4000), (2, 500)):
        now = gaussian_couplings(visible)
        axis = torch.linspace(-14, 14, points, dtype=torch.float64)
        v = torch.cartesian_prod(*[axis] * visible).reshape(-1, visible)
        volume = visible * math.log(float(axis[1] - axis[0]))
        log_z = float((-now.free_energy(v)).logsumexp(0)) + volume
        assert float(now.log_partition()) == pytest.approx(log_z, abs=1e-6)
        h = bits(3)
        energy = torch.stack([now.energy(v, one.expand(len(v), -1)) for one in h])
        torch.testing.assert_close(now.free_energy(v), -(-energy).logsumexp(0), rtol=0, atol=1e-8)
    sigma = now.visible_units.sigma
    x = now.sample_visible(h[5].expand(30_000, -1), seeded())
    expected = sigma * (now.visible_bias + now.weight @ h[5])
    assert ((x.mean(0) - expected).abs() < 4 * sigma / math.sqrt(30_000)).all()
    assert ((x.var(0) / sigma**2 - 1).abs() < 0.04).all()


def test_annealing_a_gaussian_machine_from_the_datas_moments():
    now = gaussian_couplings(2)
    x = now.sample_exact(4000, seeded())
    path = GeometricPath.between(now.visible_units.fitted(x), now)
    exact = float(now.log_partition())
    found = bracket(path, chains=300, temperatures=100, generator=seeded(1))
    low, high = found.interval()
    assert exact - 0.5 < low < exact < high < exact + 0.5
    axis = torch.linspace(-25, 25, 700, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    volume = 2 * math.log(float(axis[1] - axis[0]))
    base = float(path.log_unnormalised(grid, 0.0).logsumexp(0)) + volume
    assert base == pytest.approx(float(path.log_base_partition()), abs=1e-6)
    # a step at beta leaves p_beta unchanged: means and variances of exact starts, by the grid
    log_p = path.log_unnormalised(grid, 0.6)
    p = torch.softmax(log_p, 0)
    start = grid[torch.multinomial(p, 40_000, replacement=True, generator=seeded(2))]
    after = path.transition(start, 0.6, generator=seeded(3))
    for moment in (lambda v: v, lambda v: v.square()):
        value, expected = moment(after), p @ moment(grid)
        assert ((value.mean(0) - expected).abs() < 4.5 * value.std(0) / 200 + 2e-3).all()


def test_stepped_hidden_units_are_many_copies_of_a_bit():
    """Twelve copies with biases b - 1/2, b - 3/2, ... of one hidden bit, where the others are as good as off."""
    weight, a, b = normal(3, 1), normal(3, seed=1), torch.tensor([-1.5], dtype=torch.float64)
    one = Couplings(weight, a, b, BERNOULLI, SteppedSigmoid())
    offsets = torch.arange(40, dtype=torch.float64) + 0.5
    copies = Couplings(weight.expand(3, 40), a, b - offsets)
    v = bits(3)
    torch.testing.assert_close(one.free_energy(v), copies.free_energy(v), rtol=0, atol=1e-10)
    states = torch.arange(60, dtype=torch.float64)[:, None]
    energy = torch.stack([one.energy(row.expand(60, -1), states) for row in v])
    torch.testing.assert_close(one.free_energy(v), -(-energy).logsumexp(1), rtol=0, atol=1e-10)


def test_word_counts_sum_to_one_for_every_length_and_so_do_sequences():
    toy = CountToy(DataSpec((4,), "counts"), hidden=3).double()
    with torch.no_grad():
        for k, p in enumerate(toy.parameters()):
            p.copy_(normal(*p.shape, seed=k))
    for total in range(1, 6):
        words = torch.tensor(list(product(range(4), repeat=total)))
        counts = torch.nn.functional.one_hot(words, 4).sum(1)
        log_z = toy.annealing_path_given(torch.tensor([total])).exact_log_partition()
        log_p = toy.log_prob_unnormalised(counts).detach() - log_z
        unique, inverse = torch.unique(counts, dim=0, return_inverse=True)
        each = torch.zeros(len(unique), dtype=torch.float64).scatter_(0, inverse, log_p)
        assert float(each.exp().sum()) == pytest.approx(1, abs=1e-12)
        coefficient = Counts(torch.tensor(total)).log_reference(counts.double())
        assert float((log_p - coefficient).exp().sum()) == pytest.approx(1, abs=1e-12)


# ---- estimators on any machine ----


def data(spec, n=60):
    g = seeded(4)
    if spec.kind == "real":
        return torch.randn(n, spec.dim, generator=g) * 0.5 + torch.randint(2, (n, 1), generator=g) * 2.0
    return torch.randint(2, (n, *spec.shape), generator=g).to(spec.dtype)


@pytest.mark.parametrize("estimator", [CD(k=2), PCD(chains=20), FPCD(chains=20), PT(chains=10, temperatures=4)])
@pytest.mark.parametrize("toy", [GaussianToy, DeepToy])
def test_every_sampler_trains_machines_it_knows_nothing_of(toy, estimator):
    spec = DataSpec((3,), "real") if toy is GaussianToy else DataSpec((5,), "binary")
    torch.manual_seed(0)
    model, x, g = toy(spec, estimator=estimator).double(), data(spec), seeded()
    assert isinstance(model, Trained)
    model.initialise(Batch(x), g)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(5):
        optimiser.zero_grad()
        loss, _ = model.loss("model", Batch(x), g)
        loss.backward()
        optimiser.step()
        model.after_step("model", Batch(x), g)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    still = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    assert not [name for name in still if "base" not in name and "betas" not in name], still


def test_tempered_sweeps_of_gaussian_machines_leave_their_temperatures_unchanged():
    """Exact joint starts by the hidden states' weights at each temperature; means and variances stay."""
    now, chains = gaussian_couplings(1, 2), 40_000
    for beta in (0.0, 0.5, 1.0):
        tempered = Couplings(beta * now.weight, beta * now.visible_bias, beta * now.hidden_bias, now.visible_units)
        v = tempered.sample_exact(chains, seeded(1))
        h = tempered.sample_hidden(v, seeded(2))
        after, up = now.sweep(v, h, torch.full((chains, 1), beta, dtype=torch.float64), seeded(3))
        for old, new in ((v, after), (v.square(), after.square()), (h, up)):
            error = torch.hypot(old.std(0), new.std(0)) / math.sqrt(chains)
            assert ((old.mean(0) - new.mean(0)).abs() < 4.5 * error).all(), beta
    energies = torch.stack([now.tempered_energy(v, h), now.energy(v, h) + now.visible_units.log_reference(v)])
    torch.testing.assert_close(energies[0], energies[1])


def test_the_gradient_of_a_mean_field_machine_is_data_less_model_moments_at_fixed_means():
    toy = DeepToy(DataSpec((4,), "binary"), hidden_sizes=(3, 2), estimator=PCD(chains=30)).double()
    with torch.no_grad():
        for k, p in enumerate(toy.parameters()):
            p.copy_(normal(*p.shape, seed=k))
    x, g = data(toy.spec), seeded()
    toy.initialise(Batch(x), g)
    toy.loss("model", Batch(x), g)[0].backward()
    means = toy.machine().mean_field({0: x.double()}, steps=20).means
    chain = toy.estimator.chain
    v, top = chain[:, :4], chain[:, 4:]
    middle = toy.couplings().hidden_logits(chain).sigmoid()
    expected = v.T @ middle / 30 - means[0].T @ means[1] / len(x)
    torch.testing.assert_close(toy.weights[0].grad, expected.detach(), rtol=0, atol=1e-12)
    expected = middle.T @ top / 30 - means[1].T @ means[2] / len(x)
    torch.testing.assert_close(toy.weights[1].grad, expected.detach(), rtol=0, atol=1e-12)


def test_nce_and_ratio_matching_ask_for_bits_only_of_the_visible_side():
    spec = DataSpec((4,), "binary")

    class SteppedRbm(GaussianToy):
        def couplings(self, fast=None):
            return Couplings(self.weight, self.bias, self.hidden_bias, BERNOULLI, SteppedSigmoid())

        def base(self):
            return Independent(BERNOULLI, torch.zeros_like(self.bias))

        def initialise(self, batch, generator):
            self.estimator.initialise(self, generator)

    torch.manual_seed(0)
    x = data(spec)
    ratio = SteppedRbm(spec, estimator=RatioMatching()).double()
    loss, _ = ratio.loss("model", Batch(x), seeded())
    free, v, total = ratio.couplings().free_energy, x.double(), 0.0
    for bit in range(4):
        flipped = v.clone()
        flipped[:, bit] = 1 - flipped[:, bit]
        total += float((free(v) - free(flipped)).sigmoid().square().mean().detach())
    assert float(loss.detach()) == pytest.approx(total, abs=1e-10)
    noise = SteppedRbm(spec, estimator=NCE(nu=2)).double()
    noise.initialise(Batch(x), seeded())
    assert noise.loss("model", Batch(x), seeded())[0].isfinite()
    ratio_of_one = noise.estimator.log_ratio(noise, v)
    by_hand = -noise.couplings().free_energy(v) - noise.estimator.log_z + 4 * math.log(2) - math.log(2)
    torch.testing.assert_close(ratio_of_one, by_hand)


def test_chains_that_persist_are_refused_where_the_energy_depends_on_the_example():
    with pytest.raises(UserError, match="PCD keeps chains between batches"):
        CountToy(DataSpec((4,), "counts"), estimator=PCD())


def test_the_toys_say_what_they_can():
    assert isinstance(DeepToy(DataSpec((4,), "binary")), HasUnnormalisedElbo)
    assert isinstance(GaussianToy(DataSpec((2,), "real")), HasUnnormalisedLogProb)
