"""The factored three-way RBM: its bits summed out, Hamiltonian chains against quadrature, constraints, and filters."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from dgmbench.data.natural_patches import NaturalPatches
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import CD, FPCD, PCD, PT, Estimator
from dgmbench.models.boltzmann.factored_3way_rbm import Factored3WayRbm
from dgmbench.models.boltzmann.score_matching import ScoreMatching
from dgmbench.models.contract import HasUnnormalisedElbo, HasUnnormalisedLogProb
from dgmbench.nn.hmc import ScoredDensity, at, leapfrog

PLANE = DataSpec((2,), "real")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(spec: DataSpec = PLANE, *, filters: int = 4, covariances: int = 3, **settings: object) -> Factored3WayRbm:
    """In float64, with random parameters that meet the constraints."""
    torch.manual_seed(0)
    model = Factored3WayRbm(spec, filters=filters, covariances=covariances, leapfrog_steps=5, **settings)  # type: ignore[arg-type]
    model, g = model.double(), seeded(1)
    with torch.no_grad():
        for p in (model.visible_bias, model.log_precision, model.covariance_bias):
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        model.pools.copy_(-torch.rand(model.pools.shape, generator=g, dtype=torch.float64))
    return model


def energy(model: Factored3WayRbm, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h) of pairs, by loops over filters, units and dimensions."""
    value = -h @ model.covariance_bias - v @ model.visible_bias + 0.5 * v.square() @ model.log_precision.exp()
    for f, k in itertools.product(*map(range, model.pools.shape)):
        value = value - (v @ model.filters[:, f]).square() * model.pools[f, k] * h[:, k]
    return value


