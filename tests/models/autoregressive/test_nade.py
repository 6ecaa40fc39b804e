"""NADE and RNADE against the naive computation, enumeration, quadrature, Jacobians and samples."""

import math

import pytest
import torch
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.nade import Nade
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index

SETTINGS = [
    {},
    {"tied": True, "order": "random"},
    {"activation": "relu", "rescale": True, "order": "random"},
]


def nade(spec, seed=0, gain=3.0, **kwargs):
    """A model with strong dependencies, in float64."""
    torch.manual_seed(seed)
    model = Nade(spec, **{"hidden": 12, **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)).mul_(gain)
    return model


@pytest.mark.parametrize("kwargs", SETTINGS)
def test_equals_the_naive_conditionals(kwargs):
    model = nade(DataSpec((2, 5), "binary"), **kwargs)
    x = all_states(10, 2, torch.uint8)[::9]
    order = model.ordering().argsort().tolist()
    expected = torch.zeros(len(x), dtype=torch.float64)
    for t, i in enumerate(order):
        a = model.bias + x[:, order[:t]].double() @ model.weight[:t]
        a = a if model.rho is None else model.rho[t] * a
        h = a.relu() if model.activation == "relu" else a.sigmoid()
        out = model.weight[t] if model.out_weight is None else model.out_weight[t, 0]
        p = torch.sigmoid(h @ out + model.out_bias[t, 0])
        expected += torch.where(x[:, i] == 1, p, 1 - p).log()
    assert torch.allclose(model.log_prob(x.view(-1, 2, 5)), expected, rtol=1e-10)


@pytest.mark.parametrize("kwargs", SETTINGS)
def test_sums_to_one_and_samples_follow(kwargs):
    spec = DataSpec((10,), "binary")
    model = nade(spec, **kwargs)
    x = all_states(10, 2, torch.uint8)
    log_prob = model.log_prob(x).detach()
    assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    assert log_prob.std() > 0.5
    samples = model.sample(40_000, generator=torch.Generator().manual_seed(1))
    assert chi_squared(torch.bincount(state_index(samples, 2), minlength=1024), log_prob.exp()) > 1e-3


def test_levels_sum_to_one_and_samples_follow():
    spec = DataSpec((1, 2, 2), "discrete", 5)
    model = nade(spec, order="random")
    x = all_states(4, 5, torch.uint8).view(-1, 1, 2, 2)
    log_prob = model.log_prob(x).detach()
    assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    samples = model.sample(40_000, generator=torch.Generator().manual_seed(1)).flatten(1)
    assert chi_squared(torch.bincount(state_index(samples, 5), minlength=625), log_prob.exp()) > 1e-3


def test_a_double_sigmoid_would_be_caught():
    """The trap of a public implementation: it still sums to one, and only samples show it."""
    model = nade(DataSpec((6,), "binary"))
    x = all_states(6, 2, torch.uint8)
    twice = model.conditional_logits(x)[..., 0].sigmoid()
    wrong = -F.binary_cross_entropy_with_logits(twice, x.double(), reduction="none").sum(1).detach()
    assert wrong.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    counts = torch.bincount(state_index(model.sample(20_000, generator=torch.Generator().manual_seed(0)), 2))
    assert chi_squared(counts, wrong.exp()) < 1e-6
    assert chi_squared(counts, model.log_prob(x).exp().detach()) > 1e-3


@pytest.mark.parametrize("density", ["gaussian", "laplace"])
def test_real_data_have_a_density_that_samples_follow(density):
    model = nade(DataSpec((2,), "real"), gain=1.5, components=3, density=density, activation="relu", order="random")
    axis = torch.linspace(-25, 25, 601)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = model.log_prob(grid).exp() * (axis[1] - axis[0]).double() ** 2
    assert mass.sum().item() == pytest.approx(1.0, abs=2e-3)
    n = 20_000
    x = model.sample(n, generator=torch.Generator().manual_seed(0)).double()
    for f in (lambda v: v[:, 0], lambda v: v[:, 1], lambda v: v[:, 0] * v[:, 1], lambda v: v[:, 1].square()):
        draws = f(x)
        assert abs(draws.mean() - (mass * f(grid.double())).sum()) < 4 * draws.std() / n**0.5 + 5e-3


