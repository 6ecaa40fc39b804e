"""Deep belief network against enumeration of all its units."""

import copy
import math

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.dbn import Dbn
from dgmbench.models.boltzmann.estimators import CD, FPCD, NCE, PCD, PT
from dgmbench.models.contract import HasUnnormalisedElbo, StartsFromData

SPEC = DataSpec((6,), "binary")


def make(hidden_sizes, seed=0, scale=1.0, **args):
    dbn = Dbn(SPEC, hidden_sizes=hidden_sizes, **args).double()
    g = Generator().manual_seed(seed)
    with torch.no_grad():
        for p in dbn.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return dbn


def data(seed=0):
    g = Generator().manual_seed(seed)
    which = torch.randint(2, (40, 1), generator=g)
    return torch.where(torch.rand(40, 6, generator=g) < 0.15, 1 - which, which).to(torch.uint8)


def untie(dbn):
    dbn.enter_stage(dbn.stages()[-1], Generator())
    return dbn


def log_likelihood(p, s):
    """Log-probability (conditions, states) of binary states under means (conditions, units)."""
    return torch.where(s[None].bool(), p[:, None], 1 - p[:, None]).log().sum(-1)


def exact(dbn, x, h):
    """Log p(x) and log p(h1 | x) of all states (x, h1) of a two-layer net, from the definition."""
    top, (down, bias) = dbn.top, generative(dbn)
    log_prior = -top.free_energy(h) - top.log_partition()
    joint = log_prior[None] + log_likelihood((h @ down.T + bias).sigmoid(), x).T
    return joint.logsumexp(1), joint - joint.logsumexp(1, keepdim=True)


def generative(dbn):
    if dbn.untied:
        return dbn.generative[0].weight, dbn.generative[0].bias
    return dbn.rbms[0].weight, dbn.rbms[0].visible_bias


def bound(dbn, x, h):
    """E_Q of the bound for every x by enumerating h1, and log Q(h1 | x)."""
    pairs = [x.repeat_interleave(len(h), 0), h.repeat(len(x), 1)]
    log_q = dbn.log_recognition(pairs).view(len(x), -1)
    values = dbn.log_joint_unnormalised(pairs).view(len(x), -1) - log_q - dbn.top.log_partition()
    return (log_q.exp() * values).sum(1), log_q


