"""NICE: Jacobian, inverse, quadrature in the plane for both priors, and the dequantisation bound of one pixel."""

import math

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.flow.nice import DiagonalScaling, Nice


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(spec: DataSpec, **settings) -> Nice:
    """A small model in double precision, away from the identity at which it starts."""
    torch.manual_seed(0)
    model = Nice(spec, **{"hidden_sizes": (8,), **settings}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("shape", [(2,), (5,), (2, 3, 3)], ids=str)
def test_log_determinant_equals_autograd_slogdet_and_inverse_round_trip(shape):
    model = small(DataSpec(shape, "real"))
    x = torch.randn(3, *shape, dtype=torch.float64, generator=generator())
    z, log_det = model.bijection(x)
    assert z.shape == (3, model.spec.dim)
    assert torch.allclose(model.bijection.inverse(z)[0], x, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.bijection(v[None])[0][0], x[0])
    exact = torch.linalg.slogdet(jacobian.view(model.spec.dim, -1)).logabsdet
    assert torch.allclose(log_det, exact.expand(3), atol=1e-10)
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, DiagonalScaling)).log_scale.zero_()
    assert torch.equal(model.bijection(x)[1], torch.zeros(3, dtype=torch.float64)), "shifts keep the volume"


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
@torch.no_grad()
def test_density_integrates_to_one_in_the_plane_and_is_that_of_its_prior(prior):
    model = small(DataSpec((2,), "real"), prior=prior)
    u = torch.linspace(-6, 6, 501, dtype=torch.float64)  # even in arsinh x: fine in the middle, out to 200
    points = torch.cartesian_prod(u.sinh(), u.sinh())
    density = model.log_prob(points).exp() * torch.outer(u.cosh(), u.cosh()).flatten() * (u[1] - u[0]) ** 2
    assert density.sum().item() == pytest.approx(1.0, abs=1e-4)
    z = model.encode(points[::5000])
    if prior == "gaussian":
        base = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    else:
        base = -2 * torch.log(2 * torch.cosh(z / 2)).sum(1)  # the logistic density is 1 / (4 cosh^2(z / 2))
    exact = base + model.bijection(points[::5000])[1]
    assert torch.allclose(model.log_prob(points[::5000]), exact, atol=1e-9)
    n, inside = 20_000, points.norm(dim=1) < 1.5
    share = (model.sample(n, generator=generator()).norm(dim=1) < 1.5).double().mean().item()
    mass = density[inside].sum().item()
    assert abs(share - mass) < 4 * (mass / n) ** 0.5 + 1e-3


@torch.no_grad()
def test_dequantised_bound_is_below_the_exact_log_mass_of_two_pixels_by_quadrature():
    """NICE needs two dimensions: a pixel pair of 4 levels, its 16 masses by quadrature over their cells."""
    model, m = small(DataSpec((2,), "discrete", levels=4)), 200
    axis = (torch.arange(4 * m, dtype=torch.float64) + 0.5) / m
    z, log_det = model.bijection(torch.cartesian_prod(axis, axis))
    density = (-2 * torch.log(2 * torch.cosh(z / 2)).sum(1) + log_det).exp()
    mass = density.view(4, m, 4, m).mean((1, 3))
    assert mass.sum().item() == pytest.approx(1.0, abs=2e-3)
    x = torch.cartesian_prod(torch.arange(4), torch.arange(4)).byte()
    draws = torch.stack([model.elbo(x, generator=generator(i)) for i in range(400)])
    error = draws.std(0) / 20
    assert (draws.mean(0) < mass.flatten().log() + 4 * error).all()
    assert (draws.mean(0) < mass.flatten().log() - 1e-4).any(), "Jensen's gap"
    weights = model.log_weights(x, 4000, generator=generator(1)).exp()
    assert ((weights.mean(0) - mass.flatten()).abs() < 4.5 * weights.std(0) / 4000**0.5 + 2e-3 * mass.flatten()).all()
    counts = torch.bincount((model.sample(50_000, generator=generator()).long() @ torch.tensor([4, 1])), minlength=16)
    exact = mass.flatten() / mass.sum()
    assert ((counts / 50_000 - exact).abs() < 4.5 * (exact / 50_000).sqrt() + 1e-3 * exact).all()


def test_all_dimensions_influence_each_other():
    model = small(DataSpec((6,), "real"), couplings=3)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: model.bijection(v[None])[0][0], torch.randn(6, dtype=torch.float64, generator=generator())
    )
    assert (jacobian.abs() > 1e-12).all()


def test_training_moves_the_scales_apart():
    """The learned s_i say how little each dimension varies: 1 / exp(s_i) falls with the data's deviation."""
    torch.manual_seed(0)
    model = Nice(DataSpec((2,), "real"), prior="gaussian", hidden_sizes=(8,))
    x = torch.randn(500, 2, generator=generator()) * torch.tensor([3.0, 0.2])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(300):
        optimiser.zero_grad()
        model.loss("model", Batch(x), generator(step))[0].backward()
        optimiser.step()
    entropy = sum(0.5 * math.log(2 * math.pi * math.e) + math.log(s) for s in (3.0, 0.2))
    assert model.log_prob(x).mean().item() == pytest.approx(-entropy, abs=0.1)
    scale = next(m for m in model.modules() if isinstance(m, DiagonalScaling)).log_scale
    assert scale[1] > scale[0] + 1


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (DataSpec((1,), "real"), {}, "one dimension"),
        (DataSpec((2,), "real"), {"couplings": 0}, "couplings=0"),
        (DataSpec((2,), "real"), {"hidden_sizes": (8, 0)}, "hidden_sizes"),
        (DataSpec((4,), "counts"), {}, "counts"),
    ],
)
def test_wrong_arguments_are_explained(spec, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Nice(spec, **settings)
