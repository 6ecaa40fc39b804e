"""Deep Boltzmann machines against enumeration of all their units."""

import math

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.models.boltzmann.dbm import Dbm
from dgmbench.models.boltzmann.dbm_pretraining import Pair
from dgmbench.models.boltzmann.estimators import CD, FPCD, NCE, PCD, PT
from dgmbench.models.contract import CanComplete, HasUnnormalisedElbo, StartsFromData

SPEC = DataSpec((6,), "binary")


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(hidden_sizes=(4, 3), seed=0, scale=0.7, **args):
    args = {"pretraining": 0.0, "sample_steps": 60, "tolerance": 1e-12, "mean_field_steps": 500} | args
    dbm = Dbm(SPEC, hidden_sizes=hidden_sizes, **args).double()
    g = seeded(seed)
    with torch.no_grad():
        for p in dbm.overlaid().values():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return dbm


def data(n=40, seed=0):
    g = seeded(seed)
    which = torch.randint(2, (n, 1), generator=g)
    return torch.where(torch.rand(n, 6, generator=g) < 0.15, 1 - which, which).to(torch.uint8)


def energies(dbm, states):
    """-E of every state of all layers from the definition, and every state, layer by layer."""
    sizes = [6, *(len(bias) for bias in dbm.biases[1:])]
    layers = states(sum(sizes)).split(sizes, 1)
    value = sum(x @ bias for x, bias in zip(layers, dbm.biases, strict=True))
    for n, weight in enumerate(dbm.weights):
        value = value + ((layers[n] @ weight) * layers[n + 1]).sum(1)
    return value.detach(), layers


def marginal(dbm, states):
    """Log p(x) of all 64 x and log Z, by enumeration."""
    value, layers = energies(dbm, states)
    rows = (layers[0] @ 2.0 ** torch.arange(5, -1, -1, dtype=torch.float64)).long()
    log_p = torch.stack([value[rows == n].logsumexp(0) for n in range(64)])
    log_z = log_p.logsumexp(0)
    return log_p - log_z, log_z


@pytest.mark.parametrize("hidden_sizes", [(4, 3), (3, 3, 2)])
def test_log_z_of_either_parity_is_that_of_the_enumeration_and_annealing_brackets_it(states, hidden_sizes):
    dbm = make(hidden_sizes)
    _, log_z = marginal(dbm, states)
    for carried in (0, 1):
        assert abs(float(dbm.machine().sides(carried).log_partition() - log_z)) < 1e-10
    dbm.rates.copy_(torch.linspace(0.2, 0.7, len(dbm.rates)))
    path = dbm.annealing_path()
    found = bracket(path, chains=400, temperatures=60, generator=seeded())
    low, high = found.interval()
    assert log_z - 0.5 < low < log_z < high < log_z + 0.5
    assert found.forward.log_z == pytest.approx(float(log_z), abs=4 * found.forward.se)
    assert isinstance(path, StartsFromData)
    assert torch.equal(path.state_from(data(), generator=seeded())[:, :6], data().double())


@pytest.mark.parametrize("hidden_sizes", [(4, 3), (3, 3, 2)])
def test_the_mean_field_bound_is_below_log_p_by_the_divergence_of_q_from_the_posterior(states, hidden_sizes):
    dbm = make(hidden_sizes)
    log_p, log_z = marginal(dbm, states)
    x = states(6)
    with torch.no_grad():
        bound = dbm.elbo_unnormalised(x.to(torch.uint8)) - log_z
        means = torch.cat(dbm.mean_field(x).means[1:], 1)
    value, layers = energies(dbm, states)
    hidden = torch.cat(layers[1:], 1)
    for n in (0, 21, 63):
        rows = (layers[0] == x[n]).all(1)
        log_posterior = value[rows].log_softmax(0)
        log_q = (hidden[rows] * means[n].log() + (1 - hidden[rows]) * (1 - means[n]).log()).sum(1)
        gap = float((log_q.exp() * (log_q - log_posterior)).sum())
        assert float(log_p[n] - bound[n]) == pytest.approx(gap, abs=1e-9)
    assert (bound < log_p).all()
    assert isinstance(dbm, HasUnnormalisedElbo)


