"""Parallel multiscale: enumeration, independence inside of groups, and the number of network calls."""

import pytest
import torch

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.parallel_nade import GroupNet, ParallelNade, splits
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index

SMALL = {"features": 12, "blocks": 2, "base_features": 8, "base_blocks": 1}


def parallel(spec, *, gain=1.5, **kwargs):
    torch.manual_seed(0)
    model = ParallelNade(spec, **{**SMALL, **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    return model


@torch.no_grad()
def test_sums_to_one_over_all_4x4_images_and_samples_follow():
    model = parallel(DataSpec((1, 4, 4), "binary"), base=2, gain=2.5, features=6, blocks=1, base_features=4)
    assert model.base.spec.shape == (1, 2, 2)
    states = all_states(16, 2, torch.uint8).reshape(-1, 1, 4, 4)
    log_prob = torch.cat([model.log_prob(part) for part in states.split(8192)])
    assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-9)
    assert log_prob.std() > 0.5, "the model should be far from uniform for this test to mean something"
    drawn = model.sample(30_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(state_index(drawn.flatten(1), 2), minlength=len(states))
    assert chi_squared(counts, log_prob.exp()) > 1e-4


@pytest.mark.parametrize(
    ("shape", "base"), [((1, 4, 4), 2), ((1, 8, 8), 2), ((3, 4, 4), 2), ((1, 5, 7), 2), ((2, 3, 6), 1)]
)
@torch.no_grad()
def test_groups(shape, base):
    """Within a group no pixel sees another; all earlier groups move every group."""
    spec = DataSpec(shape, "discrete", 3)
    model = parallel(spec, base=base)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (4, *shape), generator=g, dtype=torch.uint8)
    group = torch.full(shape, -1)
    index = torch.arange(spec.dim).reshape(1, *shape)
    for number, split in enumerate(model.splits):
        where = split.missing(index).flatten()
        assert (group.view(-1)[where] == -1).all(), "every pixel is in one group"
        group.view(-1)[where] = number
    group, pixel = group.flatten(), torch.arange(spec.dim) % (shape[1] * shape[2])
    assert int((group == -1).sum()) == model.base.spec.dim
    before = model.conditional_logits(x)
    moves = torch.zeros(spec.dim, spec.dim, dtype=torch.bool)
    for j in range(spec.dim):
        other = x.clone()
        other.view(4, -1)[:, j] = (other.view(4, -1)[:, j] + 1) % 3
        moves[:, j] = (model.conditional_logits(other) - before).abs().amax((0, 2)) > 1e-12
    same = (group[:, None] == group) & (group[:, None] >= 0) & (pixel[:, None] != pixel)
    assert not (moves & same).any()
    assert not (moves & (group[:, None] < group)).any()
    channel = torch.arange(spec.dim) // (shape[1] * shape[2])
    one_pixel = (group[:, None] == group) & (group[:, None] >= 0) & (pixel[:, None] == pixel)
    before_it = channel < channel[:, None]
    assert not (moves & one_pixel & ~before_it).any(), "a channel sees neither itself nor those after it"
    assert moves[one_pixel & before_it].all(), "and it sees all those before it"
    for later in range(len(model.splits)):
        for earlier in range(-1, later):
            assert moves[group == later][:, group == earlier].any(0).all(), "all of an earlier group matters"


@torch.no_grad()
def test_the_net_of_a_group_is_residual():
    """h + conv(relu(conv(relu(h)))), block by block, then a 1 x 1 layer."""
    torch.manual_seed(0)
    net = GroupNet(1, features=4, blocks=2, parameters=1).double()
    known = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    h = net.first(known)
    for one, two in net.blocks:
        h = h + two(one(h.relu()).relu())
    assert torch.allclose(net.context(known), net.hidden(h.relu()))
    for _, two in net.blocks:
        two.weight.zero_()
        two.bias.zero_()
    assert torch.allclose(net.context(known), net.hidden(net.first(known).relu())), "blocks that add nothing"


def calls_to_sample(side, base=4):
    model = ParallelNade(DataSpec((1, side, side), "discrete", 17), base=base, **SMALL)
    calls = []
    for net in model.modules():
        if isinstance(net, GroupNet):
            net.first.register_forward_hook(lambda *_: calls.append(1))
    base_pixels = []
    inner = model.base.cache
    model.base.cache = lambda n, y: base_pixels.append(model.base.spec.dim) or inner(n, y)
    assert model.sample(2).shape == (2, 1, side, side)
    return len(calls), sum(base_pixels)


def test_network_calls_grow_by_a_constant_for_each_doubling():
    calls = [calls_to_sample(side) for side in (8, 16, 32)]
    assert calls == [(2, 16), (4, 16), (6, 16)]
    assert calls_to_sample(28, base=7) == (4, 49)


@pytest.mark.parametrize(("size", "base", "expected"), [((8, 8), 4, (4, 4)), ((28, 28), 7, (7, 7)),
    ((28, 28), 4, (4, 4)), ((3, 9), 4, (3, 3)), ((5, 5), 8, (5, 5)), ((1, 2), 1, (1, 1))])  # fmt: skip
def test_sizes(size, base, expected):
    found, small = splits(*size, base)
    assert small == expected
    model = ParallelNade(DataSpec((1, *size), "binary"), base=base, **SMALL)
    x = torch.zeros(2, 1, *size, dtype=torch.uint8)
    assert model.log_prob(x).shape == (2,)
    assert len(model.nets) == len(found)


@torch.no_grad()
def test_super_resolution_is_exact():
    """Given the 2 x 2 image that every second pixel makes, the other twelve follow p(x | the four)."""
    model, n = parallel(DataSpec((1, 3, 3), "binary"), base=2, gain=2.5), 8000
    known = torch.zeros(1, 3, 3, dtype=torch.bool)
    known[:, ::2, ::2] = True
    x = torch.tensor([[[1, 0, 0], [0, 0, 0], [0, 0, 1]]], dtype=torch.uint8)
    states = all_states(9, 2, torch.uint8).reshape(-1, 1, 3, 3)
    p = torch.where((states == x)[:, known].all(1), model.log_prob(states).exp(), 0)
    done = model.complete(x.expand(n, 1, 3, 3), known.expand(n, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(state_index(done.flatten(1), 2), minlength=len(states))
    assert chi_squared(counts, p / p.sum()) > 1e-4
