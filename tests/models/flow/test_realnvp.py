"""Real NVP: Jacobians, inverse, quadrature in the plane, the dequantisation bound, and the multi-scale shapes."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import HasElbo, HasLogProb, HasLogWeights
from dgmbench.models.flow.realnvp import DequantisedRealNvp, RealNvp, halvings
from dgmbench.nn.bijections import MultiScale
from dgmbench.nn.couplings import AffineCoupling

IMAGE, PLANE = DataSpec((1, 8, 8), "discrete", levels=17), DataSpec((2,), "real")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(spec: DataSpec, **settings) -> RealNvp:
    """A small model in double precision, away from the identity at which it starts."""
    torch.manual_seed(0)
    settings = {"channels": 4, "blocks": 1, "couplings": 4, "hidden_sizes": (8,), **settings}
    model = RealNvp(spec, **settings).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 4, 6)], ids=str)
def test_log_determinant_equals_autograd_slogdet_and_inverse_round_trip(shape):
    model = small(DataSpec(shape, "real"))
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator())
    z, log_det = model.bijection(x)
    assert z.shape == (2, model.spec.dim)
    assert torch.allclose(model.bijection.inverse(z)[0], x, atol=1e-9)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.bijection(v[None])[0][0], x[i])
        exact = torch.linalg.slogdet(jacobian.view(model.spec.dim, -1)).logabsdet.item()
        assert exact == pytest.approx(log_det[i].item(), abs=1e-8)
        base = torch.distributions.Normal(0, 1).log_prob(z[i]).sum().item()
        assert model.log_prob(x)[i].item() == pytest.approx(base + exact, abs=1e-8)
    assert (log_det[0] - log_det[1]).abs() > 1e-3


def trained(spec: DataSpec, x: Tensor, steps: int, **settings) -> RealNvp:
    torch.manual_seed(0)
    model, noise = RealNvp(spec, **settings), generator()
    model.initialise(Batch(x), noise)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        batch = Batch(x[torch.randint(len(x), (200,), generator=noise)])
        optimiser.zero_grad()
        model.loss("model", batch, noise)[0].backward()
        optimiser.step()
        with torch.no_grad():
            model.after_step("model", batch, noise)
    return model.eval()


@torch.no_grad()
def test_density_integrates_to_one_in_the_plane_and_samples_follow_it():
    angle = 2 * math.pi * torch.rand(2000, generator=generator(1))
    ring = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(2000, 2, generator=generator(2))
    with torch.enable_grad():
        model = trained(PLANE, ring, 100, hidden_sizes=(16, 16)).double()
    axis = torch.linspace(-6, 6, 481, dtype=torch.float64)
    density = model.log_prob(torch.cartesian_prod(axis, axis)).exp() * (axis[1] - axis[0]) ** 2
    assert density.sum().item() == pytest.approx(1.0, abs=1e-3)
    normal = torch.distributions.MultivariateNormal(ring.mean(0), ring.T.cov())
    assert model.log_prob(ring).mean() > normal.log_prob(ring).mean() + 0.3, "it learns more than two moments"
    samples = model.sample(20_000, generator=generator())
    inside = samples.norm(dim=1) < 1.5
    exact = density[torch.cartesian_prod(axis, axis).norm(dim=1) < 1.5].sum().item()
    assert abs(inside.double().mean().item() - exact) < 4 * (exact / 20_000) ** 0.5 + 1e-3


@pytest.mark.parametrize("levels", [2, 4])
@torch.no_grad()
def test_dequantised_bound_is_below_the_exact_log_mass_of_one_pixel(levels):
    """The mass of each level by quadrature over its cell; masses sum to one, and samples have them."""
    spec = DataSpec((1,), "discrete", levels=levels) if levels > 2 else DataSpec((1,), "binary")
    model = small(spec)
    for p in model.parameters():
        p.mul_(2.0)
    m = 20_000
    u = (torch.arange(levels * m, dtype=torch.float64) + 0.5) / m
    z, log_det = model.bijection(u[:, None])
    density = (torch.distributions.Normal(0, 1).log_prob(z).sum(1) + log_det).exp()
    mass = density.view(levels, m).mean(1)
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-4)
    x = torch.arange(levels, dtype=torch.uint8)[:, None]
    n = 20_000
    for level in range(levels):
        draws = model.elbo(x[level : level + 1].expand(n, -1), generator=generator())
        weights = model.log_weights(x[level : level + 1].expand(n // 10, -1), 10, generator=generator(1))
        many = weights.logsumexp(0) - math.log(10)
        exact, error = mass[level].log().item(), (draws.std() / n**0.5 + many.std() / (n // 10) ** 0.5).item()
        assert draws.mean().item() < many.mean().item() + 4 * error
        assert many.mean().item() < exact + 4 * error
        assert draws.mean().item() < exact - 1e-3
        assert abs(weights.exp().mean() - mass[level]) < 4.5 * weights.exp().std() / n**0.5
    counts = torch.bincount(model.sample(50_000, generator=generator()).flatten().long(), minlength=levels)
    assert ((counts / 50_000 - mass).abs() < 4 * (mass / 50_000).sqrt()).all()


@pytest.mark.parametrize(
    ("shape", "downscales", "parts"),
    [
        ((1, 8, 8), None, [(2, 4, 4), (2, 4, 4)]),
        ((3, 32, 32), 1, [(6, 16, 16), (6, 16, 16)]),  # CIFAR-10 in the paper: "downscale only once"
        ((3, 32, 32), None, [(6, 16, 16), (12, 8, 8), (24, 4, 4), (24, 4, 4)]),
        ((1, 28, 28), None, [(2, 14, 14), (4, 7, 7), (4, 7, 7)]),
        ((1, 3, 3), None, [(1, 3, 3)]),
    ],
)
def test_factored_out_shapes(shape, downscales, parts):
    model = RealNvp(DataSpec(shape, "real"), channels=2, blocks=0, downscales=downscales)
    scales = next(m for m in model.modules() if isinstance(m, MultiScale))
    assert list(scales.shapes) == parts
    assert sum(math.prod(part) for part in parts) == math.prod(shape)
    seen = []
    for level in scales.levels:
        level.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0].shape[1:], output[0].shape[1:])))
    z, _ = model.bijection(torch.randn(2, *shape))
    assert z.shape == (2, math.prod(shape))
    for i, (before, after) in enumerate(seen):
        assert math.prod(before) == math.prod(after)
        if i + 1 < len(seen):
            assert tuple(after[1:]) == parts[i][1:]
            assert after[0] == 2 * parts[i][0], "half of the channels leave"
            assert seen[i + 1][0] == (parts[i][0], *after[1:]), "the other half goes on"


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (6,)], ids=str)
def test_what_one_coupling_leaves_the_next_one_moves(shape):
    """Masks alternate within every row of couplings, so that each value is moved, and moves others, in two of them."""
    model = small(DataSpec(shape, "real"))
    left: list[tuple[tuple[int, ...], Tensor]] = []

    def see(_: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        left.append((tuple(inputs[0].shape), (output[0] == inputs[0]).all(0)))

    for module in model.modules():
        if isinstance(module, AffineCoupling):
            module.register_forward_hook(see)
    model.bijection(torch.randn(3, *shape, dtype=torch.float64, generator=generator()))
    pairs = [(a, b) for (one, a), (two, b) in pairwise(left) if one == two]
    assert len(pairs) == (3 if len(shape) == 1 else 7)
    assert all(torch.equal(a, ~b) for a, b in pairs)


def test_the_finest_part_leaves_first_and_does_not_see_the_rest_change():
    """A part factored out early is a function of its level only: later levels' parameters do not move it."""
    model = small(DataSpec((1, 8, 8), "real"))
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    scales = model.bijection.steps[0]
    before = model.bijection(x)[0]
    with torch.no_grad():
        for p in scales.levels[1].parameters():
            p.add_(0.5)
    after = model.bijection(x)[0]
    assert torch.equal(before[:, :32], after[:, :32])
    assert not torch.isclose(before[:, 32:], after[:, 32:]).any(dim=1).all()


