"""Completion by the models of one order of the dimensions, against enumeration and quadrature."""

from functools import partial

import pytest
import torch
from scipy import stats

from dgmbench.data.spec import DataSpec
from dgmbench.models.autoregressive.fvbn import Fvbn
from dgmbench.models.autoregressive.made import Made
from dgmbench.models.autoregressive.nade import Nade
from dgmbench.models.autoregressive.neural_ar import NeuralAr
from dgmbench.models.contract import CanComplete
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index

BUILD = {
    "fvbn": partial(Fvbn, order="random"),
    "neural_ar": partial(NeuralAr, order="random"),
    "nade": partial(Nade, order="random", hidden=12),
    "made": partial(Made, order="random", hidden_sizes=(20,)),
    "made, three masks": partial(Made, masks=3, hidden_sizes=(20,)),
}


def strong(name: str, spec: DataSpec):
    """A model with strong dependencies, in float64."""
    torch.manual_seed(0)
    model = BUILD[name](spec).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("name", BUILD)
@torch.no_grad()
def test_what_is_left_is_drawn_given_a_known_beginning(name):
    model, n = strong(name, DataSpec((1, 2, 3), "binary")), 20_000
    known = (model.ordering() < 3).view(1, 2, 3)
    states = all_states(6, 2, torch.uint8).reshape(-1, 1, 2, 3)
    every = model.log_prob(states)
    # the beginning under which the rest is the least certain
    entropies = []
    for x in states:
        p = torch.where((states == x)[:, known].all(1), every, -torch.inf).softmax(0)
        entropies.append(torch.special.entr(p).sum())
    x = states[torch.stack(entropies).argmax()]
    p = torch.where((states == x)[:, known].all(1), every, -torch.inf).softmax(0)
    assert isinstance(model, CanComplete)
    drawn = model.complete(x.expand(n, 1, 2, 3), known.expand(n, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn[:, known], x[known].expand(n, 3))
    assert chi_squared(torch.bincount(state_index(drawn.flatten(1), 2), minlength=64), p) > 1e-3


@torch.no_grad()
def test_the_known_beginning_tells_which_mask():
    """The same with masks that disagree on the beginning: drawn without regard to it they would be another answer."""
    model, n = strong("made, three masks", DataSpec((6,), "binary")), 20_000
    states = all_states(6, 2, torch.uint8)
    begun = model.net.positions[0] < 3
    every = model.log_prob(states)
    of_rest = torch.stack([model._each_under(states, mask)[:, ~begun].sum(1) for mask in range(3)]).exp().mean(0)

    def given(x):
        same = (states[:, begun] == x[begun]).all(1)
        exact = torch.where(same, every, -torch.inf).softmax(0)
        return exact, (torch.where(same, of_rest, 0.0) - exact).abs().sum()

    x = max(states, key=lambda x: given(x)[1])
    exact, error = given(x)
    assert error > 0.1
    drawn = model.complete(x.expand(n, 6), begun.expand(n, 6), generator=torch.Generator().manual_seed(0))
    assert chi_squared(torch.bincount(state_index(drawn, 2), minlength=64), exact) > 1e-3


@pytest.mark.parametrize("name", BUILD)
@torch.no_grad()
def test_each_example_keeps_its_own_known_values_wherever_they_are(name):
    spec = DataSpec((8,), "discrete", 3) if name != "nade" else DataSpec((8,), "binary")
    model, g = strong(name, spec), torch.Generator().manual_seed(0)
    x = torch.randint(spec.levels, (50, 8), generator=g).byte()
    known = torch.rand(50, 8, generator=g) < 0.5
    done = model.complete(x, known, generator=g)
    assert torch.equal(done[known], x[known])
    assert not torch.equal(done, x)


@torch.no_grad()
def test_real_values_are_kept_to_the_bit_and_the_rest_follows_their_conditional():
    torch.manual_seed(0)
    model, n = Nade(DataSpec((2,), "real"), hidden=8, components=3).double(), 4000
    for p in model.parameters():
        p.add_(0.7 * torch.randn_like(p))
    x = torch.tensor([1 / 3, 99.0], dtype=torch.float64).expand(n, 2)
    known = torch.tensor([True, False]).expand(n, 2)
    drawn = model.complete(x, known, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], x[:, 0])
    axis = torch.linspace(-40, 40, 40_001, dtype=torch.float64)
    density = model.log_prob(torch.stack((torch.full_like(axis, 1 / 3), axis), 1)).exp()
    cdf = density.cumsum(0) / density.sum()
    u = cdf[((drawn[:, 1] + 40) / 80 * 40_000).round().long().clamp(0, 40_000)]
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