@pytest.mark.parametrize("untied", [False, True])
def test_on_6_4_3_the_bound_is_below_log_p_by_the_divergence_of_q_from_the_posterior(states, untied):
    dbn = make((4, 3))
    if untied:
        untie(dbn)
        with torch.no_grad():
            for p in (*dbn.generative.parameters(), *dbn.recognition.parameters()):
                p += 0.5 * torch.randn(p.shape, generator=Generator().manual_seed(5), dtype=p.dtype)
    x, h = states(6), states(4)
    with torch.no_grad():
        log_p, log_posterior = exact(dbn, x, h)
        value, log_q = bound(dbn, x, h)
        torch.testing.assert_close(log_p.exp().sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(log_q.exp().sum(1), torch.ones(64, dtype=torch.float64), rtol=0, atol=1e-12)
        kl = (log_q.exp() * (log_q - log_posterior)).sum(1)
        torch.testing.assert_close(log_p - value, kl, rtol=0, atol=1e-10)
        assert (value <= log_p).all()
        assert kl.mean() > 0.05
        g = Generator().manual_seed(0)
        draws = torch.stack([dbn.elbo_unnormalised(x.to(torch.uint8), generator=g) for _ in range(400)])
        z = (draws.mean(0) - dbn.top.log_partition() - value) / (draws.std(0) / math.sqrt(400))
    assert z.abs().max() < 4.5
    assert isinstance(dbn, HasUnnormalisedElbo)
    assert abs(dbn.annealing_path().exact_log_partition() - dbn.top.log_partition()) < 1e-12


@pytest.mark.parametrize("untied", [False, True])
def test_states_of_data_are_drawn_up_to_the_top_machine(states, index, chi_squared, untied):
    """Frequencies of h2 given x against the sum over h1 of Q(h1 | x) Q(h2 | h1), from the layers' definition."""
    dbn = make((3, 2, 4))
    if untied:
        untie(dbn)
        with torch.no_grad():
            for p in dbn.recognition.parameters():
                p.mul_(-0.7)
    path, x, h1, h2 = dbn.annealing_path(), data()[:3], states(3), states(2)
    assert isinstance(path, StartsFromData)
    with torch.no_grad():
        up = [
            (dbn.recognition[n].weight.T, dbn.recognition[n].bias) if untied else tuple(dbn.rbms[n].couplings())[::2]
            for n in range(2)
        ]
        means = [(below @ weight + bias).sigmoid() for below, (weight, bias) in zip((x.double(), h1), up, strict=True)]
        expected = log_likelihood(means[0], h1).exp() @ log_likelihood(means[1], h2).exp()
    drawn = path.state_from(x.repeat_interleave(5000, 0), generator=Generator().manual_seed(2))
    assert drawn.shape == (15_000, 2)
    assert drawn.dtype == torch.float64
    for p, of_one in zip(expected, drawn.split(5000), strict=True):
        assert chi_squared(torch.bincount(index(of_one), minlength=4), p) < 5


def enter_second_stage(dbn):
    dbn.initialise(Batch(data()), Generator().manual_seed(1))
    dbn.enter_stage(dbn.stages()[1], Generator().manual_seed(2))
    return dbn


def test_on_6_4_6_with_the_second_rbm_tied_log_p_equals_the_lower_rbms_and_the_gap_is_zero(states):
    dbn = make((4, 6))
    x, h = states(6), states(4)
    lower = copy.deepcopy(dbn.rbms[0])
    enter_second_stage(dbn)
    with torch.no_grad():
        lower.visible_bias.copy_(dbn.rbms[0].visible_bias)  # set by initialise
        assert torch.equal(dbn.top.weight, lower.weight.T)
        assert torch.equal(dbn.top.visible_bias, lower.hidden_bias)
        assert torch.equal(dbn.top.hidden_bias, lower.visible_bias)
        expected = -lower.free_energy(x) - lower.log_partition()
        log_p, _ = exact(dbn, x, h)
        value, _ = bound(dbn, x, h)
    assert (log_p - expected).abs().max() < 1e-10
    assert (value - log_p).abs().max() < 1e-10


def test_one_exact_gradient_step_on_the_tied_top_rbm_raises_the_data_averaged_bound(states):
    dbn = enter_second_stage(make((4, 6), scale=0.7))
    x, h = data().double(), states(4)
    before, log_q = bound(dbn, x, h)
    objective = (
        (log_q.exp().detach() * (-dbn.top.free_energy(h) - (-dbn.top.free_energy(h)).logsumexp(0))).sum(1).mean()
    )
    parameters = list(dbn.top.parameters())
    gradients = torch.autograd.grad(objective, parameters)
    with torch.no_grad():
        for p, gradient in zip(parameters, gradients, strict=True):
            p += 0.01 * gradient
        after, _ = bound(dbn, x, h)
    squared = sum(float(gradient.square().sum()) for gradient in gradients)
    rise = float((after.mean() - before.mean()).detach())
    assert rise == pytest.approx(0.01 * squared, rel=0.1)
    assert rise > 1e-4


def test_without_matching_sizes_the_upper_rbm_starts_from_the_base_rates_of_its_data():
    dbn = enter_second_stage(make((4, 3), estimator=PCD(chains=50)))
    means = dbn.rbms[0].hidden_probability(dbn.examples.double()).mean(0)
    assert (dbn.top.base_logits.sigmoid() - means).abs().max() < 4 * 0.5 / math.sqrt(1000)
    assert torch.equal(dbn.top.visible_bias, dbn.top.base_logits)
    assert 0 < dbn.top.estimator.chain.mean() < 1


def test_three_layers_of_directed_net_below_an_rbm(states):
    """6-3-2-2: the bound by enumerating (h1, h2) is below log p by a positive gap, equal to the divergence."""
    dbn = make((3, 2, 2))
    x, h1, h2 = states(6), states(3), states(2)
    n1, n2 = len(h1), len(h2)
    triples = [
        x.repeat_interleave(n1 * n2, 0),
        h1.repeat_interleave(n2, 0).repeat(len(x), 1),
        h2.repeat(len(x) * n1, 1),
    ]
    with torch.no_grad():
        log_joint = dbn.log_joint_unnormalised(triples).view(len(x), -1) - dbn.top.log_partition()
        log_q = dbn.log_recognition(triples).view(len(x), -1)
        by_hand = (
            (-dbn.top.free_energy(h2) - dbn.top.log_partition())[None, None]
            + log_likelihood(dbn.rbms[1].visible_probability(h2), h1).T[None]
            + log_likelihood(dbn.rbms[0].visible_probability(h1), x).T[:, :, None]
        )
    torch.testing.assert_close(log_joint, by_hand.flatten(1), rtol=0, atol=1e-12)
    log_p = log_joint.logsumexp(1)
    assert abs(float(log_p.exp().sum()) - 1) < 1e-12
    assert ((log_q.exp() * (log_joint - log_q)).sum(1) <= log_p).all()


def test_untying_leaves_the_model_and_the_bound_unchanged(states):
    dbn = make((4, 3))
    x, g = states(6).to(torch.uint8), Generator()
    before = dbn.elbo_unnormalised(x, generator=g.manual_seed(3))
    untie(dbn)
    after = dbn.elbo_unnormalised(x, generator=g.manual_seed(3))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)
    assert bool(dbn.untied)