def test_means_solve_the_mean_field_equations_and_each_example_stops_by_itself():
    dbm = make((5, 4, 3), scale=0.8, tolerance=1e-8)
    x = data(20).double()
    with torch.no_grad():
        means = dbm.mean_field(x).means
        (w1, w2, w3), (_, b1, b2, b3) = dbm.weights, dbm.biases
        torch.testing.assert_close(means[1], (x @ w1 + means[2] @ w2.T + b1).sigmoid(), rtol=0, atol=1e-7)
        torch.testing.assert_close(means[2], (means[1] @ w2 + means[3] @ w3.T + b2).sigmoid(), rtol=0, atol=1e-7)
        torch.testing.assert_close(means[3], (means[2] @ w3 + b3).sigmoid(), rtol=0, atol=1e-7)
        dbm.tolerance = 0.02
        together, start = dbm.mean_field(x).means[1], dbm.bottom_up(x)
        for row in range(2):  # alone, step by step, until no mean moves by more than the tolerance
            now = [x[row : row + 1], *(start[n][row : row + 1] for n in (1, 2, 3))]
            for _step in range(dbm.mean_field_steps):
                before = [mean.clone() for mean in now]
                now[1] = (now[0] @ w1 + now[2] @ w2.T + b1).sigmoid()
                now[2] = (now[1] @ w2 + now[3] @ w3.T + b2).sigmoid()
                now[3] = (now[2] @ w3 + b3).sigmoid()
                if max(float((a - b).abs().max()) for a, b in zip(now, before, strict=True)) <= 0.02:
                    break
            torch.testing.assert_close(together[row], now[1][0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("hidden_sizes", [(4, 3), (3, 3, 2)])
def test_samples_and_completions_have_the_enumerated_frequencies(states, index, chi_squared, hidden_sizes):
    dbm = make(hidden_sizes, sample_steps=25)
    log_p, _ = marginal(dbm, states)
    samples = dbm.sample(20_000, generator=seeded())
    assert samples.dtype == torch.uint8
    assert chi_squared(torch.bincount(index(samples), minlength=64), log_p.exp()) < 4
    known = torch.tensor([True, False, True, False, False, True])
    x = torch.tensor([1, 0, 0, 0, 0, 1], dtype=torch.uint8).expand(20_000, -1)
    filled = dbm.complete(x, known.expand_as(x), generator=seeded(1))
    agrees = (states(6)[:, known] == x[0, known]).all(1)
    counts = torch.bincount(index(filled), minlength=64)
    assert int(counts[~agrees].sum()) == 0
    assert chi_squared(counts[agrees], log_p[agrees].softmax(0)) < 4
    assert isinstance(dbm, CanComplete)


def test_persistent_chains_sample_the_exact_marginals_of_the_even_layers(states, chi_squared):
    """Chains of a fixed machine from its base: the frequencies of (v, h2) after 25 updates."""
    dbm = make((4, 2), estimator=PCD(k=1, chains=20_000))
    value, layers = energies(dbm, states)
    even = torch.cat([layers[0], layers[2]], 1)
    rows = (even @ 2.0 ** torch.arange(7, -1, -1, dtype=torch.float64)).long()
    p = torch.stack([value[rows == n].logsumexp(0) for n in range(256)]).softmax(0)
    g = seeded()
    dbm.estimator.initialise(dbm, g)
    for _ in range(25):
        dbm.estimator.after_step(dbm, data().double(), g)
    drawn = (dbm.estimator.chain @ 2.0 ** torch.arange(7, -1, -1, dtype=torch.float64)).long()
    assert chi_squared(torch.bincount(drawn, minlength=256), p) < 4


def test_the_gradient_is_data_less_model_moments(states):
    """With the particles replaced by every state, weighted: exact moments of the model; of the data, those of q."""
    dbm = make((4, 3), estimator=PCD(chains=512), weight_decay=0.0)
    value, layers = energies(dbm, states)
    p = value.softmax(0)
    x = data()
    means = dbm.mean_field(x.double()).means
    even = torch.cat([layers[0], layers[2]], 1)
    unique = even.unique(dim=0)
    weights = torch.stack([p[(even == one).all(1)].sum() for one in unique])
    now = dbm.couplings()
    loss = dbm.positive(now, x.double()).mean() - weights @ now.free_energy(unique)
    gradients = torch.autograd.grad(loss, list(dbm.weights))
    for n, gradient in enumerate(gradients):
        model = layers[n].T @ (p[:, None] * layers[n + 1])
        expected = model - means[n].T @ means[n + 1] / len(x)
        torch.testing.assert_close(gradient, expected.detach(), rtol=0, atol=1e-12)


# ---- pre-training ----


@pytest.mark.parametrize(
    ("bottom", "top", "up", "down"), [(True, False, 2, 1), (False, True, 1, 2), (False, False, 2, 2)]
)
def test_inputs_are_doubled_where_a_neighbour_is_missing(states, bottom, top, up, down):
    pair = Pair(3, 2, bottom=bottom, top=top, weight_std=1.0).double()
    with torch.no_grad():
        pair.visible_bias.copy_(torch.tensor([0.3, -0.2, 0.5]))
        pair.hidden_bias.copy_(torch.tensor([-0.4, 0.1]))
        v, h = states(3), states(2)
        now = pair.couplings()
        seen = pair.flatten(v)
        expected = (up * v @ pair.weight + pair.hidden_bias).sigmoid()
        torch.testing.assert_close(pair.up(v), expected)
        torch.testing.assert_close(now.hidden_logits(seen).sigmoid()[:, :2], expected)
        copies = h.repeat(1, 2 if top else 1)
        expected = (down * h @ pair.weight.T + pair.visible_bias).sigmoid()
        torch.testing.assert_close(now.visible_logits(copies).sigmoid()[:, :3], expected)


def test_halves_of_the_rbms_make_the_machine_and_joining_them_changes_nothing():
    dbm = Dbm(SPEC, hidden_sizes=(4, 3, 5), pretraining=0.5, weight_std=0.8, tolerance=1e-12).double()
    g = seeded()
    with torch.no_grad():
        for p in dbm.pairs.parameters():
            p.copy_(0.8 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    x, h = data(10).double(), [torch.randint(2, (10, n), generator=g).double() for n in (4, 3, 5)]
    with torch.no_grad():
        machine, (one, two, three) = dbm.machine(), dbm.pairs
        features = [x, *h]
        half = 0.5 * (2 * x @ one.weight + one.hidden_bias) + 0.5 * (2 * h[1] @ two.weight.T + two.visible_bias)
        torch.testing.assert_close(machine.inputs(1, features), half)
        half = 0.5 * (2 * h[0] @ two.weight + two.hidden_bias) + 0.5 * (2 * h[2] @ three.weight.T + three.visible_bias)
        torch.testing.assert_close(machine.inputs(2, features), half)
        torch.testing.assert_close(machine.inputs(0, features), h[0] @ one.weight.T + one.visible_bias)
        torch.testing.assert_close(machine.inputs(3, features), h[1] @ three.weight + three.hidden_bias)
        before = dbm.elbo_unnormalised(x)
        dbm.examples.copy_(data(1000))
        dbm.enter_stage(dbm.stages()[-1], seeded())
        assert bool(dbm.joint)
        torch.testing.assert_close(dbm.elbo_unnormalised(x), before)
        assert 0.05 < dbm.estimator.chain.mean() < 0.95
        for p in dbm.pairs.parameters():  # the machine has parameters of its own now
            p.zero_()
        torch.testing.assert_close(dbm.elbo_unnormalised(x), before)


def test_upper_rbms_see_draws_of_the_layer_below_and_start_at_its_means():
    dbm = Dbm(SPEC, hidden_sizes=(4, 3, 2), pretraining=0.5).double()
    with torch.no_grad():
        for p in dbm.pairs.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(3), dtype=torch.float64))
    g = seeded()
    dbm.initialise(Batch(data()), g)
    stage = dbm.stages()[1]
    x = data(1).repeat(8000, 1)
    drawn = stage.view(Batch(x), g).x
    mean = dbm.pairs[0].up(x[:1].double())[0]
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.mean(0) - mean).abs().max() < 4 * 0.5 / math.sqrt(8000)
    dbm.enter_stage(stage, g)
    rates = dbm.pairs[0].up(dbm.examples.double()).mean(0)
    assert (dbm.pairs[1].visible_bias.sigmoid() - rates).abs().max() < 4 * 0.5 / math.sqrt(1000)
    assert [one.name for one in dbm.stages()] == ["rbm_1", "rbm_2", "rbm_3", "joint"]


