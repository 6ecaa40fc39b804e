"""Helmholtz machine against enumeration of all its hidden units."""

import math

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.helmholtz import Helmholtz
from dgmbench.models.contract import HasElbo, HasLogWeights

SPEC = DataSpec((5,), "binary")


def make(hidden_sizes=(3, 2), seed=0, **args):
    model = Helmholtz(SPEC, hidden_sizes=hidden_sizes, **args).double()
    g = Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def data(seed=0, n=40):
    g = Generator().manual_seed(seed)
    which = torch.randint(2, (n, 1), generator=g)
    return torch.where(torch.rand(n, 5, generator=g) < 0.15, 1 - which, which).to(torch.uint8)


def enumerated(model, x, h1, h2):
    """Log p(x, h1, h2) and log q(h1, h2 | x), (x, h), from the definition of both nets."""

    def log_bits(p, s):
        return torch.where(s[None].bool(), p[:, None], 1 - p[:, None]).log().sum(-1)

    down, up = model.generative, model.recognition
    with torch.no_grad():
        log_prior = log_bits(model.prior_logits.sigmoid()[None], h2)[0]
        log_p = (
            log_prior[None, None]
            + log_bits(down[1](h2).sigmoid(), h1).T[None]
            + log_bits(down[0](h1).sigmoid(), x).T[:, :, None]
        )
        log_q = log_bits(up[0](x).sigmoid(), h1)[:, :, None] + log_bits(up[1](h1).sigmoid(), h2)[None]
    return log_p.flatten(1), log_q.flatten(1)


def test_p_and_q_are_normalised_and_equal_the_methods(states):
    model, x, h1, h2 = make(), states(5), states(3), states(2)
    log_p, log_q = enumerated(model, x, h1, h2)
    assert abs(float(log_p.exp().sum()) - 1) < 1e-12
    assert (log_q.exp().sum(1) - 1).abs().max() < 1e-12
    triples = [x.repeat_interleave(32, 0), h1.repeat_interleave(4, 0).repeat(32, 1), h2.repeat(32 * 8, 1)]
    torch.testing.assert_close(model.log_joint(triples).view(32, 32), log_p, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.log_recognition(triples).view(32, 32), log_q, rtol=0, atol=1e-12)


def test_wake_update_is_the_delta_rule():
    model, g = make(), Generator()
    loss, logs = model.loss("wake", Batch(data()), g.manual_seed(0))
    own = [model.prior_logits, *model.generative.parameters()]
    gradients = dict(zip(["prior", "w1", "b1", "w2", "b2"], torch.autograd.grad(loss, own), strict=True))
    with torch.no_grad():
        x, h1, h2 = model.upwards(data().double(), g.manual_seed(0))
        error1, error2 = x - model.generative[0](h1).sigmoid(), h1 - model.generative[1](h2).sigmoid()
        rules = {
            "w1": error1.T @ h1 / 40,
            "b1": error1.mean(0),
            "w2": error2.T @ h2 / 40,
            "b2": error2.mean(0),
            "prior": (h2 - model.prior_logits.sigmoid()).mean(0),
        }
    for name, rule in rules.items():
        torch.testing.assert_close(-gradients[name], rule, rtol=0, atol=1e-12)
    weights = model.log_weights(data(), 1, generator=g.manual_seed(0))
    torch.testing.assert_close(logs["bound"], weights.mean().detach(), rtol=0, atol=1e-12)


def test_sleep_update_is_the_delta_rule():
    model, g = make(), Generator()
    loss, _ = model.loss("sleep", Batch(data()), g.manual_seed(0))
    gradients = torch.autograd.grad(loss, list(model.recognition.parameters()))
    with torch.no_grad():
        x, h1, h2 = model.downwards(40, g.manual_seed(0))
        error1, error2 = h1 - model.recognition[0](x).sigmoid(), h2 - model.recognition[1](h1).sigmoid()
        rules = [error1.T @ x / 40, error1.mean(0), error2.T @ h1 / 40, error2.mean(0)]
    for gradient, rule in zip(gradients, rules, strict=True):
        torch.testing.assert_close(-gradient, rule, rtol=0, atol=1e-12)


def test_sleep_dreams_come_from_p_and_wake_states_from_q(states, index, chi_squared):
    model, x, h1, h2 = make(), states(5), states(3), states(2)
    log_p, log_q = enumerated(model, x, h1, h2)
    dream = model.downwards(60_000, Generator().manual_seed(0))
    counts = torch.bincount(index(torch.cat(dream, dim=1)), minlength=1024)
    assert chi_squared(counts, log_p.exp().flatten()) < 4
    wake = model.upwards(x[11:12].repeat(40_000, 1), Generator().manual_seed(1))
    counts = torch.bincount(index(torch.cat(wake[1:], dim=1)), minlength=32)
    assert chi_squared(counts, log_q[11].exp()) < 4
    samples = model.sample(60_000, generator=Generator().manual_seed(0))
    counts = torch.bincount(index(samples), minlength=32)
    assert chi_squared(counts, log_p.exp().sum(1)) < 4