def test_samples_have_the_enumerated_frequencies(states, index, chi_squared):
    dbn = make((4, 3), sample_steps=60)
    samples = dbn.sample(30_000, generator=Generator().manual_seed(0))
    assert samples.dtype == torch.uint8
    with torch.no_grad():
        log_p, _ = exact(dbn, states(6), states(4))
    assert chi_squared(torch.bincount(index(samples), minlength=64), log_p.exp()) < 4


@pytest.mark.parametrize("view", ["sample", "mean"])
def test_the_upper_rbm_sees_samples_or_means(view):
    dbn = make((4, 3, 2), view=view)
    second, third = dbn.stages()[1].view, dbn.stages()[2].view
    x = data()[:1].repeat(4000, 1)
    g = Generator().manual_seed(0)
    h1, h2 = second(Batch(x), g).x, third(Batch(x), g).x
    mean1 = dbn.rbms[0].hidden_probability(x[:1].double())
    mean2 = dbn.rbms[1].hidden_probability(mean1)
    if view == "mean":
        assert torch.equal(h1[:1], mean1) or (h1[:1] - mean1).abs().max() < 1e-12
        assert (h2[:1] - mean2).abs().max() < 1e-12
    else:
        assert set(h1.unique().tolist()) == {0.0, 1.0}
        assert set(h2.unique().tolist()) == {0.0, 1.0}
        assert (h1.mean(0) - mean1[0]).abs().max() < 4 * 0.5 / math.sqrt(4000)
    assert [stage.name for stage in dbn.stages()] == ["rbm_1", "rbm_2", "rbm_3", "up_down"]