# ---- training ----


def train(dbm, updates, x, rate=0.4):
    g = seeded()
    dbm.initialise(Batch(x), g)
    for stage in dbm.stages():
        dbm.enter_stage(stage, g)
        for _ in range(updates):
            batch = stage.view(Batch(x), g) if stage.view else Batch(x)
            for player in stage.players:
                own = dbm.players()[player]
                loss, _ = dbm.loss(player, batch, g)
                with torch.no_grad():
                    for p, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                        p.grad = gradient
                        p -= rate * gradient
                dbm.after_step(player, batch, g)
    return dbm


@pytest.mark.parametrize(
    ("estimator", "pretraining"), [(CD(k=2), 0.2), (PCD(chains=50), 0.2), (FPCD(chains=50), 0.0), (PT(chains=20), 0.0)]
)
def test_training_with_any_sampler_raises_the_likelihood(states, estimator, pretraining):
    torch.manual_seed(0)
    args = {"weight_std": 0.3, "weight_decay": 0.0, "tolerance": 1e-2, "pretraining": pretraining}
    dbm = Dbm(SPEC, hidden_sizes=(4, 3), estimator=estimator, **args).double()
    x = data(100)
    train(dbm, 60, x)
    log_p, _ = marginal(dbm, states)
    codes = (x.double() @ 2.0 ** torch.arange(5, -1, -1, dtype=torch.float64)).long()
    independent = x.double().mean(0)
    base = (x * independent.log() + (1 - x.double()) * (1 - independent).log()).sum(1).mean()
    assert float(log_p[codes].mean()) > float(base) + 0.25