def test_elbo_is_the_enumerated_bound_and_below_the_exact_log_p(states):
    model, x = make(), states(5)
    log_p, log_q = enumerated(model, x, states(3), states(2))
    exact = log_p.logsumexp(1)
    bound = (log_q.exp() * (log_p - log_q)).sum(1)
    kl = (log_q.exp() * (log_q - (log_p - exact[:, None]))).sum(1)
    torch.testing.assert_close(exact - bound, kl, rtol=0, atol=1e-12)
    assert (bound < exact).all()
    g = Generator().manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([model.elbo(x.to(torch.uint8), generator=g) for _ in range(500)])
    z = (draws.mean(0) - bound) / (draws.std(0) / math.sqrt(500))
    assert z.abs().max() < 4
    assert isinstance(model, HasElbo)
    assert isinstance(model, HasLogWeights)


def test_importance_weighted_bounds_rise_to_the_exact_log_p(states):
    model, x = make(), states(5)
    log_p, _ = enumerated(model, x, states(3), states(2))
    exact = log_p.logsumexp(1)
    with torch.no_grad():
        log_w = model.log_weights(x.to(torch.uint8), 20_000, generator=Generator().manual_seed(0))
    ratio = (log_w - exact).exp()
    z = (ratio.mean(0) - 1) / (ratio.std(0) / math.sqrt(20_000))
    assert z.abs().max() < 4.5
    bounds = [(log_w.view(k, -1, 32).logsumexp(0) - math.log(k)).mean() for k in (1, 5, 50, 5000)]
    assert bounds == sorted(bounds)
    assert bounds[0] < exact.mean() - 0.3
    assert abs(bounds[-1] - exact.mean()) < 0.02


def test_reweighted_gradients_tend_to_the_exact_ones(states):
    """With many draws: wake to the gradient of log p(x), the wake phase of q to that of KL(p(h | x) || q)."""
    model, x = make(objective="reweighted", k=60_000), data(n=4)
    v, h1, h2 = x.double(), states(3), states(2)
    triples = [v.repeat_interleave(32, 0), h1.repeat_interleave(4, 0).repeat(4, 1), h2.repeat(4 * 8, 1)]
    log_joint = model.log_joint(triples).view(4, -1)
    own = [model.prior_logits, *model.generative.parameters()]
    exact = torch.autograd.grad(-log_joint.logsumexp(1).mean(), own)
    loss, logs = model.loss("wake", Batch(x), Generator().manual_seed(0))
    assert abs(logs["bound"] - log_joint.logsumexp(1).mean()) < 0.02
    estimate = torch.autograd.grad(loss, own)
    scale = max(float(g.abs().max()) for g in exact)
    for a, b in zip(exact, estimate, strict=True):
        assert (a - b).abs().max() < 0.06 * scale
    posterior = torch.softmax(log_joint.detach(), 1)
    q = list(model.recognition.parameters())
    wake_q = torch.autograd.grad(-(posterior * model.log_recognition(triples).view(4, -1)).sum(1).mean(), q)
    dream = model.downwards(4, Generator().manual_seed(0))
    sleep_q = torch.autograd.grad(-model.log_recognition(dream).mean(), q)
    both = torch.autograd.grad(model.loss("sleep", Batch(x), Generator().manual_seed(0))[0], q)
    scale = max(float(g.abs().max()) for g in wake_q)
    for a, b, c in zip(wake_q, sleep_q, both, strict=True):
        assert ((a + b) / 2 - c).abs().max() < 0.06 * scale


@pytest.mark.parametrize("args", [{}, {"objective": "reweighted", "k": 5}])
def test_training_raises_the_exact_log_likelihood(states, args):
    torch.manual_seed(0)
    model, g = Helmholtz(SPEC, hidden_sizes=(3, 2), **args), Generator().manual_seed(0)
    model.initialise(Batch(data(n=200)), g)
    optimisers = {name: torch.optim.Adam(p, lr=0.02) for name, p in model.players().items()}

    def log_likelihood():
        log_p, _ = enumerated(model.double(), data(n=200).double(), states(3), states(2))
        model.float()
        return float(log_p.logsumexp(1).mean())

    start = log_likelihood()
    for _ in range(300):
        for player, optimiser in optimisers.items():
            model.zero_grad()
            model.loss(player, Batch(data(n=200)), g)[0].backward()
            optimiser.step()
    assert start < -5 * math.log(2) + 0.1  # no better than independent bits
    assert log_likelihood() > -5 * math.log(2) + 0.5


def test_capabilities_have_the_shape_of_images():
    model = Helmholtz(DataSpec((1, 2, 3), "binary"), hidden_sizes=(4, 3))
    x = torch.ones(7, 1, 2, 3, dtype=torch.uint8)
    model.initialise(Batch(x), Generator())
    assert (model.generative[0].bias.sigmoid() - 8 / 9).abs().max() < 1e-6
    assert model.reconstruct(x).shape == x.shape
    assert model.encode(x).shape == (7, 3)
    assert model.sample(2).shape == (2, 1, 2, 3)
    assert model.log_weights(x, 3).shape == (3, 7)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"hidden_sizes": ()}, "at least one hidden layer"),
        ({"k": 5}, "takes one draw"),
    ],
)
def test_bad_arguments_end_with_a_sentence(args, sentence):
    with pytest.raises(UserError, match=sentence):
        Helmholtz(SPEC, **args)