def bits(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def grid(reach: float = 9.0, points: int = 300) -> tuple[Tensor, float]:
    """Points of the plane, and the area of each."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float((axis[1] - axis[0]).square())


def test_the_free_energy_sums_the_bits_out() -> None:
    model = make(DataSpec((3,), "real"))
    v = torch.randn(6, 3, generator=seeded(), dtype=torch.float64)
    each = torch.stack([-energy(model, v, h.expand(6, -1)) for h in bits(3)])
    now = model.couplings()
    torch.testing.assert_close(now.free_energy(v), -each.logsumexp(0))
    expected = torch.einsum("zn,zk->nk", each.softmax(0), bits(3))
    torch.testing.assert_close(model.encode(model.continuous(v)), expected)
    point = at(v, lambda z: -now.free_energy(z))
    value, gradient = now.score(v)
    torch.testing.assert_close(value, point.value)
    torch.testing.assert_close(gradient, point.gradient)


def test_log_z_is_that_of_quadrature_and_p_of_v_given_bits_gaussian() -> None:
    model = make()
    v, area = grid()
    now = model.couplings()
    with torch.no_grad():
        integral = (-now.free_energy(v)).logsumexp(0) + np.log(area)
        found = model.annealing_path().exact_log_partition()
        assert found is not None
        assert float(found) == pytest.approx(float(integral), abs=1e-6)
        h = bits(3)
        _, mean, covariance = now.given_hidden(h, torch.zeros(8, 0, dtype=torch.float64))
        for row in range(8):
            log_p = -energy(model, v[::97], h[row].expand(len(v[::97]), -1))
            normal = MultivariateNormal(mean[row], covariance[row]).log_prob(v[::97])
            assert (log_p - normal).std() < 1e-9
    assert model.annealing_path().log_base_partition() == 0
    big = make(covariances=21)
    assert big.annealing_path().exact_log_partition() is None


def test_moves_can_be_taken_back_and_their_energy_error_is_of_the_second_order() -> None:
    model, g = make(), seeded()
    target = ScoredDensity(model.couplings().score)
    z, momentum = (torch.randn(64, 2, generator=g, dtype=torch.float64) for _ in range(2))
    start, errors = target.at(z), []
    for halvings in range(3):
        step = torch.full((64, 1), 0.05 / 2**halvings, dtype=torch.float64)
        end, p = leapfrog(target, start, momentum, step, 8 * 2**halvings)
        back, again = leapfrog(target, end, -p, step, 8 * 2**halvings)
        torch.testing.assert_close(back.z, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(again, -momentum, rtol=0, atol=1e-9)
        errors.append(float((target.hamiltonian(end, p) - target.hamiltonian(start, momentum)).abs().mean()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_chains_have_the_mean_and_covariance_of_quadrature() -> None:
    model, n = make(sample_steps=40), 8000
    with torch.no_grad():
        model.dynamics.log_step.fill_(np.log(0.35))
        v, _ = grid()
        p = torch.softmax(-model.couplings().free_energy(v), 0)
        found = model.flatten(model.sample(n, generator=seeded()).double())
    mean = p @ v
    second = torch.einsum("n,ni,nj->ij", p, v, v)
    products = found[:, :, None] * found[:, None, :]
    assert ((found.mean(0) - mean).abs() < 4 * found.std(0) / n**0.5).all()
    assert ((products.mean(0) - second).abs() < 4 * products.std(0) / n**0.5).all()


def test_constraints_hold_after_every_step_and_step_sizes_follow_acceptance() -> None:
    torch.manual_seed(0)
    model = Factored3WayRbm(PLANE, filters=5, covariances=3, estimator=PCD(chains=50), leapfrog_steps=5)
    g, x = seeded(), torch.randn(50, 2, generator=seeded(3))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    model.initialise(Batch(x), g)
    reached_zero, steps = False, []
    for _ in range(40):
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        reached_zero |= bool((model.pools > 0).any())
        model.after_step("model", Batch(x), g)
        assert (model.pools <= 0).all()
        torch.testing.assert_close(model.filters.norm(dim=0), torch.ones(5))
        steps.append(float(model.dynamics.log_step.exp()))
    assert reached_zero, "nothing was to be constrained"
    assert steps[0] > 0.1, "the first moves are short, nearly all accepted"
    assert steps[-1] > 1.5 * steps[0]
    model.eval()
    before = model.dynamics.log_step.clone()
    model.couplings().gibbs(torch.zeros(4, 2), 3, g)
    model.dynamics.absorb()
    assert model.dynamics.log_step == before


def octave_share(filters: Tensor) -> Tensor:
    """The largest share of the power of each of (n, s, s) in one octave of spatial frequency."""
    side = filters.shape[1]
    power = torch.fft.fft2(filters).abs().square()
    f = torch.fft.fftfreq(side) * side
    radius = (f[:, None].square() + f.square()).sqrt()
    centres = 2 ** torch.arange(0, np.log2(side / 2) + 0.1, 0.25)
    shares = [(power * ((radius >= c / 2**0.5) & (radius <= c * 2**0.5))).sum((1, 2)) for c in centres]
    return (torch.stack(shares) / power.sum((1, 2))).max(0).values


def test_filters_of_natural_patches_become_band_pass() -> None:
    """Patches of equal contrast; filters as they see white pixels, where those of random directions have all alike."""
    x = torch.from_numpy(np.asarray(NaturalPatches(size=8).read(Path()).parts["train"].x)).flatten(1).float()
    g = seeded(1)
    x = x + torch.rand(x.shape, generator=g)
    x = x - x.mean(1, keepdim=True)
    contrast = x.std(1, keepdim=True)
    x = (x / contrast)[contrast[:, 0] > 15] + 0.05 * torch.randn(int((contrast > 15).sum()), 64, generator=g)
    torch.manual_seed(0)
    spec = DataSpec((64,), "real")
    model = Factored3WayRbm(spec, filters=64, covariances=64, estimator=PCD(chains=100), leapfrog_steps=8)
    model.initialise(Batch(x), g)

    def white() -> Tensor:
        directions = torch.nn.functional.normalize(model.whitening, dim=0)
        return (directions @ model.filters.detach()).t().view(-1, 8, 8)

    first = octave_share(white())
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(350):
        batch = Batch(x[torch.randint(len(x), (100,), generator=g)])
        optimiser.zero_grad()
        model.loss("model", batch, g)[0].backward()
        optimiser.step()
        model.after_step("model", batch, g)
    last = octave_share(white())
    error = ((first.var() + last.var()) / 64).sqrt()
    assert last.mean() - first.mean() > 4 * error
    assert last.median() > 0.75
    constant = white().sum((1, 2)).square() / 64  # share of the mean in a filter of unit norm
    assert constant.median() < 0.01


@pytest.mark.parametrize(
    ("estimator", "what"),
    [(FPCD(), "variational_free_energy"), (PT(), "sweep"), (ScoreMatching(), "visible_units")],
)
def test_estimators_that_need_two_sides_are_refused(estimator: Estimator, what: str) -> None:
    with pytest.raises(UserError, match=rf"{what} .*factored_3way_rbm.*model/estimator=pcd"):
        Factored3WayRbm(PLANE, filters=2, covariances=2, estimator=estimator)


def test_contrastive_divergence_starts_at_the_data_and_levels_have_a_bound() -> None:
    model, g = make(estimator=CD(k=2)), seeded()
    x = torch.randn(30, 2, generator=g, dtype=torch.float64)
    loss, logs = model.loss("model", Batch(x), g)
    assert float(logs["free_energy_data"]) == pytest.approx(model.couplings().free_energy(x).mean().item())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    levels = make(DataSpec((1, 1, 2), "discrete", levels=4))
    assert isinstance(levels, HasUnnormalisedElbo)
    assert not isinstance(levels, HasUnnormalisedLogProb)
    assert isinstance(model, HasUnnormalisedLogProb)


def test_bits_are_refused_with_a_pointer() -> None:
    with pytest.raises(UserError, match=r"factored_3way_rbm models real data or grey levels.*model=rbm"):
        Factored3WayRbm(DataSpec((6,), "binary"))
    with pytest.raises(UserError, match=r"model.filters=0 must be at least 1"):
        Factored3WayRbm(PLANE, filters=0)
