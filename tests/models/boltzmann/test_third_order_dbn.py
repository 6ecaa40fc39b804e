"""Third-order machine against enumeration of all its units, and the network under it."""

import itertools
import math

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.third_order import ThirdOrder
from dgmbench.models.boltzmann.third_order_dbn import ThirdOrderDbn

SPEC = DataSpec((6,), "binary", num_classes=3)


def seeded(seed=0):
    return Generator().manual_seed(seed)


def filled(module, scale=0.9):
    g = seeded()
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return module


def log_joint(machine, states):
    """-E of all states (v, h, l) of a 4-3-3 machine, from the definition: (16, 8, 3)."""
    v, h = states(4), states(3)
    each = [v @ machine.weight[n] @ h.T + machine.label_bias[n] for n in range(3)]
    return torch.stack(each, -1) + (v @ machine.visible_bias)[:, None, None] + (h @ machine.hidden_bias)[None, :, None]


def test_the_labels_posteriors_are_those_of_enumeration(states):
    machine = filled(ThirdOrder(4, 3, 3))
    with torch.no_grad():
        joint = log_joint(machine, states)
        torch.testing.assert_close(machine.label_log_prob(states(4)), joint.logsumexp(1).log_softmax(1))
        torch.testing.assert_close(machine.free_energies(states(4)), -joint.logsumexp(1))
        torch.testing.assert_close(machine.label_given_hidden(states(3)), joint.logsumexp(0).log_softmax(1))
        y = torch.tensor([0, 2, -1, 1] * 4)
        free = machine.free_energy(states(4), y)
        for row, label in enumerate(y.tolist()):
            own = joint[row].logsumexp((0, 1)) if label < 0 else joint[row, :, label].logsumexp(0)
            torch.testing.assert_close(free[row], -own)


@pytest.mark.parametrize("keep", [False, True])
def test_a_step_of_the_chain_leaves_the_machine_as_it_is(keep, states, chi_squared, index):
    """From exact draws of (v, l), or of v given l, one step; a faulty half-step shows in the frequencies."""
    machine = filled(ThirdOrder(4, 3, 3))
    n = 40_000
    with torch.no_grad():
        p = log_joint(machine, states).logsumexp(1)
        p = p.log_softmax(0).exp() / 3 if keep else p.flatten().softmax(0).view(16, 3)
        drawn = torch.multinomial(p.flatten(), n, replacement=True, generator=seeded(1))
        v, y = machine.gibbs(states(4)[drawn // 3], drawn % 3, 1, seeded(2), keep=keep)
    assert (index(v) != drawn // 3).double().mean() > 0.3
    assert chi_squared(torch.bincount(index(v) * 3 + y, minlength=48), p.flatten()) < 5
    assert torch.equal(y, drawn % 3) == keep


def make(**args):
    return filled(ThirdOrderDbn(SPEC, **({"hidden_sizes": (5, 4), "top": 3} | args)))


def data(n=30):
    g = seeded(1)
    y = torch.randint(3, (n,), generator=g)
    y[::4] = -1
    return torch.randint(2, (n, 6), generator=g).to(torch.uint8), y


def test_the_gradient_is_a_hybrid(states):
    """The discriminative part against enumeration, the generative one against its two phases."""
    model, (x, y) = make(discriminative=0.0), data()
    own = list(model.top.parameters())
    h = model.encode(x).detach()

    def gradient(loss):
        return torch.autograd.grad(loss, own, retain_graph=True)

    def losses(discriminative):
        model.discriminative = discriminative
        return gradient(model.loss("top", Batch(x, y), seeded(3))[0])

    generative, hybrid = losses(0.0), losses(2.0)
    s = states(3)
    joint = torch.stack([h @ w @ s.T + c for w, c in zip(model.top.weight, model.top.label_bias, strict=True)], -1)
    joint = joint + (s @ model.top.hidden_bias)[None, :, None] + (h @ model.top.visible_bias)[:, None, None]
    log_p = joint.logsumexp(1).log_softmax(1)
    known = y >= 0
    expected = gradient(-2.0 * log_p[known].gather(1, y[known][:, None]).mean())
    for one, other, own_part in zip(hybrid, generative, expected, strict=True):
        torch.testing.assert_close(one - other, own_part)
    with torch.no_grad():
        g = seeded(3)
        guess = model.top.draw_labels(model.top.label_log_prob(h), g)
        negative = model.top.gibbs(h, torch.where(known, y, guess), 1, g)
    of_data = torch.where(known, joint.logsumexp(1).gather(1, y.clamp_min(0)[:, None])[:, 0], joint.logsumexp((1, 2)))
    expected = gradient(-of_data.mean() - model.top.free_energy(*negative).mean())
    for one, other in zip(generative, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_it_learns_a_label_that_no_single_bit_tells():
    """The label is whether two features agree, so it must multiply their interactions."""
    torch.manual_seed(0)
    spec = DataSpec((2,), "binary", num_classes=2)
    model, g = ThirdOrderDbn(spec, hidden_sizes=(2,), top=8, discriminative=10.0), seeded()
    x = torch.randint(2, (200, 2), generator=g).to(torch.uint8)
    y = (x[:, 0] != x[:, 1]).long()
    model.initialise(Batch(x, y), g)
    with torch.no_grad():  # features that are the bits themselves
        model.rbm(0).weight.copy_(8 * torch.eye(2))
        model.rbm(0).hidden_bias.fill_(-4.0)
        model.top.weight.normal_(generator=g)
    model.enter_stage(model.stages()[-1], g)
    optimizer = torch.optim.Adam(model.top.parameters(), lr=0.1)
    for _ in range(200):
        loss, _ = model.loss("top", Batch(x, y), g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    corners = torch.tensor(list(itertools.product((0, 1), repeat=2)), dtype=torch.uint8)
    assert model.classify(corners).argmax(1).tolist() == [0, 1, 1, 0]


def test_pictures_of_a_label_come_from_its_own_weights():
    """A top that is certain of a feature for each label, under a layer that copies features to bits."""
    model = make(hidden_sizes=(6,), top=2)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.rbm(0).weight.copy_(20 * torch.eye(6))
        model.rbm(0).visible_bias.fill_(-10.0)
        model.top.visible_bias.fill_(-10.0)
        model.top.hidden_bias.fill_(10.0)
        for label in range(3):
            model.top.weight[label, 2 * label : 2 * label + 2] = 10.0
    x = model.sample(9, torch.arange(9) % 3, generator=seeded(1))
    expected = torch.eye(3).repeat_interleave(2, 1)[torch.arange(9) % 3]
    assert torch.equal(x, expected.to(torch.uint8))


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((4,), "real", num_classes=2), {}, "models binary data"),
        (DataSpec((4,), "binary"), {}, "needs data with labels"),
        (SPEC, {"hidden_sizes": ()}, "needs a layer of features"),
        (SPEC, {"discriminative": -1.0}, "must be at least 0"),
        (SPEC, {"discriminative": math.nan}, "must be at least 0"),
    ],
)
def test_what_it_cannot_be_made_of(spec, args, sentence):
    with pytest.raises(UserError, match=sentence):
        ThirdOrderDbn(spec, **args)