@pytest.mark.parametrize("kwargs", [{}, {"order": "random", "rescale": False}])
def test_dependencies_by_jacobian(kwargs):
    model = nade(DataSpec((6,), "real"), components=2, gain=1.0, **kwargs)
    depends = torch.zeros(6, 6, dtype=torch.bool)
    for x in torch.randn(5, 6):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.conditional_logits(v[None])[0], x)
        depends |= (jacobian != 0).any(1)
    position = model.ordering()
    assert torch.equal(depends, position[:, None] > position)


def test_tied_weights_are_one_parameter_with_both_gradients():
    model = nade(DataSpec((5,), "binary"), tied=True)
    untied = nade(DataSpec((5,), "binary"))
    with torch.no_grad():
        untied.weight.copy_(model.weight)
        untied.bias.copy_(model.bias)
        untied.out_weight.copy_(model.weight[:, None])
        untied.out_bias.copy_(model.out_bias)
    x = all_states(5, 2, torch.uint8)[::3]
    assert sum(p.numel() for p in model.parameters()) == 5 * 12 + 12 + 5
    model.log_prob(x).sum().backward()
    untied.log_prob(x).sum().backward()
    both = untied.weight.grad + untied.out_weight.grad[:, 0]
    assert torch.allclose(model.weight.grad, both, rtol=1e-10)


@pytest.mark.parametrize("order", ["natural", "random"])
def test_starts_at_the_marginals(order):
    torch.manual_seed(0)
    model = Nade(DataSpec((3, 2), "binary"), hidden=4, order=order).double()
    x = (torch.rand(500, 6) < torch.linspace(0.1, 0.9, 6)).byte().view(500, 3, 2)
    model.initialise(Batch(x), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.out_weight.zero_()
    p = (x.flatten(1).double().sum(0) + 0.5) / 501
    assert torch.allclose(model.conditional_logits(x[:1])[0, :, 0].sigmoid(), p, atol=1e-6)


def test_real_data_learn_their_factors_and_binary_data_do_not_unless_asked():
    assert Nade(DataSpec((3,), "binary")).rho is None
    assert Nade(DataSpec((3,), "real")).rho is not None
    assert Nade(DataSpec((3,), "real"), rescale=False).rho is None


@pytest.mark.parametrize("kwargs", [{}, {"activation": "relu", "rescale": True}])
def test_learns_a_distribution_to_its_entropy(kwargs):
    torch.manual_seed(0)
    x = all_states(4, 2, torch.uint8)
    parity = x[x.sum(1) % 2 == 0]
    model = Nade(DataSpec((4,), "binary"), hidden=32, **kwargs)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(300):
        optimiser.zero_grad()
        loss, logs = model.loss("model", Batch(parity), torch.Generator())
        loss.backward()
        optimiser.step()
    assert logs["log_prob"].item() == -loss.item()
    assert math.log(8) - 1e-5 < loss.item() < math.log(8) + 0.02


@pytest.mark.parametrize(
    ("kind", "kwargs", "sentence"),
    [
        ("counts", {}, "not counts"),
        ("real", {"tied": True}, "need several"),
        ("binary", {"hidden": 0}, "hidden=0"),
        ("binary", {"order": "agnostic"}, "natural or random"),
    ],
)
def test_wrong_arguments_are_explained(kind, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        Nade(DataSpec((4,), kind), **kwargs)


def test_the_start_of_a_mixture_leaves_no_bias_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marginals say nothing of a mixture's logits, which must not be what memory happened to hold."""
    monkeypatch.setattr(torch, "empty_like", lambda t, **_: torch.full_like(t, torch.nan))
    model = Nade(DataSpec((3,), "real"), hidden=4, components=5)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    model.initialise(Batch(x), torch.Generator().manual_seed(0))
    assert (model.out_bias[:, :5] == 0).all()
    assert model.log_prob(x).isfinite().all()
