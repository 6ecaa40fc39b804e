"""Convolutional deep Boltzmann machine against enumeration of a small one, written with plain convolutions."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.cdbm import Cdbm
from dgmbench.models.boltzmann.estimators import FPCD, PCD

SPEC = DataSpec((1, 3, 3), "binary")


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(scale=0.8, **args):
    """A picture of 3 x 3, two maps of 2 x 2 (a block each), above their two pooled bits one map of a single unit."""
    args = {"tolerance": 1e-12, "mean_field_steps": 500} | args
    model = Cdbm(SPEC, filters=(2, 1), widths=(2, 1), pool=args.pop("pool", 2), **args)
    return filled(model.double(), scale)


def filled(model, scale):
    g = seeded()
    with torch.no_grad():
        for p in model.overlaid().values():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def make_two(scale=0.8, **args):
    """A picture of 5 x 5, two maps of 4 x 4 with pooled bits 2 x 2, above these one map of 2 x 2, one block."""
    args = {"tolerance": 1e-12, "mean_field_steps": 500} | args
    return filled(Cdbm(DataSpec((1, 5, 5), "binary"), filters=(2, 1), widths=(2, 1), **args).double(), scale)


def all_blocks(blocks, size):
    """All states of so many blocks with at most one of ``size`` units on, (states, blocks size)."""
    one = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
    return torch.stack(
        [torch.cat([one[n] for n in chosen]) for chosen in itertools.product(range(size + 1), repeat=blocks)]
    )


def minus_energy(model, v, h1, h2):
    """-E of images (n, 5, 5) with maps h1 (n, 2, 4, 4) and h2 (n, 1, 2, 2), by convolutions and pooling."""
    below = F.conv2d(v[:, None], model.weights[0], model.biases[1])
    pooled = F.avg_pool2d(h1, 2, divisor_override=1)
    above = F.conv2d(pooled, model.weights[1], model.biases[2])
    return (below * h1).sum((1, 2, 3)) + (above * h2).sum((1, 2, 3)) + model.biases[0] * v.sum((1, 2))


def in_blocks(maps):
    """Maps (n, k, 2 r, 2 c) in the machine's order, the units of a block side by side."""
    n, k, rows, columns = maps.shape
    return maps.view(n, k, rows // 2, 2, columns // 2, 2).permute(0, 1, 2, 4, 3, 5).flatten(1)


def as_maps(units, k, rows, columns):
    return units.view(-1, k, rows // 2, columns // 2, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(-1, k, rows, columns)


def test_the_energy_is_that_of_convolutions_and_pooling():
    model = make_two()
    g = seeded(1)
    v = torch.randint(2, (9, 5, 5), generator=g).double()
    h1, h2 = (all_blocks(1, 4)[torch.randint(5, (9 * n,), generator=g)].view(9, -1) for n in (8, 1))
    with torch.no_grad():
        expected = minus_energy(model, v, as_maps(h1, 2, 4, 4), as_maps(h2, 1, 2, 2))
        torch.testing.assert_close(-model.machine().energy([v.flatten(1), h1, h2]), expected)
    assert torch.equal(in_blocks(as_maps(h1, 2, 4, 4)), h1)


def test_the_conditionals_of_a_block_are_those_of_enumeration():
    """One block of the lower layer given the picture, the other blocks and the layer above; and the upper block."""
    model = make_two()
    g = seeded(2)
    v = torch.randint(2, (1, 5, 5), generator=g).double().expand(5, -1, -1)
    h1, h2 = (all_blocks(1, 4)[torch.randint(5, (n,), generator=g)].view(1, -1).repeat(5, 1) for n in (8, 1))
    machine = model.machine()
    with torch.no_grad():
        for number, states, block in ((1, h1, 3), (1, h1, 6), (2, h2, 0)):
            each = states.clone()
            each[:, 4 * block : 4 * block + 4] = all_blocks(1, 4)
            layers = {1: h1, 2: h2} | {number: each}
            p = minus_energy(model, v, as_maps(layers[1], 2, 4, 4), as_maps(layers[2], 1, 2, 2)).softmax(0)
            found = machine.layers[number].units.mean(machine.inputs(number, [v.flatten(1)[:1], h1[:1], h2[:1]]))
            torch.testing.assert_close(found[0, 4 * block : 4 * block + 4], p[1:])


def enumerated(states):
    """-E of all states of the 3 x 3 machine with blocks of one: (512, 256, 16)."""
    model = make(pool=1)
    v, h1, h2 = states(9), states(8), states(4)
    with torch.no_grad():
        below = F.conv2d(v.view(-1, 1, 3, 3), model.weights[0], model.biases[1]).flatten(1)
        above = F.conv2d(h1.view(-1, 2, 2, 2), model.weights[1], model.biases[2]).flatten(1)
        joint = (below @ h1.T + model.biases[0] * v.sum(1)[:, None])[:, :, None] + (above @ h2.T)[None]
    return model, joint, v


def test_the_bound_lies_below_log_p_and_annealing_has_its_log_z(states):
    model, joint, v = enumerated(states)
    log_z = joint.flatten().logsumexp(0)
    with torch.no_grad():
        log_p = joint.flatten(1).logsumexp(1) - log_z
        bound = model.elbo_unnormalised(v.view(-1, 1, 3, 3)) - log_z
        path = model.annealing_path()
        even = torch.cat([v[:7], states(4)[:7]], 1)
        torch.testing.assert_close(path.log_unnormalised(even, 1.0), joint[:7, :, :7].logsumexp(1).diagonal())
        weights, state = torch.zeros(400, dtype=torch.float64), path.sample_base(400, generator=seeded(1))
        betas, g = torch.linspace(0, 1, 60).tolist(), seeded(2)
        for before, after in itertools.pairwise(betas):
            weights += path.log_unnormalised(state, after) - path.log_unnormalised(state, before)
            state = path.transition(state, after, generator=g)
    assert (bound <= log_p + 1e-9).all()
    assert (log_p - bound).max() > 1e-3
    w = (weights - weights.max()).exp()
    estimate = w.mean().log() + weights.max() + path.log_base_partition()
    assert abs(estimate - log_z) < 4 * w.std() / w.mean() / 20
    assert abs(estimate - log_z) < 0.5


def test_fast_weights_lie_over_filters():
    model = make_two(estimator=FPCD(chains=5))
    fast = [torch.randn(p.shape, generator=seeded(3), dtype=torch.float64) for p in model.overlaid().values()]
    moved = make_two()
    with torch.no_grad():
        for p, quick in zip(moved.overlaid().values(), fast, strict=True):
            p.add_(quick)
    for one, other in zip(model.couplings(fast), moved.couplings(), strict=True):
        torch.testing.assert_close(one, other)


def test_training_raises_the_bound_of_a_small_machine(states):
    torch.manual_seed(0)
    model = Cdbm(SPEC, filters=(2, 1), widths=(2, 1), pool=1, estimator=PCD(chains=50), weight_std=0.2).double()
    g = seeded()
    stripes = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0, 0]], dtype=torch.uint8)
    x = stripes[torch.randint(2, (100,), generator=g)].view(-1, 1, 3, 3)
    model.initialise(Batch(x), g)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    start = None
    for step in range(100):
        loss, _ = model.loss("model", Batch(x), g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step("model", Batch(x), g)
        if step in (0, 99):
            with torch.no_grad():
                joint = -model.couplings().free_energy(torch.cat(
                    [states(9).repeat_interleave(16, 0), states(4).repeat(512, 1)], 1))  # fmt: skip
                value = (model.elbo_unnormalised(x) - joint.logsumexp(0)).mean()
            start = value if start is None else start
    assert value > start + 0.5


@pytest.mark.parametrize(
    ("spec", "args", "sentence"),
    [
        (DataSpec((9,), "binary"), {}, "cdbm models binary pictures"),
        (DataSpec((1, 9, 9), "binary"), {"filters": (2,)}, "for each of two or more layers"),
        (DataSpec((1, 9, 9), "binary"), {"widths": (2, 5)}, "layer 2, .* do not fit into blocks of 2 x 2"),
    ],
)
def test_what_it_cannot_be_made_of(spec, args, sentence):
    with pytest.raises(UserError, match=sentence):
        Cdbm(spec, **({"filters": (2, 2), "widths": (2, 2)} | args))
