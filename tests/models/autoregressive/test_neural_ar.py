"""The network of hidden groups against its formula written out, enumeration, masks by gradient and samples."""

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.neural_ar import NeuralAr
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index


def neural_ar(spec, seed=0, gain=3.0, **kwargs):
    """A model with strong dependencies, in float64."""
    torch.manual_seed(seed)
    model = NeuralAr(spec, **{"group": 3, **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    return model


@pytest.mark.parametrize("order", ["natural", "random"])
def test_equals_the_formula_written_out(order):
    model = neural_ar(DataSpec((6,), "binary"), order=order)
    x = all_states(6, 2, torch.uint8)
    sequence = model.ordering().argsort().tolist()
    weight, c = model.net.linear(0).weight.view(5, 3, 6), model.net.linear(0).bias.view(5, 3)
    out, b = model.net.linear(1).weight.view(6, 5, 3), model.net.linear(1).bias
    groups, expected = [], torch.zeros(len(x), dtype=torch.float64)
    for t, i in enumerate(sequence):
        if t:
            seen = sequence[:t]
            groups.append(torch.tanh(c[t - 1] + x[:, seen].double() @ weight[t - 1][:, seen].T))
        logit = b[i] + sum(h @ out[i, s] for s, h in enumerate(groups))
        expected += torch.where(x[:, i] == 1, logit, -logit).sigmoid().log()
    assert torch.allclose(model.log_prob(x), expected, rtol=1e-10)


@pytest.mark.parametrize("spec", [DataSpec((10,), "binary"), DataSpec((1, 2, 2), "discrete", 5)], ids=str)
def test_sums_to_one_and_samples_follow(spec):
    model = neural_ar(spec, order="random")
    x = all_states(spec.dim, spec.levels, torch.uint8).reshape(-1, *spec.shape)
    log_prob = model.log_prob(x).detach()
    assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    assert log_prob.std() > 0.5
    samples = model.sample(40_000, generator=torch.Generator().manual_seed(1)).flatten(1)
    assert chi_squared(torch.bincount(state_index(samples, spec.levels), minlength=len(x)), log_prob.exp()) > 1e-3


@pytest.mark.parametrize("order", ["natural", "random"])
def test_groups_and_outputs_see_what_they_may_by_gradient(order):
    """Group t sees exactly the inputs before position t; the output at t exactly the groups up to t."""
    model = neural_ar(DataSpec((6,), "real"), components=2, order=order)
    position = model.ordering()
    x = torch.randn(1, 6, dtype=torch.float64)
    weight, out = (model.net.linear(layer).weight for layer in (0, 1))
    parameters = model.conditional_logits(x)
    used = torch.autograd.grad(parameters.square().sum(), [weight, out])
    group = (used[0].view(5, 3, 6) != 0).any(1)
    assert torch.equal(group, position < torch.arange(1, 6)[:, None])
    seen = (used[1].view(6, 6, 5, 3) != 0).any(3).any(1)
    assert torch.equal(seen, torch.arange(1, 6) <= position[:, None])
    jacobian = torch.autograd.functional.jacobian(lambda v: model.conditional_logits(v[None])[0], x[0].float())
    assert torch.equal((jacobian != 0).any(1), position[:, None] > position)


def test_one_dimension_is_its_marginal():
    model = NeuralAr(DataSpec((1,), "binary"))
    x = torch.tensor([[1], [1], [1], [0]]).byte()
    model.initialise(Batch(x), torch.Generator())
    assert model.log_prob(x[:1]).exp().item() == pytest.approx(3.5 / 5, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "kwargs", "sentence"),
    [
        ("counts", {}, "not counts"),
        ("binary", {"group": 0}, "group=0"),
        ("binary", {"order": "agnostic"}, "natural or"),
    ],
)
def test_wrong_arguments_are_explained(kind, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        NeuralAr(DataSpec((4,), kind), **kwargs)