def test_wake_and_sleep_follow_the_delta_rules():
    dbn = untie(make((4, 3)))
    stage, g = dbn.stages()[-1], Generator()
    batch = stage.view(Batch(data()), g.manual_seed(0))
    x, h = batch.x.split([6, 4], dim=1)
    assert torch.equal(x, data().double())
    down, up = dbn.generative[0], dbn.recognition[0]
    loss, _ = dbn.loss("wake", batch, g)
    wake = torch.autograd.grad(loss, [down.weight, down.bias])
    error = x - (h @ down.weight.T + down.bias).sigmoid()
    torch.testing.assert_close(-wake[0], error.T @ h / 40, rtol=0, atol=1e-12)
    torch.testing.assert_close(-wake[1], error.mean(0), rtol=0, atol=1e-12)
    loss, _ = dbn.loss("sleep", batch, g.manual_seed(1))
    sleep = torch.autograd.grad(loss, [up.weight, up.bias])
    g.manual_seed(1)
    with torch.no_grad():
        dream_h = dbn.top.gibbs(h, 3, generator=g)
        dream_x = (torch.rand(40, 6, dtype=torch.float64, generator=g) < down(dream_h).sigmoid()).double()
        error = dream_h - up(dream_x).sigmoid()
    torch.testing.assert_close(-sleep[0], error.T @ dream_x / 40, rtol=0, atol=1e-12)
    torch.testing.assert_close(-sleep[1], error.mean(0), rtol=0, atol=1e-12)
    top, _ = dbn.loss("rbm_2", batch, g.manual_seed(2))
    direct, _ = dbn.top.loss("model", Batch(h), g.manual_seed(2))
    assert torch.equal(top, direct)


def train(dbn, updates):
    players, step = dbn.players(), 0
    g = Generator().manual_seed(0)
    optimisers = {name: torch.optim.SGD(parameters, lr=0.5) for name, parameters in players.items()}
    dbn.initialise(Batch(data()), g)
    for stage in dbn.stages():
        dbn.enter_stage(stage, g)
        for _ in range(updates):
            batch = stage.view(Batch(data()), g) if stage.view else Batch(data())
            for player in dbn.turn(step, stage):
                before = {name: p.detach().clone() for name, p in dbn.named_parameters()}
                own = {id(p) for p in players[player]}
                dbn.zero_grad()
                dbn.loss(player, batch, g)[0].backward()
                optimisers[player].step()
                dbn.after_step(player, batch, g)
                for name, p in dbn.named_parameters():
                    assert id(p) in own or torch.equal(p, before[name]), (player, name)
            step += 1
    return dbn


@pytest.mark.parametrize("estimator", [CD(k=2), [PCD(chains=20), FPCD(chains=20)], [NCE(), PT(chains=20)]])
def test_training_with_any_estimators_raises_the_bound(states, estimator):
    dbn = make((4, 6), scale=0.3, estimator=estimator)
    untrained = copy.deepcopy(dbn)
    untrained.initialise(Batch(data()), Generator().manual_seed(0))
    train(dbn, 100)
    x, h = data().double(), states(4)
    with torch.no_grad():
        assert float(bound(dbn, x, h)[0].mean()) > float(bound(untrained, x, h)[0].mean()) + 0.3


def test_capabilities_have_the_shape_of_images():
    dbn = Dbn(DataSpec((1, 2, 3), "binary"), hidden_sizes=(4, 3), fine_tuning=0.0)
    x = data().view(-1, 1, 2, 3)
    assert dbn.reconstruct(x).shape == x.shape
    assert dbn.encode(x).shape == (40, 3)
    assert dbn.sample(2).shape == (2, 1, 2, 3)
    assert [stage.name for stage in dbn.stages()] == ["rbm_1", "rbm_2"]
    assert set(dbn.players()) == {"rbm_1", "rbm_2"}


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"hidden_sizes": (4,)}, "two or more hidden layers"),
        ({"hidden_sizes": (4, 3), "view": "mean", "estimator": NCE()}, "0/1 data"),
        ({"hidden_sizes": (4, 3), "estimator": [CD()]}, "2 RBMs, but 1"),
        ({"hidden_sizes": (4, 3), "fine_tuning": -1.0}, "must be at least 0"),
    ],
)
def test_bad_arguments_end_with_a_sentence(args, sentence):
    with pytest.raises(UserError, match=sentence):
        Dbn(SPEC, **args)
