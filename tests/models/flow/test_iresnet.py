"""i-ResNet: the three log-determinants against dense Jacobians, the inverse, and what each number is called."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from dgmbench.data import DataSet, Split
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.models.contract import HasElbo, HasLogProb, HasLogProbEstimate, HasLogWeights
from dgmbench.models.flow.iresnet import (
    DequantisedIResNet,
    EstimatedDequantisedIResNet,
    EstimatedIResNet,
    IResNet,
)
from dgmbench.nn.lipschitz import LipschitzNet, SpectralMap
from dgmbench.nn.residual_flows import Residual, series_remainder

PLANE, IMAGE = DataSpec((2,), "real"), DataSpec((1, 4, 4), "discrete", levels=5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stretched(net: torch.nn.Module, factor: float = 5.0) -> None:
    """Large weights, so that every norm is held at c."""
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, SpectralMap):
                layer.weight.mul_(factor)
                layer.bias.normal_()
                layer.refine(most=500)


def block(shape: tuple[int, ...], log_det: str, **settings) -> Residual:
    torch.manual_seed(0)
    c = settings.pop("coefficient", 0.9)
    if len(shape) == 3:
        net = LipschitzNet.convolutional(shape, 6, coefficient=c)
    else:
        net = LipschitzNet.mlp(shape[0], (16,), coefficient=c)
    residual = Residual(net, log_det=log_det, **settings).double().eval()
    stretched(residual)
    return residual


def jacobians(residual: Residual, x: Tensor) -> Tensor:
    """dg/dx of each example, (b, d, d), by autograd."""
    d = x[0].numel()
    rows = [torch.autograd.functional.jacobian(lambda v: residual.net(v[None])[0], each).view(d, d) for each in x]
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(2,), (5,), (2, 2, 3)])
def test_the_exact_log_determinant_is_autograds_with_its_gradient(shape):
    residual = block(shape, "exact")
    x = torch.randn(3, *shape, dtype=torch.float64, generator=generator())
    _, log_det = residual(x)
    for i in range(3):
        whole = torch.autograd.functional.jacobian(lambda v: residual(v[None])[0].flatten(), x[i]).flatten(1)
        sign, expected = torch.linalg.slogdet(whole)
        assert sign == 1
        assert log_det[i].item() == pytest.approx(expected.item(), abs=1e-9)
    assert log_det.std() > 1e-3
    weight = residual.net.maps[0].weight
    slope = torch.autograd.grad(log_det.sum(), weight)[0]
    step = 1e-6 * torch.randn_like(weight)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.add_(sign * step)
            values.append(residual(x)[1].sum().item())
            weight.sub_(sign * step)
    assert (values[0] - values[1]) / 2 == pytest.approx((slope * step).sum().item(), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("terms", [1, 4])
def test_the_series_has_the_mean_of_its_terms_and_misses_the_log_determinant_by_no_more_than_it_says(terms):
    residual = block((4,), "series", evaluation_terms=terms, probes=10_000)
    x = torch.randn(3, 4, dtype=torch.float64, generator=generator())
    j = jacobians(residual, x)
    powers = [torch.linalg.matrix_power(j, k).diagonal(dim1=1, dim2=2).sum(1) for k in range(1, terms + 1)]
    expected = sum((-1) ** (k + 1) / k * trace for k, trace in enumerate(powers, 1))
    draws = torch.stack([residual(x, generator(seed))[1] for seed in range(12)]).detach()
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 5 * error + 1e-9).all()
    exact = torch.linalg.slogdet(torch.eye(4, dtype=torch.float64) + j).logabsdet
    remainder = residual.remainder()
    assert ((expected - exact).abs() <= 4 * remainder).all()
    if terms == 1:
        assert ((expected - exact).abs() > 1e-3).any(), "truncated, it is not the log-determinant"
    assert residual.log_det_error == math.inf


def test_the_remainder_is_the_tail_of_the_series():
    assert series_remainder(0.9, 5) == pytest.approx(0.47, abs=5e-3)
    assert series_remainder(0.6, 3) == pytest.approx(sum(0.6**k / k for k in range(4, 200)), abs=1e-12)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3)])
def test_the_roulette_has_the_log_determinant_as_its_mean(shape):
    residual = block(shape, "roulette", evaluation_terms=1, probes=60)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator())
    exact = torch.linalg.slogdet(torch.eye(x[0].numel(), dtype=torch.float64) + jacobians(residual, x)).logabsdet
    noise = generator(1)
    with torch.no_grad():
        draws = torch.stack([residual(x, noise)[1] for _ in range(100)])
    error = draws.std(0) / len(draws) ** 0.5
    assert (error < 0.01).all()
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()
    truncated = block(shape, "series", evaluation_terms=1, probes=20_000)(x, generator())[1]
    assert ((truncated - exact).abs() > 5 * error).any(), "the test would see the terms beyond the first"


@torch.no_grad()
def test_the_roulette_weighs_what_it_seldom_reaches():
    """J = -0.8 I: every trace is known without noise and all terms have one sign, so that the weights decide."""
    residual = Residual(LipschitzNet.mlp(3, (), coefficient=0.9), log_det="roulette", terms=1, evaluation_terms=1)
    residual.net.maps[0].weight.copy_(-0.8 * torch.eye(3))
    residual = residual.double().eval()
    residual.net.maps[0].refine(most=500)
    noise, x = generator(), torch.zeros(1, 3, dtype=torch.float64)
    draws = torch.cat([residual(x, noise)[1] for _ in range(400)])
    error = draws.std().item() / 400**0.5
    assert error < 0.1
    assert abs(draws.mean().item() - 3 * math.log(0.2)) < 4 * error


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
@torch.no_grad()
def test_the_inverse_is_found_to_five_digits_in_single_precision(shape):
    residual = block(shape, "exact").float()
    x = 3 * torch.randn(20, *shape, generator=generator())
    assert (residual.solve(residual(x)[0]) - x).abs().max() < 1e-5
    z = 3 * torch.randn(20, *shape, generator=generator(1))
    x, log_det = residual.inverse(z)
    again, other = residual(x)
    assert (again - z).abs().max() < 1e-5
    assert torch.equal(log_det, -other)


def trained(model: IResNet, x: Tensor, steps: int) -> IResNet:
    noise = generator()
    model.initialise(Batch(x), noise)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = Batch(x[torch.randint(len(x), (100,), generator=noise)])
        optimiser.zero_grad()
        model.loss("model", batch, noise)[0].backward()
        optimiser.step()
        model.after_step("model", batch, noise)
    return model.eval()


def test_after_training_norms_are_below_c_and_the_density_integrates_to_one():
    angle = 2 * math.pi * torch.rand(1000, generator=generator(1))
    ring = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(1000, 2, generator=generator(2))
    torch.manual_seed(0)
    model = trained(IResNet(PLANE, blocks=4, hidden_sizes=(16,), coefficient=0.8), ring, 120)
    held = 0
    for layer in (m for m in model.modules() if isinstance(m, SpectralMap)):
        norm = torch.linalg.matrix_norm(layer.scaled().detach().double(), ord=2).item()
        assert norm <= 0.8 * (1 + 1e-3)
        held += norm > 0.79
    assert held > 0, "the bound has been reached"
    with torch.no_grad():
        u = torch.linspace(-6, 6, 301, dtype=torch.float64)
        grid, area = torch.cartesian_prod(u.sinh(), u.sinh()), torch.cartesian_prod(u.cosh(), u.cosh()).prod(1)
        model = model.double()
        density = model.log_prob(grid).exp() * area * (12 / 300) ** 2
        assert density.sum().item() == pytest.approx(1.0, abs=1e-3)
        normal = torch.distributions.MultivariateNormal(ring.mean(0), ring.T.cov())
        assert model.log_prob(ring).mean() > normal.log_prob(ring).mean() + 0.1, "it learns more than two moments"
        samples = model.sample(5000, generator=generator())
        p = density[grid.norm(dim=1) < 1.5].sum().item()
        frequency = (samples.norm(dim=1) < 1.5).double().mean().item()
        assert abs(frequency - p) < 4.5 * (p * (1 - p) / 5000) ** 0.5 + 2e-3


def test_norms_of_averaged_weights_are_found_again():
    model = IResNet(PLANE, blocks=1, hidden_sizes=(16,), coefficient=0.8)
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, SpectralMap)):
            layer.weight.normal_()
    model.settle(iter(()), generator())
    for layer in (m for m in model.modules() if isinstance(m, SpectralMap)):
        assert torch.linalg.matrix_norm(layer.scaled().detach(), ord=2).item() <= 0.8 * (1 + 1e-3)


@pytest.mark.parametrize(
    ("spec", "settings", "kind", "capabilities"),
    [
        (PLANE, {}, IResNet, {HasLogProb}),
        (DataSpec((1, 2, 2), "binary"), {}, DequantisedIResNet, {HasElbo, HasLogWeights}),
        (PLANE, {"log_det": "series"}, EstimatedIResNet, {HasLogProbEstimate}),
        (DataSpec((17,), "real"), {}, EstimatedIResNet, {HasLogProbEstimate}),
        (DataSpec((17,), "real"), {"log_det": "exact"}, IResNet, {HasLogProb}),
        (IMAGE, {"log_det": "roulette"}, EstimatedDequantisedIResNet, {HasLogProbEstimate}),
    ],
)
def test_the_methods_say_what_the_number_is(spec, settings, kind, capabilities):
    model = IResNet(spec, blocks=1, hidden_sizes=(4,), channels=4, **settings)
    assert type(model) is kind
    assert {c for c in (HasLogProb, HasElbo, HasLogWeights, HasLogProbEstimate) if isinstance(model, c)} == capabilities
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert type(again) is kind
    assert torch.equal(again.sample(3, generator=generator()), model.sample(3, generator=generator()))


def image_data(n: int = 30) -> DataSet:
    x = torch.randint(5, (n, *IMAGE.shape), generator=generator()).byte().numpy()
    split = Split(x, None)
    return DataSet("toy", IMAGE, {"train": split, "valid": split, "test": split}, "0" * 64)


@pytest.mark.parametrize("log_det", ["series", "roulette"])
def test_an_estimate_is_reported_as_one_with_its_terms_and_its_bias(log_det):
    torch.manual_seed(0)
    settings = {"blocks": 1, "channels": 4, "log_det": log_det, "evaluation_terms": 3, "probes": 2}
    model = IResNet(IMAGE, **settings).eval()
    data = image_data()
    protocol = {"seed": 0, "max_examples": None, "k": 5, "ais": {}}
    how = {"split": "test", "rule": "best", "averaged": False, "device": torch.device("cpu")}
    found = Evaluator(data, protocol, **how).measure(model)
    assert {name for name in found if name.startswith(("log_", "elbo", "iw"))} == {
        "elbo_estimate", "elbo_estimate_bits_per_dim",
    }  # fmt: skip
    metric, details = found["elbo_estimate"]
    assert metric.kind == "estimate"
    assert metric.se is not None
    assert metric.se > 0
    assert (details["terms"], details["probes"], details["log_det"]) == (3, 2, log_det)
    kappas = [m.net.lipschitz() for m in model.modules() if isinstance(m, Residual)]
    bias = 16 * sum(-math.log(1 - kappa) - sum(kappa**k / k for k in (1, 2, 3)) for kappa in kappas)
    assert len(kappas) == 2
    if log_det == "series":
        assert metric.note == f"biased by at most {bias:.2g} nats"
        assert found["elbo_estimate_bits_per_dim"][0].note.endswith("bits/dim")
    else:
        assert metric.note is None
    name, objective = validation_objective(model, data, device=torch.device("cpu"))
    assert (name, objective.kind) == ("elbo_estimate", "estimate")


@pytest.mark.parametrize("log_det", ["exact", "series", "roulette"])
def test_images_go_through_two_scales_and_back(log_det):
    torch.manual_seed(0)
    model = IResNet(IMAGE, blocks=1, channels=4, log_det=log_det, evaluation_terms=8, probes=20).double()
    x = torch.randint(5, (20, *IMAGE.shape), generator=generator()).byte()
    model.initialise(Batch(x), generator())
    model.eval()
    z = model.encode(x)
    assert z.shape == (20, 16)
    assert torch.allclose(model.decode(z), x.double(), atol=1e-5)
    v = model.continuous(x[:2], generator=generator())
    whole = torch.autograd.functional.jacobian(lambda u: model._through(u[None], generator())[0][0], v[0])
    exact = torch.linalg.slogdet(whole.view(16, 16)).logabsdet.item()
    if log_det == "exact":
        assert model._through(v, None)[1][0].item() == pytest.approx(exact, abs=1e-8)
    else:
        with torch.no_grad():
            draws = torch.stack([model._through(v[:1], generator(seed))[1] for seed in range(40)])
        model_bias = 0.0 if log_det == "roulette" else model.estimate_bias()
        assert abs(draws.mean().item() - exact) < 4.5 * draws.std().item() / 40**0.5 + model_bias


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (PLANE, {"coefficient": 1.0}, "coefficient=1.0"),
        (PLANE, {"blocks": 0}, "blocks=0"),
        (IMAGE, {"scales": 4}, "halved 3 times"),
        (DataSpec((2, 3), "real"), {}, "images"),
        (DataSpec((4,), "counts"), {}, "counts"),
    ],
)
def test_wrong_arguments_are_explained(spec, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        IResNet(spec, **settings)
