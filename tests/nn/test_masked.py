"""Masked networks: who sees whom, and the one-pass ancestral sweep."""

import copy
import itertools

import pytest
import torch

from dgmbench.nn.masked import MaskedMlp

NETS = [
    {"hidden_sizes": ()},
    {"hidden_sizes": (12,)},
    {"hidden_sizes": (12,), "order": "random", "direct": True},
    {"hidden_sizes": (11, 13), "order": "agnostic", "masks": 3},
    {"hidden_sizes": (11, 13, 9), "order": "agnostic", "masks": 2, "direct": True},
    {"hidden_sizes": (10,), "order": "random", "nonlinearity": "tanh", "degrees": [torch.arange(1, 6).repeat(2)]},
]


@pytest.mark.parametrize("kwargs", NETS)
def test_output_depends_on_exactly_the_inputs_before_it(kwargs):
    torch.manual_seed(0)
    net = MaskedMlp(6, kwargs["hidden_sizes"], 2, **{k: v for k, v in kwargs.items() if k != "hidden_sizes"}).double()
    for mask in range(net.masks):
        position = net.positions[mask]
        depends = torch.zeros(6, 6, dtype=torch.bool)
        for x in torch.randn(30, 6, dtype=torch.float64):
            jacobian = torch.autograd.functional.jacobian(lambda v, m=mask: net(v[None], m)[0], x)
            depends |= (jacobian != 0).any(1)
        allowed = position[:, None] > position
        assert not (depends & ~allowed).any()
        if net.direct is not None or net.depth == 0:
            assert torch.equal(depends, allowed)


@pytest.mark.parametrize("kwargs", NETS)
def test_masks_of_layers_multiply_to_the_order(kwargs):
    torch.manual_seed(1)
    net = MaskedMlp(7, kwargs["hidden_sizes"], 1, **{k: v for k, v in kwargs.items() if k != "hidden_sizes"})
    for mask in range(net.masks):
        tables = [t.long() for t in net.layer_masks(mask)]
        paths = tables[0]
        for table in tables[1 : net.depth + 1]:
            paths = table @ paths
        position = net.positions[mask]
        assert (paths[position[:, None] <= position] == 0).all()
        for table in tables[: net.depth]:
            assert (table.sum(1) > 0).all(), "a hidden unit without inputs"


@pytest.mark.parametrize("kwargs", NETS)
def test_ancestral_sweep_equals_full_passes(kwargs):
    torch.manual_seed(2)
    net = MaskedMlp(9, kwargs["hidden_sizes"], 2, **{k: v for k, v in kwargs.items() if k != "hidden_sizes"}).double()
    noise = torch.randn(9, 5, dtype=torch.float64)
    for mask in range(net.masks):
        fast = net.ancestral(5, lambda t, p: p[0] + p[1].exp() * noise[t], mask)
        x = torch.zeros(5, 9, dtype=torch.float64)
        for t, i in enumerate(net.positions[mask].argsort().tolist()):
            p = net(x, mask)[:, i].T
            x[:, i] = p[0] + p[1].exp() * noise[t]
        assert torch.allclose(fast, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hidden_sizes", [(), (11, 13)])
def test_a_context_reaches_every_output_and_changes_no_order(hidden_sizes):
    torch.manual_seed(2)
    net = MaskedMlp(6, hidden_sizes, 2, order="reversed", context=3).double()
    context = torch.randn(4, 3, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(net(x, context=context), net(x)), "at first all contexts are alike"
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "context" in name:
                p.normal_()
    seen = torch.autograd.functional.jacobian(lambda c: net(x[:1], context=c)[0], context[:1])
    assert (seen != 0).all(), "also of the first dimension, which sees no hidden unit"
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None], context=context[:1])[0], x[0])
    depends = (jacobian != 0).any(1)
    assert not (depends & (net.positions[0][:, None] <= net.positions[0])).any()
    noise = torch.randn(6, 4, dtype=torch.float64)
    fast = net.ancestral(4, lambda t, p: p[0] + p[1].exp() * noise[t], context=context)
    slow = torch.zeros(4, 6, dtype=torch.float64)
    for t, i in enumerate(net.positions[0].argsort().tolist()):
        p = net(slow, context=context)[:, i].T
        slow[:, i] = p[0] + p[1].exp() * noise[t]
    assert torch.allclose(fast, slow, rtol=1e-10, atol=1e-10)


def test_orders():
    torch.manual_seed(3)
    assert torch.equal(MaskedMlp(4, (5,), 1, order="reversed").positions, torch.tensor([[3, 2, 1, 0]]))
    natural = MaskedMlp(8, (5,), 1, masks=2)
    assert torch.equal(natural.positions, torch.arange(8).expand(2, 8))
    one = MaskedMlp(8, (5,), 1, masks=3, order="random").positions
    assert torch.equal(one, one[:1].expand(3, 8))
    assert not torch.equal(one[0], torch.arange(8))
    several = MaskedMlp(8, (5,), 1, masks=3, order="agnostic").positions
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(several, 2))
    assert torch.equal(several.sort(1).values, torch.arange(8).expand(3, 8))


@pytest.mark.parametrize("masks", [1, 2])
def test_masks_travel_with_the_weights(masks):
    torch.manual_seed(4)
    first = MaskedMlp(8, (20,), 1, masks=masks, order="random")
    second = MaskedMlp(8, (20,), 1, masks=masks, order="random")
    x = torch.randn(3, 8)
    assert not torch.equal(first.positions, second.positions)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x, masks - 1), second(x, masks - 1))
    assert torch.equal(first(x), copy.deepcopy(first)(x))


def test_one_dimension_has_no_inputs():
    net = MaskedMlp(1, (4,), 1)
    assert torch.equal(net(torch.zeros(1, 1)), net(torch.ones(1, 1)))
    assert net.ancestral(3, lambda t, p: p[0]).shape == (3, 1)