def test_the_weights_decay_and_the_biases_do_not():
    plain, decayed = make(weight_decay=0.0), make(weight_decay=0.3)
    gradients = []
    for dbm in (plain, decayed):
        loss, _ = dbm.loss("model", Batch(data()), seeded())
        gradients.append(torch.autograd.grad(loss, list(dbm.overlaid().values())))
    for name, p, one, other in zip(plain.overlaid(), plain.overlaid().values(), *gradients, strict=True):
        torch.testing.assert_close(other - one, 0.3 * p.detach() if "weight" in name else torch.zeros_like(p))


def test_settling_takes_the_hidden_means_of_the_data():
    dbm = make()
    x = data(30)
    before = dbm.rates.clone()
    dbm.settle(iter([Batch(x[:20]), Batch(x[20:])]), seeded())
    means = torch.cat(dbm.mean_field(x.double()).means[1:], 1)
    torch.testing.assert_close(dbm.rates[6:], (means.sum(0) + 1) / 32)
    assert torch.equal(dbm.rates[:6], before[:6])


def test_capabilities_have_the_shape_of_images():
    dbm = Dbm(DataSpec((1, 2, 3), "binary"), hidden_sizes=(4, 3), sample_steps=2)
    x = data().view(-1, 1, 2, 3)
    assert dbm.reconstruct(x).shape == x.shape
    assert dbm.encode(x).shape == (40, 3)
    assert dbm.sample(2).shape == (2, 1, 2, 3)
    assert torch.equal(dbm.complete(x, torch.ones_like(x, dtype=torch.bool)), x)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"hidden_sizes": (4,)}, "two or more hidden layers"),
        ({"hidden_sizes": (4, 0)}, "must be at least 1"),
        ({"estimator": NCE()}, "NCE needs p"),
        ({"centring": "average", "estimator": CD()}, "needs the model's means"),
        ({"tolerance": -1.0}, "must be at least 0"),
    ],
)
def test_bad_arguments_end_with_a_sentence(args, sentence):
    with pytest.raises(UserError, match=sentence):
        Dbm(SPEC, **({"hidden_sizes": (4, 3)} | args))


def test_real_data_are_refused():
    with pytest.raises(UserError, match="dbm models binary data"):
        Dbm(DataSpec((6,), "real"))


def test_the_first_pass_upwards_doubles_what_comes_from_below_but_at_the_top():
    dbm = make((5, 4, 3))
    x = data(10).double()
    (w1, w2, w3), (_, b1, b2, b3) = dbm.weights, dbm.biases
    means = dbm.bottom_up(x)
    one = (2 * x @ w1 + b1).sigmoid()
    two = (2 * one @ w2 + b2).sigmoid()
    for found, wanted in zip([means[1], means[2], means[3]], [one, two, (two @ w3 + b3).sigmoid()], strict=True):
        torch.testing.assert_close(found, wanted)
