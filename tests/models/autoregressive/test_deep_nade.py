"""Deep NADE: what is its own; what all orderless models share is in test_orderless.py."""

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.deep_nade import DeepNade


@pytest.mark.parametrize(
    "spec", [DataSpec((5,), "binary"), DataSpec((5,), "discrete", 4), DataSpec((5,), "real")], ids=str
)
def test_asking_for_one_dimension_equals_asking_for_all(spec):
    torch.manual_seed(0)
    model = DeepNade(spec, hidden_sizes=(7, 6), components=2).double()
    torch.nn.init.normal_(model.out_bias)
    known = (torch.rand(20, 5) < 0.5).double()
    values, which = torch.randn(20, 5).double() * known, torch.randint(5, (20,))
    all_of_them = model.parameters_given(values, known)
    assert torch.allclose(model.parameters_of(values, known, which), all_of_them[range(20), which], rtol=1e-10)


def test_the_mask_tells_a_known_zero_from_an_unknown_value():
    torch.manual_seed(0)
    model = DeepNade(DataSpec((5,), "binary"), hidden_sizes=(7,))
    zeros, known = torch.zeros(1, 5), torch.tensor([[1.0, 0, 0, 0, 0]])
    difference = model.parameters_given(zeros, known) - model.parameters_given(zeros, torch.zeros(1, 5))
    assert difference.abs().max() > 1e-3


def test_real_data_integrate_to_one_in_each_order():
    torch.manual_seed(1)
    model = DeepNade(DataSpec((2,), "real"), hidden_sizes=(10,), components=3).double()
    axis = torch.linspace(-12, 12, 301)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        for order in ([0, 1], [1, 0]):
            mass = model.log_prob_in_order(grid, torch.tensor(order)).exp().sum() * (axis[1] - axis[0]).double() ** 2
            assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_learns_parity_in_every_order():
    """One network, all orders: the last of any order is certain, the others are fair coins."""
    torch.manual_seed(0)
    x = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.uint8).repeat(25, 1)
    model = DeepNade(DataSpec((3,), "binary"), hidden_sizes=(32, 32))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        optimiser.zero_grad()
        model.loss("model", Batch(x), generator)[0].backward()
        optimiser.step()
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        p = model.log_prob_in_order(x[:4], torch.tensor(order)).exp()
        assert 0.97 < p.sum() < 1
        assert p.min() > 0.1


@pytest.mark.parametrize(
    ("kind", "kwargs", "sentence"),
    [
        ("counts", {}, "not counts"),
        ("binary", {"orders": 0}, "orders=0"),
        ("binary", {"hidden_sizes": ()}, "at least one hidden layer"),
    ],
)
def test_wrong_arguments_are_explained(kind, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        DeepNade(DataSpec((4,), kind), **kwargs)
