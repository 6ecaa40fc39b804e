"""Planar and radial flows against autograd, quadrature, a linear-Gaussian model and the VAE without a flow."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.flow.planar_vae import Planar, PlanarVae, Radial
from dgmbench.models.vae.vae import PosteriorFlow, Vae

from .energies import require_that_length_helps

KINDS = {"planar": Planar, "radial": Radial}
BINARY = DataSpec((1, 3, 3), "binary")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def jacobian(flow: PosteriorFlow, z: Tensor, context: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda v: flow(v[None, None], context[None])[0][0, 0], z)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_log_determinant_of_each_example_and_draw_against_autograd(kind: str, scale: float) -> None:
    flow = KINDS[kind](4, 6)
    z, context = normal(3, 5, 4, seed=1), scale * normal(5, flow.context, seed=2)
    log_det = flow(z, context)[1]
    assert log_det.shape == (3, 5, 1), "not summed over the batch"
    for draw, example in itertools.product(range(3), range(5)):
        sign, expected = torch.linalg.slogdet(jacobian(flow, z[draw, example], context[example]))
        assert sign == 1, "a chain of increasing maps"
        assert log_det[draw, example, 0].item() == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_an_examples_map_depends_on_its_own_context_only(kind: str) -> None:
    flow = KINDS[kind](3, 4)
    z, context = normal(2, 5, 3), normal(5, flow.context)
    moved = context.clone()
    moved[2] += 1.0
    (a, log_a), (b, log_b) = flow(z, context), flow(z, moved)
    others = [0, 1, 3, 4]
    assert torch.equal(a[:, others], b[:, others])
    assert torch.equal(log_a[:, others], log_b[:, others])
    assert ((a[:, 2] - b[:, 2]).abs().amax(-1) > 1e-3).all()
    assert ((log_a[:, 2] - log_b[:, 2]).abs() > 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_maps_with_nothing_to_do_are_the_identity(kind: str) -> None:
    flow = KINDS[kind](3, 4)
    context = normal(5, flow.context).view(5, 4, -1)
    if kind == "planar":
        context[..., :3] = 0.0  # u
    else:
        context[..., -1] = 0.0  # beta
    z = normal(2, 5, 3, seed=1)
    image, log_det = flow(z, context.flatten(1))
    assert torch.allclose(image, z, atol=1e-12)
    assert log_det.abs().max() < 1e-12


@pytest.mark.parametrize("product", [-800.0, -1.0, 0.0, 800.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planar_stays_invertible_and_finite(product: float, dtype: torch.dtype) -> None:
    flow = Planar(2, 1)
    w = torch.tensor([1.0, 2.0], dtype=dtype)
    context = torch.cat([product * w / 5, w, torch.tensor([0.3], dtype=dtype)])[None].requires_grad_()
    z = torch.linspace(-2, 2, 41, dtype=dtype)[:, None, None] * w / 5**0.5  # across the plane
    image, log_det = flow(z, context)
    u, along, *_ = flow.parameters_of(context)
    assert (u * along).sum().item() >= -1 - 1e-6
    assert torch.isfinite(image).all()
    assert torch.isfinite(log_det).all()
    assert ((image[:, 0] @ w).diff() >= 0).all(), "increasing across the plane, hence one to one"
    log_det.sum().backward()
    assert torch.isfinite(context.grad).all()  # type: ignore[arg-type]


def test_planar_with_no_direction_is_harmless() -> None:
    flow = Planar(3, 2)
    context = torch.zeros(1, flow.context)
    context[0, :3] = 5.0  # u of a map whose w is zero
    context.requires_grad_()
    image, log_det = flow(torch.ones(1, 1, 3), context)
    (image.sum() + log_det.sum()).backward()
    assert torch.isfinite(context.grad).all()  # type: ignore[arg-type]
    assert log_det.abs().max() < 1e-6


@pytest.mark.parametrize(("alpha", "total"), [(-800.0, -800.0), (800.0, -1600.0), (0.0, 800.0), (-60.0, 0.0)])
def test_radial_stays_invertible_and_finite(alpha: float, total: float) -> None:
    flow = Radial(2, 1)
    context = torch.tensor([[0.5, -0.5, alpha, total - alpha]], requires_grad=True)
    direction = torch.tensor([0.6, 0.8])
    z = torch.tensor([0.5, -0.5]) + torch.linspace(0, 3, 31)[:, None, None] * direction  # from the centre outwards
    image, log_det = flow(z, context)
    assert torch.isfinite(image).all()
    assert torch.isfinite(log_det).all()
    assert ((image[:, 0] @ direction).diff() >= 0).all(), "increasing along a ray, hence one to one"
    log_det.sum().backward()
    assert torch.isfinite(context.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_density_of_the_image_integrates_to_one(kind: str) -> None:
    """E_q[1 in a cell / q] is the cell's area, whatever q is."""
    flow = KINDS[kind](2, 3)
    context = 1.5 * normal(1, flow.context, seed=3)
    z = normal(200_000, 1, 2, seed=4)
    image, log_det = flow(z, context)
    log_q = -0.5 * z.square().sum(-1) - math.log(2 * math.pi) - log_det[..., 0]
    centre, width = image[:, 0].median(0).values, 0.4
    inside = ((image[:, 0] - centre).abs() < width).all(1)
    weights = torch.where(inside, (-log_q[:, 0]).exp(), torch.zeros(()).double())
    error = weights.std().item() / len(weights) ** 0.5
    assert abs(weights.mean().item() - (2 * width) ** 2) < 4 * error
    assert error < 0.02


