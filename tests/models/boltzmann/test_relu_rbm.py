"""The RBM of rectified units against many bits with shared weights, and by quadrature."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.estimators import CD, PCD
from dgmbench.models.boltzmann.relu_rbm import BinaryReluRbm, ReluRbm, Stepped
from dgmbench.models.contract import HasUnnormalisedElbo, HasUnnormalisedLogProb
from dgmbench.nn.rectified_units import Rectified, SteppedSigmoid
from dgmbench.nn.unit_layers import BERNOULLI

PLANE, BITS = DataSpec((2,), "real"), DataSpec((4,), "binary")
COPIES = torch.arange(50, dtype=torch.float64) + 0.5  # offsets of 50 bits


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = PLANE, hidden: int = 3, **settings: object) -> ReluRbm:
    torch.manual_seed(0)
    model = ReluRbm(spec, hidden=hidden, sample_steps=40, **settings).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for k, p in enumerate((model.weight, model.visible_bias, model.hidden_bias)):
            p.copy_(0.6 * torch.randn(p.shape, generator=seeded(k), dtype=torch.float64))
        if spec.kind != "binary":
            model.weight.mul_(0.8 / torch.linalg.matrix_norm(model.weight, 2))
            model.log_sigma.copy_(torch.tensor([-0.3, 0.4]))
            model.mean.copy_(torch.tensor([1.5, 2.0]))
            model.deviation.copy_(torch.tensor([0.9, 1.3]))
    return model


def fifty(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of how many of 50 bits of log-odds x - 1/2, x - 3/2, ... are on."""
    p = (x[:, None] - COPIES).sigmoid()
    return p.sum(1), (p * (1 - p)).sum(1)


def normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(0, N(x, sigmoid(x))), in closed form."""
    s = x.sigmoid().sqrt()
    z = (x / s).numpy()
    upper, density = torch.from_numpy(stats.norm.cdf(z)), torch.from_numpy(stats.norm.pdf(z))
    mean = x * upper + s * density
    return mean, (x.square() + s.square()) * upper + x * s * density - mean.square()


def test_the_sampler_has_the_rectified_normals_mean() -> None:
    x, n = torch.linspace(-4, 30, 35, dtype=torch.float64), 20_000
    drawn = Rectified().sample(x.expand(n, -1), seeded())
    mean, variance = normal(x)
    assert ((drawn.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert float(drawn.min()) == 0.0


def test_fifty_bits_are_softplus_and_agree_with_the_normal_from_three_upwards_only() -> None:
    x = torch.linspace(-4, 30, 500, dtype=torch.float64)
    mean, variance = fifty(x)
    assert float((mean - torch.nn.functional.softplus(x)).abs().max()) < 0.02
    assert float((variance - x.sigmoid()).abs().max()) < 0.01
    torch.testing.assert_close(SteppedSigmoid().mean(x), mean, rtol=0, atol=1e-7)
    high = x >= 3
    for one, other in zip(normal(x), (mean, variance), strict=True):
        assert float((one - other)[high].abs().max()) < 0.05
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(normal(zero)[0]) == pytest.approx(0.282, abs=1e-3)
    assert float(fifty(zero)[0]) == pytest.approx(0.683, abs=1e-3)


def many_bits(model: ReluRbm, copies: int = 50) -> Couplings:
    """The machine with ``copies`` bits of shared weights in place of each hidden unit."""
    now = model.couplings()
    offsets = COPIES[:copies].to(now.weight).repeat(now.weight.shape[1])
    bias = now.hidden_bias.repeat_interleave(copies) - offsets
    return Couplings(now.weight.repeat_interleave(copies, 1), now.visible_bias, bias, now.visible_units, BERNOULLI)


@pytest.mark.parametrize("spec", [PLANE, BITS])
@torch.no_grad()
def test_the_free_energy_is_that_of_many_bits_with_shared_weights(spec: DataSpec) -> None:
    model = make(spec)
    v = torch.randn(30, spec.dim, generator=seeded(7), dtype=torch.float64)
    v = (v > 0).double() if spec.kind == "binary" else 2 * v
    torch.testing.assert_close(model.free_energy(v), many_bits(model).free_energy(v), rtol=0, atol=1e-7)
    eta = model.couplings().hidden_logits(v)
    counts = many_bits(model).hidden_logits(v).sigmoid().view(30, 3, 50).sum(2)
    torch.testing.assert_close(model.couplings().hidden_units.mean(eta), counts, rtol=0, atol=1e-7)


@torch.no_grad()
def test_it_has_a_density_while_the_norm_is_below_one_and_annealing_finds_its_log_z() -> None:
    model = make()
    axis = torch.linspace(-25.0, 30.0, 300, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    by_quadrature = float(model.log_prob_unnormalised(grid).logsumexp(0) + 2 * (axis[1] - axis[0]).log())
    found = bracket(model.annealing_path(), chains=300, temperatures=100, burn_in=50, generator=seeded())
    low, high = found.interval()
    assert by_quadrature - 0.3 < low < by_quadrature < high < by_quadrature + 0.3
    # along the first singular vector, whose features all grow, F falls without end if the norm is above 1
    model.weight.copy_(torch.tensor([[1.2, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    far = torch.tensor([[50.0, 0.0], [100.0, 0.0]], dtype=torch.float64)
    assert float(model.free_energy(far).diff()) < -1000


@torch.no_grad()
def test_samples_have_the_moments_of_the_quadrature() -> None:
    model, n = make(), 4000
    axis = torch.linspace(-25.0, 30.0, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    p = model.log_prob_unnormalised(grid).softmax(0)
    mean = p @ grid
    variance = p @ (grid - mean).square()
    x = model.sample(n, generator=seeded()).double()
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    fourth = p @ (grid - mean) ** 4
    assert ((x.var(0) - variance).abs() < 4.5 * ((fourth - variance.square()) / n).sqrt()).all()


def test_singular_values_above_the_bound_are_cut_off_and_the_others_stay() -> None:
    model = make(max_norm=0.5, estimator=PCD(chains=10))
    before = torch.linalg.svdvals(model.weight.detach())
    model.after_step("model", Batch(torch.zeros(3, 2)), seeded())
    after = torch.linalg.svdvals(model.weight.detach())
    assert float(before.max()) > 0.7 > 0.5 > float(before.min())
    torch.testing.assert_close(after, before.clamp(max=0.5))
    wide = ReluRbm(PLANE, hidden=4, weight_std=10.0)
    assert float(torch.linalg.matrix_norm(wide.weight.detach(), 2)) == pytest.approx(0.95, abs=1e-5)


def test_the_spec_says_which_machine_it_is_and_copies_stay_what_they_are() -> None:
    assert isinstance(ReluRbm(PLANE, hidden=2), HasUnnormalisedLogProb)
    levels = ReluRbm(DataSpec((1, 1, 2), "discrete", levels=4), hidden=2)
    assert isinstance(levels, ReluRbm)
    assert isinstance(levels, HasUnnormalisedElbo)
    bits = ReluRbm(BITS, hidden=2)
    assert type(bits) is BinaryReluRbm
    for model in (levels, bits):
        assert isinstance(model, Stepped)
        assert type(copy.deepcopy(model)) is type(model)
        assert isinstance(model.couplings().hidden_units, Rectified)
        assert type(model.annealing_path().couplings.hidden_units) is SteppedSigmoid
    assert "log_sigma" not in dict(bits.named_parameters())


def test_it_learns_in_the_bounds() -> None:
    """Points on two spots: the validation log-likelihood, log Z by quadrature, rises above the Gaussian's."""
    g = seeded()
    torch.manual_seed(0)
    x = 0.4 * torch.randn(400, 2, generator=g) + 2 * torch.randint(2, (400, 1), generator=g)
    model = ReluRbm(PLANE, hidden=6, estimator=CD(k=1))
    model.initialise(Batch(x), g)
    axis = torch.linspace(-6.0, 8.0, 150)
    grid = torch.cartesian_prod(axis, axis)

    @torch.no_grad()
    def log_likelihood() -> float:
        log_z = model.log_prob_unnormalised(grid).double().logsumexp(0) + 2 * math.log(float(axis[1] - axis[0]))
        return float(model.log_prob_unnormalised(x).mean() - log_z)

    before, optimiser = log_likelihood(), torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(120):
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        model.after_step("model", Batch(x), g)
        assert float(torch.linalg.matrix_norm(model.weight.detach(), 2)) <= 0.95 + 1e-5
    assert log_likelihood() > before + 0.3


def test_bad_values_are_refused() -> None:
    with pytest.raises(UserError, match="max_norm"):
        ReluRbm(PLANE, max_norm=1.5)
    with pytest.raises(UserError, match="relu_rbm models real data, grey levels or bits, but these are counts 3"):
        ReluRbm(DataSpec((3,), "counts"))
