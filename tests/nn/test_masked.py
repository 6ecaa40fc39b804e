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


def test_orders():
    torch.manual_seed(3)
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
