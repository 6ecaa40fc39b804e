"""MAF: triangular Jacobians, one pass a density, whole-set batch normalisation, the MADE-MoG base, labels."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from dgmbench.config import complete, compose
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import HasElbo, HasLogProb, HasLogWeights, IsClassConditional
from dgmbench.models.flow.maf import DequantisedMaf, Maf
from dgmbench.nn.bijections import Normalisation
from dgmbench.nn.masked import MaskedMlp
from dgmbench.nn.masked_flows import MaskedAffine, MaskedMixture, bounded

PLANE = DataSpec((2,), "real", num_classes=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shaken(model: Maf, by: float = 0.3) -> Maf:
    """In double precision and evaluation mode, away from where it starts."""
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
            if name.endswith("running_mean"):
                buffer.normal_()
    return model


def quadrature() -> tuple[Tensor, Tensor]:
    """Points over the plane, fine in the middle and out to 200, and their areas."""
    u = torch.linspace(-6, 6, 481, dtype=torch.float64)
    return torch.cartesian_prod(u.sinh(), u.sinh()), torch.cartesian_prod(u.cosh(), u.cosh()).prod(1) * (12 / 480) ** 2


def layers(model: Maf) -> list[MaskedAffine]:
    return [m for m in model.modules() if isinstance(m, MaskedAffine)]


def jacobian(function, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda v: function(v[None])[0], x)


@pytest.mark.parametrize("order", ["alternating", "random"])
@pytest.mark.parametrize("conditional", [False, True])
def test_each_layers_jacobian_is_triangular_in_its_order_and_the_log_det_is_the_whole_ones(order, conditional):
    spec = DataSpec((5,), "real", num_classes=3)
    model = shaken(Maf(spec, layers=3, hidden_sizes=(16, 16), order=order, class_conditional=conditional))
    x, y = torch.randn(4, 5, dtype=torch.float64, generator=generator()), torch.tensor([0, 1, 2, 1])
    label = y if conditional else None
    natural, backward, *_ = (layer.net.positions[0] for layer in layers(model))
    if order == "alternating":
        assert torch.equal(backward, natural.flip(0))
        assert torch.equal(natural, torch.arange(5))
    context = torch.nn.functional.one_hot(y, 3).double() if conditional else None
    for layer in layers(model):
        sequence = layer.net.positions[0].argsort()
        for i in range(4):
            row = None if context is None else context[i : i + 1]
            each = jacobian(lambda v, row=row, layer=layer: layer(v, row)[0], x[i])[sequence][:, sequence]
            assert torch.equal(each, each.tril()), "what x_i turns into never depends on a later dimension"
            assert each.diagonal().log().sum().item() == pytest.approx(layer(x[i : i + 1], row)[1].item(), abs=1e-9)
            assert (each.tril(-1).abs() > 1e-9).float().mean() > 0.25, "but it does on earlier ones"
    for i in range(4):
        row = None if context is None else context[i : i + 1]
        z, _ = model._through(x[i : i + 1], row)
        whole = jacobian(lambda v, row=row: model._through(v, row)[0], x[i])
        expected = stats.norm.logpdf(z.detach().numpy()).sum() + torch.linalg.slogdet(whole).logabsdet.item()
        density = model.log_prob(x[i : i + 1], None if label is None else label[i : i + 1])
        assert density.item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("base", ["normal", "mog"])
@torch.no_grad()
def test_the_density_integrates_to_one_and_samples_follow_it(base):
    model = shaken(Maf(PLANE, layers=2, hidden_sizes=(16,), base=base, components=3), by=0.2)
    grid, volume = quadrature()
    mass = model.log_prob(grid).exp() * volume
    assert mass.sum().item() == pytest.approx(1.0, abs=2e-4)
    samples = model.sample(40_000, generator=generator()).double()
    for inside, of_samples in ((grid < 0, samples < 0), (grid < 0.5, samples < 0.5)):
        for both in (lambda v: v.all(1), lambda v: v[:, 0] & ~v[:, 1]):
            p = mass[both(inside)].sum().item()
            assert abs(both(of_samples).double().mean().item() - p) < 4.5 * (p * (1 - p) / 40_000) ** 0.5 + 1e-4


def test_a_density_calls_each_network_once_and_a_naive_sample_d_times_and_both_samples_agree():
    spec, calls = DataSpec((6,), "real"), []
    model = shaken(Maf(spec, layers=3, hidden_sizes=(16, 16), base="mog", components=2))
    for net in (m for m in model.modules() if isinstance(m, MaskedMlp)):
        net.register_forward_hook(lambda net, *_: calls.append(net))
    model.log_prob(torch.randn(7, 6, dtype=torch.float64))
    assert len(calls) == 4
    assert len(set(map(id, calls))) == 4, "three layers and the base"

    noise = model.base.noise(9, 6, like=torch.zeros(1).double(), generator=generator())
    z = model.base.from_noise(noise)
    fast = model._from_noise(z, None)
    calls.clear()
    with torch.no_grad():
        slow = z
        for step in reversed(list(model.bijection.parts())):
            slow = naive_inverse(step, slow) if isinstance(step, MaskedAffine) else step.inverse(slow)[0]
    assert [calls.count(layer.net) for layer in layers(model)] == [6, 6, 6]
    assert torch.allclose(fast, slow, rtol=1e-9, atol=1e-9)
    back, log_det = model.bijection(fast)
    assert torch.allclose(back, z, rtol=1e-8, atol=1e-8)
    assert torch.allclose(model.bijection.inverse(z)[1], -log_det, atol=1e-8)


def naive_inverse(layer: MaskedAffine, z: Tensor) -> Tensor:
    x = torch.zeros_like(z)
    for i in layer.net.positions[0].argsort().tolist():
        shift, a = layer.net(x)[:, i].unbind(-1)
        x[:, i] = z[:, i] * bounded(a).exp() + shift
    return x


def test_evaluation_normalises_by_the_moments_of_the_whole_training_set():
    """Against the plain way: one layer at a time, over all the data at once. Running averages would be off."""
    spec = DataSpec((3,), "real")
    data = 4 + 3 * torch.randn(700, 3, generator=generator()) @ torch.randn(3, 3, generator=generator(1))
    model = Maf(spec, layers=3, hidden_sizes=(8,))
    model.initialise(Batch(data[:64]), generator())
    model.eval()
    model.settle((Batch(part) for part in data.split(300)), generator())
    x, rounds = data.double(), 0
    for step in model.double().bijection.parts():
        if isinstance(step, Normalisation):
            rounds += 1
            assert torch.allclose(step.running_mean, x.mean(0), atol=1e-4)
            assert torch.allclose(step.running_var, x.var(0, correction=0), rtol=1e-4)
            assert (step.running_mean - data[:64].double().mean(0)).abs().max() > 1e-3 or rounds > 1
            x = (x - x.mean(0)) / (x.var(0, correction=0) + step.eps).sqrt()
        else:
            x = step(x)[0].detach()
    assert rounds == 3

    untouched = iter([Batch(data)])
    Maf(spec, layers=2, batch_norm=False).settle(untouched, generator())
    assert next(untouched) is not None, "nothing is read where there is nothing to settle"


def test_settling_a_conditional_flow_uses_each_examples_own_label():
    model = shaken(Maf(PLANE, layers=2, hidden_sizes=(8,), class_conditional=True))
    x, y = torch.randn(50, 2, generator=generator()), torch.arange(50) % 3
    model.settle(iter([Batch(x[:20], y[:20]), Batch(x[20:], y[20:])]), generator())
    first, layer, second, _ = model.bijection.parts()
    h = layer(first(x.double())[0], torch.nn.functional.one_hot(y, 3).double())[0]
    assert torch.allclose(second.running_mean, h.mean(0), atol=1e-6)
    assert torch.allclose(second.running_var, h.var(0, correction=0), atol=1e-6)


@torch.no_grad()
def test_the_mixture_base_is_its_formula_and_samples_follow_its_one_dimensional_distribution():
    torch.manual_seed(1)
    base = MaskedMixture(1, (), 3).double()
    base.net.linear(0).bias.normal_(std=0.8)
    log_weight, mean, log_sigma = base._mixture(base.net.linear(0).bias[:, None])
    w, m, s = log_weight.exp().squeeze().numpy(), mean.squeeze().numpy(), log_sigma.exp().squeeze().numpy()
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    expected = np.log((w * stats.norm.pdf(z.numpy(), m, s)).sum(1))
    assert np.allclose(base.log_prob(z).numpy(), expected, atol=1e-10)
    samples = base.from_noise(base.noise(20_000, 1, like=z, generator=generator())).squeeze().numpy()

    def cdf(v):
        return (w * stats.norm.cdf(np.asarray(v)[:, None], m, s)).sum(1)

    assert stats.kstest(samples, cdf).pvalue > 1e-4
    cold = base.from_noise(base.noise(2000, 1, like=z, generator=generator()), temperature=0.0)
    assert set(cold.squeeze().tolist()) <= set(m.tolist()), "without noise only the means are left"


@torch.no_grad()
@pytest.mark.parametrize("base", ["normal", "mog"])
def test_a_label_changes_the_density_which_stays_one_and_the_marginal_is_the_mixture(base):
    conditional = {"base": base, "components": 2, "class_conditional": True}
    model = shaken(Maf(PLANE, layers=2, hidden_sizes=(16,), **conditional), by=0.2)
    assert isinstance(model, IsClassConditional)
    assert not isinstance(Maf(PLANE), IsClassConditional)
    model.initialise(Batch(torch.randn(90, 2), torch.tensor([0, 0, 1]).repeat(30)), generator())
    assert torch.allclose(model.class_log_prior.exp(), torch.tensor([61, 31, 1], dtype=torch.float64) / 93)
    grid, volume = quadrature()
    given = torch.stack([model.log_prob(grid, torch.full((len(grid),), y)) for y in range(3)])
    masses = (given.exp() * volume).sum(1)
    assert torch.allclose(masses, torch.ones(3, dtype=torch.float64), atol=2e-4)
    assert all((given[a] - given[b]).abs().max() > 0.1 for a, b in ((0, 1), (1, 2), (0, 2)))
    marginal = (given + model.class_log_prior[:, None]).logsumexp(0)
    assert torch.allclose(model.log_prob(grid), marginal, atol=1e-9)
    for y in range(3):
        samples = model.sample(20_000, torch.full((20_000,), y), generator=generator(y))
        p = (given[y].exp() * volume)[(grid < 0).all(1)].sum().item()
        frequency = (samples < 0).all(1).double().mean().item()
        assert abs(frequency - p) < 4.5 * (p * (1 - p) / 20_000) ** 0.5 + 1e-3


def test_the_label_reaches_the_first_dimension_of_a_single_layer():
    """The first dimension in the order sees no hidden unit; a label that entered only there would leave it alone."""
    model = shaken(Maf(PLANE, layers=1, hidden_sizes=(16,), batch_norm=False, class_conditional=True))
    v = torch.zeros(3, 2, dtype=torch.float64)
    _, log_det = layers(model)[0](v, torch.eye(3, dtype=torch.float64))
    z, _ = layers(model)[0](v, torch.eye(3, dtype=torch.float64))
    assert len({round(value, 6) for value in z[:, 0].tolist()}) == 3
    assert log_det.std() > 1e-6


def test_levels_have_a_bound_also_given_the_label():
    """The masses of all 81 images sum to one, for each label, by unbiased weights."""
    spec = DataSpec((1, 2, 2), "discrete", levels=3, num_classes=2)
    model = shaken(Maf(spec, layers=2, hidden_sizes=(8,), class_conditional=True), by=0.1)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).byte().view(-1, 1, 2, 2)
    for label in range(2):
        y = torch.full((len(every),), label)
        weights = model.log_weights(every, 1000, y, generator=generator(label)).detach().exp()
        total, error = weights.mean(0).sum().item(), (weights.var(0) / 1000).sum().sqrt().item()
        assert error < 0.05
        assert abs(total - 1) < 4.5 * error
        assert weights.log().mean(0).exp().sum() < 1 - 1e-3, "the bound itself lies below"
    model = Maf(spec, layers=1, hidden_sizes=(8,), class_conditional=True)
    assert type(model) is DequantisedMaf
    assert isinstance(model, HasElbo | HasLogWeights)
    assert not isinstance(model, HasLogProb)
    x, y = torch.randint(3, (5, *spec.shape)).byte(), torch.tensor([0, 1, 1, 0, 1])
    given = torch.stack([model.eval().elbo(x, torch.full((5,), c), generator=generator(3)) for c in range(2)])
    assert torch.allclose(model.elbo(x, generator=generator(3)), given.logsumexp(0) - math.log(2), atol=1e-5)
    assert model.log_weights(x, 4, y).shape == (4, 5)
    with pytest.raises(UserError, match="labels"):
        model.loss("model", Batch(x), generator())


def test_held_out_digits_are_more_likely_given_their_labels():
    """log p(x | y) of the conditional flow above log p(x) of the plain one: both of one size, trained alike."""
    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    x, y = images.byte().view(-1, 1, 8, 8), labels.long()
    shuffled = torch.randperm(len(x), generator=generator())
    train, test = shuffled[:1300], shuffled[1300:]
    bounds = []
    for conditional in (False, True):
        torch.manual_seed(0)
        spec = DataSpec((1, 8, 8), "discrete", 17, num_classes=10)
        model = Maf(spec, layers=2, hidden_sizes=(64,), class_conditional=conditional)
        model.initialise(Batch(x[train], y[train]), generator())
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(80):
            part = train[torch.randint(1300, (100,), generator=generator(step))]
            batch = Batch(x[part], y[part])
            optimiser.zero_grad()
            model.loss("model", batch, generator(step))[0].backward()
            optimiser.step()
            model.after_step("model", batch, generator(step))
        model.settle(iter([Batch(x[train], y[train])]), generator())
        model.eval()
        with torch.no_grad():
            bounds.append(model.elbo(x[test], y[test] if conditional else None, generator=generator(1)))
    gain = bounds[1] - bounds[0]
    assert gain.mean() > 4 * gain.std() / len(test) ** 0.5


def test_cmaf_is_maf_with_labels():
    ours = complete(compose("train", ["model=cmaf"]))
    plain = complete(compose("train", ["model=maf", "data=digits", "model.class_conditional=true"]))
    differing = {key for key in ours["model"] if ours["model"][key] != plain["model"][key]}
    assert differing <= {"card"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": 0}, "layers=0"),
        ({"hidden_sizes": (0,)}, "hidden_sizes"),
        ({"components": 0}, "components=0"),
        ({"class_conditional": True}, "labels"),
    ],
)
def test_wrong_arguments_are_explained(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Maf(DataSpec((4,), "real"), **settings)