# --- the energies of the paper's table 1 ----------------------------------------------------------------------------


def test_long_flows_fit_the_papers_energies_better_than_short_ones() -> None:
    require_that_length_helps(Planar, updates=300)


# --- the VAE --------------------------------------------------------------------------------------------------------


def scaled(vae: Vae, factor: float = 1.5) -> Vae:
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(factor)
    return vae


def images() -> Tensor:
    return torch.tensor(list(itertools.product((0, 1), repeat=9)), dtype=torch.uint8).reshape(-1, 1, 3, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_maps_are_the_vae_bit_for_bit(kind: str) -> None:
    settings = {"hidden_sizes": (8,), "latent": 2}
    torch.manual_seed(0)
    vae = Vae(BINARY, **settings)
    torch.manual_seed(0)
    without = PlanarVae(BINARY, flow=kind, length=0, annealing=0, **settings)
    x = images()[::7]
    assert torch.equal(vae.log_weights(x, 3, generator=generator()), without.log_weights(x, 3, generator=generator()))
    assert torch.allclose(vae.elbo(x, generator=generator()), without.elbo(x, generator=generator()), atol=1e-5)
    assert torch.equal(vae.encode(x), without.encode(x))
    assert torch.equal(vae.sample(5, generator=generator()), without.sample(5, generator=generator()))
    expected, logs = vae.loss("model", Batch(x), generator())
    loss, others = without.loss("model", Batch(x), generator())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert {k: v.item() for k, v in others.items()} == pytest.approx({k: v.item() for k, v in logs.items()}, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_elbo_is_the_mean_log_weight_and_weights_average_to_the_probability(kind: str) -> None:
    torch.manual_seed(1)
    vae = scaled(PlanarVae(BINARY, flow=kind, length=3, hidden_sizes=(8,), latent=2).double())
    vae.encoder[-1].bias[2:4] = 0.5  # a posterior wider than the prior keeps the weights' variance finite
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    nodes = torch.cartesian_prod(axis, axis)
    x = images()[::31]
    log_joint = vae.observation.log_prob(vae.decoder(nodes)[:, None], x) - 0.5 * nodes.square().sum(1)[:, None]
    exact = log_joint.logsumexp(0) - math.log(2 * math.pi) + 2 * math.log(0.1)
    log_w = vae.log_weights(x, 4000, generator=generator())
    w = (log_w - exact).exp()
    assert ((w.mean(0) - 1).abs() < 5 * w.std(0) / 4000**0.5).all()
    elbo = torch.stack([vae.elbo(x, generator=generator(seed)) for seed in range(400)])
    error = (elbo.var(0) / 400 + log_w.var(0) / 4000).sqrt()
    assert ((elbo.mean(0) - log_w.mean(0)).abs() < 5 * error).all()
    assert (elbo.mean(0) < exact + 4 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bound_stays_below_the_evidence_of_a_linear_gaussian_model(kind: str) -> None:
    """And training closes the gap as far as a Gaussian does: W W' is not diagonal, so that the flow has work to do."""
    torch.manual_seed(0)
    weight = torch.tensor([[1.5, 1.0], [0.0, 0.6], [0.8, -0.4]])
    vae = PlanarVae(DataSpec((3,), "real"), flow=kind, length=4, hidden_sizes=(), latent=2, sigma=0.5, annealing=0)
    decoder = vae.decoder[0]
    assert isinstance(decoder, nn.Linear)
    with torch.no_grad():
        decoder.weight.copy_(weight)
        decoder.bias.zero_()
    evidence = MultivariateNormal(torch.zeros(3), weight @ weight.T + 0.25 * torch.eye(3))
    x = evidence.sample((200,))
    gaps = []
    optimiser = torch.optim.Adam(vae.encoder.parameters(), lr=0.03)
    for update in range(201):
        if update % 100 == 0:
            with torch.no_grad():
                gap = (evidence.log_prob(x) - vae.log_weights(x, 200, generator=generator(update))).mean(1)
            gaps.append(gap.mean().item())
            assert gap.mean() > -4 * gap.std() / 200**0.5
        optimiser.zero_grad()
        vae.loss("model", Batch(x), generator(update))[0].backward()
        optimiser.step()
    assert gaps[0] > 1.0
    assert gaps[-1] < 0.25 * gaps[0]


def test_annealing_by_hand() -> None:
    torch.manual_seed(0)
    vae = scaled(PlanarVae(BINARY, length=2, hidden_sizes=(8,), latent=2, annealing=4, first_beta=0.1, samples=5))
    batch = Batch(images())
    for beta in (0.1, 0.35, 0.6, 0.85, 1.0, 1.0):
        before = vae.step.clone()
        loss, logs = vae.loss("model", batch, generator())
        assert torch.equal(vae.step, before), "the loss changes no state"
        q = vae._draw(batch.x, 5, generator())
        elbo = vae._log_likelihood(batch.x, q.z).mean() - vae._kl(q).sum(1).mean()
        assert logs["elbo"].item() == pytest.approx(elbo.item(), abs=1e-5), "the true bound at any beta"
        # E[log q] and E[log p(z)] from the same draws, with the Gaussian's own moments in place of the draws'
        entropy = (q.log_sigma + 0.5 * math.log(2 * math.pi) + 0.5).sum(1).mean() + q.log_det.mean(0).sum(1).mean()
        moments = (q.mean.square() + (2 * q.log_sigma).exp() - q.start.square().mean(0) + q.z.square().mean(0)).sum(1)
        log_prior = -0.5 * moments.mean() - math.log(2 * math.pi)
        wanted = -(beta * (logs["reconstruction"] + log_prior) + entropy)
        constant = (1 - beta) * math.log(2 * math.pi)  # log p(z) is taken up to its constant
        assert loss.item() == pytest.approx((wanted + constant).item(), abs=1e-4)
        vae.after_step("model", batch, generator())
    assert vae.state_dict()["step"].item() == 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_and_network(kind: str) -> None:
    torch.manual_seed(0)
    specs = {"mlp": DataSpec((4,), "real"), "conv": DataSpec((3, 8, 8), "discrete", 17), "resnet": BINARY}
    for net, spec in specs.items():
        vae = PlanarVae(spec, flow=kind, net=net, length=2, hidden_sizes=(8,), channels=4, latent=3)
        x = torch.randn(2, 4) if spec.kind == "real" else torch.randint(spec.levels or 2, (2, *spec.shape)).byte()
        vae.loss("model", Batch(x), generator())[0].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vae.parameters())
        assert vae.sample(2).shape == vae.reconstruct(x).shape == vae.decode(vae.encode(x)).shape == x.shape


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"length": -1}, "length=-1"),
        ({"annealing": -1}, "annealing=-1"),
        ({"first_beta": 0.0}, "first_beta=0.0"),
        ({"latent": 0}, "latent=0"),
    ],
)
def test_wrong_arguments_are_explained(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PlanarVae(BINARY, **settings)