def test_capabilities_follow_the_data():
    exact, bound = RealNvp(PLANE), RealNvp(IMAGE, channels=2)
    assert isinstance(exact, HasLogProb)
    assert not isinstance(exact, HasElbo | HasLogWeights)
    assert not isinstance(bound, HasLogProb)
    assert isinstance(bound, HasElbo)
    assert isinstance(bound, HasLogWeights)
    assert isinstance(bound, RealNvp)
    assert type(bound) is DequantisedRealNvp
    for model in (exact, bound):
        again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        assert type(again) is type(model)
        assert torch.equal(again.sample(3, generator=generator()), model.sample(3, generator=generator()))


def test_initialise_starts_normalisations_at_the_data_and_the_loss_is_the_density():
    x = 5 + 3 * torch.randn(500, 2, generator=generator())
    model = RealNvp(PLANE, hidden_sizes=(8,))
    model.initialise(Batch(x), generator())
    assert model.training
    z, _ = model.eval().bijection(x)
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=1e-3)
    assert torch.allclose(z.var(0), torch.ones(2), atol=1e-2)
    loss, logs = model.loss("model", Batch(x), generator())
    assert loss.item() == pytest.approx(-model.log_prob(x).mean().item(), rel=1e-6)
    assert logs["log_likelihood"].item() == pytest.approx(-loss.item())


SHAPES = [DataSpec((c, side, side), "discrete", levels=256) for c in (1, 3) for side in (8, 28, 32, 64)]


@pytest.mark.parametrize("spec", [*SHAPES, DataSpec((1, 5, 7), "binary")], ids=str)
def test_image_shapes(spec):
    model = RealNvp(spec, channels=2, blocks=1)
    x = torch.randint(spec.levels, (3, *spec.shape)).byte()
    model.initialise(Batch(x), generator())
    loss, _ = model.loss("model", Batch(x), generator())
    assert loss.isfinite()
    assert model.eval().elbo(x).shape == (3,)
    assert model.log_weights(x, 2).shape == (2, 3)
    s = model.sample(4)
    assert s.shape == (4, *spec.shape)
    assert s.dtype == torch.uint8
    assert int(s.max()) < spec.levels


def test_halvings():
    assert [halvings(*size) for size in ((32, 32), (28, 28), (64, 64), (3, 3), (2, 2))] == [
        (4, 3), (2, 2), (5, 4), (0, 0), (0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (IMAGE, {"downscales": 4}, "downscales=4"),
        (PLANE, {"couplings": 0}, "couplings=0"),
        (DataSpec((2, 3), "real"), {}, "images"),
        (DataSpec((4,), "counts"), {}, "counts"),
    ],
)
def test_wrong_arguments_are_explained(spec, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        RealNvp(spec, **settings)
