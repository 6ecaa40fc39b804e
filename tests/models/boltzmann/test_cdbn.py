"""Convolutional layers with probabilistic max-pooling, against enumeration of blocks and a plain convolution."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.cdbn import Cdbn
from dgmbench.models.boltzmann.conv_rbm import ConvRbm
from dgmbench.nn.mean_units import Pooled

SPEC = DataSpec((1, 3, 5), "binary")


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(scale=0.8, **args):
    """Filters of 2 x 2 over 3 x 5: two maps of 2 x 4, two blocks each."""
    rbm = ConvRbm(SPEC, **({"filters": 2, "width": 2, "pool": 2} | args)).double()
    g = seeded()
    with torch.no_grad():
        for p in rbm.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return rbm


def maps_of_blocks():
    """All states of the hidden maps (2, 2, 4) with at most one unit of a block on, 5^4, and their pooled bits."""
    choices = [None, (0, 0), (0, 1), (1, 0), (1, 1)]
    states, bits = [], []
    for chosen in itertools.product(choices, repeat=4):
        h = torch.zeros(2, 2, 4, dtype=torch.float64)
        for number, unit in enumerate(chosen):
            if unit is not None:
                group, block = divmod(number, 2)
                h[group, unit[0], 2 * block + unit[1]] = 1
        states.append(h)
        bits.append(torch.tensor([float(unit is not None) for unit in chosen], dtype=torch.float64))
    return torch.stack(states), torch.stack(bits)


def minus_energy(rbm, v, maps):
    """-E of images (n, 15) with maps (m, 2, 2, 4), from a convolution: (n, m)."""
    inputs = F.conv2d(v.view(-1, 1, 3, 5), rbm.weight, rbm.hidden_bias)
    return torch.einsum("nkij,mkij->nm", inputs, maps) + rbm.visible_bias * v.sum(1)[:, None]


def in_blocks(maps):
    """Maps (m, 2, 2, 4) in the machine's order, the units of a block side by side."""
    return maps.view(-1, 2, 2, 2, 2).permute(0, 1, 3, 2, 4).flatten(1)


def test_the_posterior_of_blocks_is_that_of_enumeration():
    rbm = make()
    v = torch.randint(2, (6, 15), generator=seeded(1)).double()
    maps, bits = maps_of_blocks()
    with torch.no_grad():
        joint = minus_energy(rbm, v, maps)
        p = joint.softmax(1)
        now = rbm.couplings()
        torch.testing.assert_close(-now.energy(v, in_blocks(maps[:6])), joint[:, :6].diagonal())
        torch.testing.assert_close(rbm.free_energy(v), -joint.logsumexp(1))
        torch.testing.assert_close(now.hidden_units.mean(now.hidden_logits(v)), p @ in_blocks(maps))
        torch.testing.assert_close(rbm.pooled_logits(v).sigmoid(), p @ bits)
        entropy = -(p * p.log()).sum(1)
        torch.testing.assert_close(rbm.units.entropy(now.hidden_logits(v)), entropy)
        torch.testing.assert_close(rbm.units.entropy_of_mean(p @ in_blocks(maps)), entropy)


def test_draws_have_at_most_one_unit_of_a_block_on_as_often_as_they_should(chi_squared):
    units, eta = Pooled(3), torch.tensor([0.5, -1.0, 1.5], dtype=torch.float64)
    p = torch.cat([eta.exp(), torch.ones(1, dtype=torch.float64)]) / (1 + eta.exp().sum())
    drawn = units.sample(eta.expand(20_000, -1), seeded(1))
    assert drawn.sum(1).max() == 1
    counts = torch.cat([drawn.sum(0), (1 - drawn.sum(1)).sum()[None]])
    assert chi_squared(counts, p) < 5
    torch.testing.assert_close(units.at_mean(units.mean(eta)), eta)
    within = units.sample_within(eta.repeat(2).expand(20_000, -1), torch.tensor([1.0, 0.0]).double(), seeded(2))
    assert within[:, 3:].abs().max() == 0
    assert chi_squared(within[:, :3].sum(0), eta.softmax(0)) < 5
    smooth = units.smoothed(torch.tensor([1.0, 0.0, 0.0]), 5)
    torch.testing.assert_close(smooth, torch.tensor([6 / 9, 1 / 9, 1 / 9]))


