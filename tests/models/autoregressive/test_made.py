"""MADE against enumeration, quadrature, Jacobians and the D-pass sampler."""

import itertools
import math

import pytest
import torch
from scipy import stats

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.autoregressive.made import Made

SETTINGS = [
    {},
    {"order": "random", "direct": True},
    {"masks": 4, "order": "agnostic", "hidden_sizes": (30, 20), "direct": True},
]


def made(spec, seed=0, gain=3.0, **kwargs):
    """A model with weights large enough for strong dependencies, in float64."""
    torch.manual_seed(seed)
    model = Made(spec, **{"hidden_sizes": (40,), **kwargs}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
    return model


def everything(spec):
    grid = torch.tensor(list(itertools.product(range(spec.levels), repeat=spec.dim)), dtype=torch.uint8)
    return grid.reshape(-1, *spec.shape)


@pytest.mark.parametrize("kwargs", SETTINGS)
@pytest.mark.parametrize("spec", [DataSpec((10,), "binary"), DataSpec((1, 2, 2), "discrete", 5)], ids=str)
def test_sums_to_one(spec, kwargs):
    log_prob = made(spec, **kwargs).log_prob(everything(spec))
    assert log_prob.logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    assert log_prob.std() > 0.5, "the model should be far from uniform for this test to mean something"


@pytest.mark.parametrize("kwargs", [{"components": 1}, {"components": 4}, {"masks": 3, "order": "agnostic"}])
def test_density_of_real_data_integrates_to_one(kwargs):
    model = made(DataSpec((2,), "real"), gain=1.0, **{"components": 4, **kwargs})
    axis = torch.linspace(-12, 12, 481)
    cell = (axis[1] - axis[0]).double() ** 2
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        assert (model.log_prob(x).exp().sum() * cell).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("kwargs", SETTINGS)
def test_mask_by_jacobian(kwargs):
    spec = DataSpec((6,), "real")
    model = made(spec, components=2, **kwargs)
    depends = torch.zeros(6, 6, dtype=torch.bool)
    for x in torch.randn(20, 6):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.conditional_logits(v[None])[0], x)
        depends |= (jacobian != 0).any(1)
    position = model.ordering()
    assert not (depends & (position[:, None] <= position)).any()
    assert depends.any(1).sum() == 5, "every dimension but the first depends on something"


def test_log_prob_is_the_product_of_the_conditionals():
    model = made(DataSpec((10,), "binary"), order="random")
    x = everything(model.spec)[::7]
    logits = model.conditional_logits(x)[..., 0]
    expected = torch.where(x == 1, logits, -logits).sigmoid().log().sum(1)
    assert torch.allclose(model.log_prob(x), expected, rtol=1e-10)


def test_ensemble_averages_probabilities_not_logits():
    model = made(DataSpec((8,), "binary"), masks=5, order="agnostic")
    x = everything(model.spec)
    each = torch.stack([-torch.nn.functional.binary_cross_entropy_with_logits(
        model.net(x.double(), m)[..., 0], x.double(), reduction="none").sum(1) for m in range(5)])  # fmt: skip
    assert torch.allclose(model.log_prob(x).exp(), each.exp().mean(0), rtol=1e-10)
    logits = torch.stack([model.net(x.double(), m)[..., 0] for m in range(5)]).mean(0)
    of_logits = torch.where(x == 1, logits, -logits).sigmoid().log().sum(1)
    assert abs(of_logits.logsumexp(0).item()) > 1e-3, "the average of logits is no distribution"