def test_pictures_given_pooled_bits_are_those_of_the_machine(chi_squared):
    """Of a 2 x 2 picture under one block: exact by enumeration of both sides."""
    rbm = ConvRbm(DataSpec((1, 3, 3), "binary"), filters=1, width=2, pool=2).double()
    with torch.no_grad():
        rbm.weight.copy_(2 * torch.randn(rbm.weight.shape, generator=seeded(2), dtype=torch.float64))
        rbm.visible_bias.fill_(-0.5)
        states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)), dtype=torch.float64)
        inputs = F.conv2d(states.view(-1, 1, 3, 3), rbm.weight, rbm.hidden_bias).flatten(1)
        p = (inputs.logsumexp(1) - 0.5 * states.sum(1)).softmax(0)
        drawn = rbm.visible_given_pooled(torch.ones(4000, 1, dtype=torch.float64), 40, generator=seeded(3))
    code = (drawn @ 2.0 ** torch.arange(8, -1, -1, dtype=torch.float64)).long()
    counts = torch.bincount(code, minlength=512).double()
    rare = p * 4000 < 5
    counts, p = (torch.cat([each[~rare], each[rare].sum()[None]]) for each in (counts, p))
    assert chi_squared(counts, p) < 5


def test_sparsity_moves_hidden_biases_alone_towards_its_target():
    rbm = make(sparsity=0.1, sparsity_rate=3.0)
    plain = make()
    v = torch.randint(2, (20, 15), generator=seeded(1)).double()
    losses = [each.loss("model", Batch(v), seeded(4))[0] for each in (rbm, plain)]
    ours, without = (
        torch.autograd.grad(loss, list(each.parameters())) for loss, each in zip(losses, (rbm, plain), strict=True)
    )
    inputs = F.conv2d(v.view(-1, 1, 3, 5), rbm.weight, rbm.hidden_bias).exp()
    blocks = inputs.view(-1, 2, 2, 2, 2).sum((2, 4), keepdim=True)
    mean = (inputs.view(-1, 2, 2, 2, 2) / (1 + blocks)).mean((0, 2, 3, 4))
    for name, with_it, alone in zip(("weight", "visible_bias", "hidden_bias"), ours, without, strict=True):
        expected = 3.0 * (mean - 0.1) if name == "hidden_bias" else torch.zeros_like(alone)
        torch.testing.assert_close(with_it - alone, expected.detach())


def test_layers_learn_from_the_pooled_bits_below():
    model = Cdbn(DataSpec((1, 5, 5), "binary"), filters=(2, 3), widths=(2, 1), pool=2).double()
    x = torch.randint(2, (7, 1, 5, 5), generator=seeded(1)).to(torch.uint8)
    lower, upper = model.rbm(0), model.rbm(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(3), dtype=torch.float64))
        h = F.conv2d(x.double(), lower.weight, lower.hidden_bias).exp()
        on = F.avg_pool2d(h, 2, divisor_override=1)
        seen = model.stages()[1].view(Batch(x), seeded()).x
        torch.testing.assert_close(seen, (on / (1 + on)).flatten(1))
        h = F.conv2d(seen.view(7, 2, 2, 2), upper.weight, upper.hidden_bias).exp()
        on = F.avg_pool2d(h, 2, divisor_override=1)
        torch.testing.assert_close(model.encode(x), (on / (1 + on)).flatten(1))


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((9,), "binary"), {}, "models binary pictures"),
        (DataSpec((1, 9, 9), "real"), {}, "models binary pictures"),
        (DataSpec((1, 9, 9), "binary"), {"filters": (2,)}, "for each of two or more layers"),
        (DataSpec((1, 9, 9), "binary"), {"widths": (3, 2)}, "layer 1, .* do not fit into blocks of 2 x 2"),
        (DataSpec((1, 9, 9), "binary"), {"widths": (2, 5)}, "layer 2, .* do not fit into blocks of 2 x 2"),
    ],
)
def test_what_it_cannot_be_made_of(spec, args, sentence):
    with pytest.raises(UserError, match=sentence):
        Cdbn(spec, **({"filters": (2, 2), "widths": (2, 2)} | args))