@pytest.mark.parametrize("hidden_sizes", [(), (50,), (31, 47)])
@pytest.mark.parametrize(
    "spec", [DataSpec((1, 5, 5), "binary"), DataSpec((20,), "discrete", 17), DataSpec((12,), "real")], ids=str
)
def test_degree_sorted_sampling_equals_the_d_pass_loop(spec, hidden_sizes):
    gain = 1.0 if spec.kind == "real" else 2.0
    model = made(spec, gain=gain, hidden_sizes=hidden_sizes, order="random", direct=True, components=3)
    fast = model.sample(32, generator=torch.Generator().manual_seed(5))
    noise = model.conditionals.noise(32, model.net.linear(0).bias, generator=torch.Generator().manual_seed(5))
    x = torch.zeros(32, spec.dim, dtype=torch.float64)
    with torch.no_grad():
        for t, i in enumerate(model.ordering().argsort().tolist()):
            x[:, i] = model.conditionals.draw(model.net(x)[:, i].T, noise[:, t])
    slow = model.conditionals.raw(x)
    assert fast.dtype == spec.dtype
    assert fast.shape == (32, *spec.shape)
    assert torch.allclose(fast.double(), slow.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kwargs", SETTINGS)
@pytest.mark.parametrize("spec", [DataSpec((7,), "binary"), DataSpec((3,), "discrete", 5)], ids=str)
def test_sample_frequencies_match_the_probabilities(spec, kwargs):
    model, n = made(spec, gain=2.0, **kwargs), 60_000
    x = model.sample(n, generator=torch.Generator().manual_seed(0)).long()
    place = spec.levels ** torch.arange(spec.dim - 1, -1, -1)
    counts = torch.bincount((x * place).sum(1), minlength=spec.levels**spec.dim).double()
    expected = n * model.log_prob(everything(spec)).exp().detach()
    rare = expected < 5
    observed = torch.cat((counts[~rare], counts[rare].sum()[None]))
    wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
    keep = wanted > 0
    statistic = ((observed - wanted)[keep].square() / wanted[keep]).sum().item()
    assert stats.chi2.sf(statistic, int(keep.sum()) - 1) > 1e-3


def test_samples_of_real_data_follow_the_density():
    model, n = made(DataSpec((2,), "real"), gain=1.5, components=3), 20_000
    x = model.sample(n, generator=torch.Generator().manual_seed(0))
    axis = torch.linspace(-12, 12, 481)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weight = model.log_prob(grid).exp() * (axis[1] - axis[0]).double() ** 2
    for f in (lambda v: v[:, 0], lambda v: v[:, 1], lambda v: v[:, 0] * v[:, 1], lambda v: v[:, 1].square()):
        draws = f(x.double())
        expected = (weight * f(grid.double())).sum()
        assert abs(draws.mean() - expected) < 4 * draws.std() / n**0.5 + 1e-3


def test_loss_is_pure_and_uses_one_mask_of_the_set():
    model = made(DataSpec((8,), "binary"), masks=3, order="agnostic")
    batch = Batch(everything(model.spec)[:50])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    of_masks = {round(-model._log_prob_under(batch.x, m).mean().item(), 9) for m in range(3)}
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(30):
        state = generator.get_state()
        loss, logs = model.loss("model", batch, generator)
        assert logs["log_prob"].item() == -loss.item()
        assert not logs["log_prob"].requires_grad
        generator.set_state(state)
        assert model.loss("model", batch, generator)[0].item() == loss.item()
        seen.add(round(loss.item(), 9))
    assert seen == of_masks
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_no_hidden_layer_is_logistic_regression_on_the_past():
    model = made(DataSpec((5,), "binary"), hidden_sizes=())
    x = everything(model.spec)
    weight, bias = model.net.layers[0].weight, model.net.layers[0].bias
    logits = x.double() @ weight.tril(-1).T + bias
    assert torch.allclose(model.conditional_logits(x)[..., 0], logits)


@pytest.mark.parametrize("spec", [DataSpec((3, 2), "binary"), DataSpec((4,), "discrete", 5)], ids=str)
def test_starts_at_the_marginals(spec):
    model = made(spec)
    x = torch.randint(0, spec.levels, (200, *spec.shape), generator=torch.Generator().manual_seed(0)).byte()
    x.view(200, -1)[:, 0] = 0
    model.initialise(Batch(x), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.net.linear(1).weight.zero_()
    counts = torch.stack([(x.flatten(1) == level).sum(0) for level in range(spec.levels)], dim=1)
    marginals = (counts + 0.5) / (200 + spec.levels / 2)
    logits = model.conditional_logits(x[:1])[0]
    got = torch.cat((-logits, logits), 1).sigmoid() if spec.kind == "binary" else logits.softmax(1)
    assert torch.allclose(got, marginals.double(), atol=1e-6)


def test_starts_at_the_moments_of_real_data():
    model = made(DataSpec((3,), "real"), components=50)
    x = torch.tensor([5.0, -300.0, 0.0]) + torch.tensor([0.01, 20.0, 1.0]) * torch.randn(4000, 3)
    model.initialise(Batch(x), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.net.linear(1).weight.zero_()
        _, mean, log_sigma = model.conditionals.mixture(model.conditional_logits(x[:1])[0].T)
    assert torch.allclose(log_sigma.exp(), x.double().std(0, correction=0).expand(50, -1), rtol=1e-4)
    z = (mean.mean(0) - x.mean(0)) / x.std(0) * 50**0.5
    assert z.abs().max() < 4
    assert torch.isfinite(model.log_prob(x)).all()


def test_learns_a_distribution_to_its_entropy():
    torch.manual_seed(0)
    spec = DataSpec((6,), "binary")
    x = everything(spec)
    parity = x[x.sum(1) % 2 == 0]
    model = Made(spec, hidden_sizes=(64, 64))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimiser.zero_grad()
        loss, _ = model.loss("model", Batch(parity), generator)
        loss.backward()
        optimiser.step()
    assert math.log(32) - 1e-6 < loss.item() < math.log(32) + 0.02


@pytest.mark.parametrize(
    ("kind", "kwargs", "sentence"),
    [
        ("counts", {}, "not counts"),
        ("binary", {"masks": 0}, "masks=0"),
        ("binary", {"hidden_sizes": (0,)}, "at least 1"),
    ],
)
def test_wrong_arguments_are_explained(kind, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        Made(DataSpec((4,), kind), **kwargs)
