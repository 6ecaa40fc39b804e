"""Glow: Jacobians, quadrature, priors, the data-dependent start, classes, temperatures and recomputation."""

import math

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import HasElbo, HasLogProb, IsClassConditional
from dgmbench.models.flow.glow import Glow, squeezes
from dgmbench.nn.bijections import ActNorm, MultiScale, Recomputed
from dgmbench.nn.couplings import SplitCoupling
from dgmbench.nn.invertible_conv import InvertibleConv

IMAGE = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=3)
PLANE = DataSpec((2, 1, 1), "real")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(spec: DataSpec, *, amount: float = 0.15, **settings) -> Glow:
    """A small model in double precision, away from where it starts."""
    torch.manual_seed(0)
    model = Glow(spec, **{"steps": 2, "width": 4, **settings}).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(amount * torch.randn_like(p))
    return model


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("mixing", ["lu", "plain"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4)], ids=str)
def test_log_determinant_equals_autograd_slogdet_and_inverse_round_trip(shape, coupling, mixing):
    model = small(DataSpec(shape, "real"), coupling=coupling, mixing=mixing)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator())
    z, log_det = model.bijection(x)
    assert z.shape == (2, model.spec.dim)
    assert torch.allclose(model.bijection.inverse(z)[0], x, atol=1e-8)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: model.bijection(v[None])[0][0], x[i])
        exact = torch.linalg.slogdet(jacobian.view(model.spec.dim, -1)).logabsdet.item()
        assert exact == pytest.approx(log_det[i].item(), abs=1e-8)
    assert (log_det[0] - log_det[1]).abs() > 1e-4, "at least the split priors' scales depend on x"


@torch.no_grad()
def test_density_integrates_to_one_in_the_plane():
    model = small(PLANE, steps=4, width=8, amount=0.3)
    u = torch.linspace(-6, 6, 301, dtype=torch.float64)  # even in arsinh x: fine in the middle, out to 200
    points = torch.cartesian_prod(u.sinh(), u.sinh()).view(-1, 2, 1, 1)
    area = torch.outer(u.cosh(), u.cosh()).flatten() * (u[1] - u[0]) ** 2
    assert (model.log_prob(points).exp() * area).sum().item() == pytest.approx(1.0, abs=1e-3)


@torch.no_grad()
def test_dequantised_bound_is_below_the_exact_log_mass_of_one_pixel_of_two_channels():
    """4 levels of each channel; the 16 masses by quadrature over their cells."""
    model, m = small(DataSpec((2, 1, 1), "discrete", levels=4), amount=0.3), 100
    axis = (torch.arange(4 * m, dtype=torch.float64) + 0.5) / m
    v = torch.cartesian_prod(axis, axis).view(-1, 2, 1, 1)
    z, log_det = model.bijection(v)
    mean, sigma = model.base.mean[0], model.base.log_sigma[0].exp()
    density = (torch.distributions.Normal(mean, sigma).log_prob(z).sum(1) + log_det).exp()
    mass = density.view(4, m, 4, m).mean((1, 3)).flatten()
    assert mass.sum().item() == pytest.approx(1.0, abs=5e-3)
    x = torch.cartesian_prod(torch.arange(4), torch.arange(4)).byte().view(-1, 2, 1, 1)
    draws = torch.stack([model.elbo(x, generator=generator(i)) for i in range(300)])
    error = draws.std(0) / 300**0.5
    assert (draws.mean(0) < mass.log() + 4 * error).all()
    assert (draws.mean(0) < mass.log() - 1e-4).any()
    weights = model.log_weights(x, 3000, generator=generator(1)).exp()
    assert ((weights.mean(0) - mass).abs() < 4.5 * weights.std(0) / 3000**0.5 + 5e-3 * mass).all()


@pytest.mark.parametrize(
    ("shape", "levels", "parts"),
    [
        ((1, 8, 8), None, [(2, 4, 4), (8, 2, 2)]),
        ((3, 8, 8), 1, [(12, 4, 4)]),
        ((1, 28, 28), None, [(2, 14, 14), (8, 7, 7)]),
        ((3, 28, 28), None, [(6, 14, 14), (24, 7, 7)]),
        ((3, 32, 32), None, [(6, 16, 16), (12, 8, 8), (48, 4, 4)]),
        ((1, 64, 64), None, [(2, 32, 32), (4, 16, 16), (8, 8, 8), (32, 4, 4)]),
        ((3, 64, 64), None, [(6, 32, 32), (12, 16, 16), (24, 8, 8), (96, 4, 4)]),
        ((3, 5, 7), None, [(3, 5, 7)]),
    ],
)
def test_shapes_at_all_sizes(shape, levels, parts):
    model = Glow(DataSpec(shape, "discrete", levels=256), steps=1, width=2, levels=levels)
    scales = next(m for m in model.modules() if isinstance(m, MultiScale))
    assert list(scales.shapes) == parts
    assert sum(math.prod(part) for part in parts) == math.prod(shape)
    x = torch.randint(256, (2, *shape), generator=generator()).byte()
    model.initialise(Batch(x), generator())
    loss, _ = model.loss("model", Batch(x), generator())
    loss.backward()
    assert loss.isfinite()
    with torch.no_grad():
        assert model.encode(x).shape == (2, math.prod(shape))
        assert torch.allclose(model.decode(model.encode(x)), x.float(), atol=0.05), "in single precision, of 256 levels"
        samples = model.sample(3, generator=generator())
    assert samples.shape == (3, *shape)
    assert samples.dtype == torch.uint8


def test_the_defaults_are_the_papers_for_large_images_and_small_for_small_ones():
    sizes = {}
    for side in (8, 28, 32, 64):
        with torch.device("meta"):  # no memory for the large ones
            model = Glow(DataSpec((3, side, side), "real"))
        scales = next(m for m in model.modules() if isinstance(m, MultiScale))
        sizes[side] = len(scales.levels), model.steps, model.width
    assert sizes == {8: (2, 8, 64), 28: (2, 32, 512), 32: (3, 32, 512), 64: (4, 32, 512)}


@torch.no_grad()
def test_actnorm_starts_with_the_first_data_and_not_again_after_loading():
    """The published traps: a start kept as a plain attribute is lost in a state dict, and loading begins anew."""
    torch.manual_seed(0)
    model = Glow(DataSpec((1, 8, 8), "real"), steps=2, width=4)
    x = 5 + 3 * torch.randn(300, 1, 8, 8, generator=generator())
    model.initialise(Batch(x), generator())
    outputs: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda *a: outputs.append(a[2][0])) for m in model.modules() if isinstance(m, ActNorm)
    ]
    model.log_prob(x)
    assert len(outputs) == 4
    for out in outputs:
        flat = out.transpose(0, 1).flatten(1)
        assert torch.allclose(flat.mean(1), torch.zeros(len(flat)), atol=1e-3)
        assert torch.allclose(flat.var(1), torch.ones(len(flat)), atol=1e-2)
    for hook in hooks:
        hook.remove()
    other = Glow(model.spec, steps=2, width=4)
    other.load_state_dict(model.state_dict())
    other.train()
    far = 100 * torch.randn(7, 1, 8, 8, generator=generator(1))  # another batch, of another size
    other.loss("model", Batch(far), generator())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert torch.equal(other.log_prob(x[:5]), model.log_prob(x[:5]))


@pytest.mark.parametrize("mixing", ["lu", "plain"])
def test_every_level_takes_the_chosen_mixing(mixing):
    """A published port ignored its setting in the last block."""
    model = Glow(IMAGE, steps=2, width=2, mixing=mixing)
    found = [m.lu for m in model.modules() if isinstance(m, InvertibleConv)]
    assert found == [mixing == "lu"] * 4


@torch.no_grad()
def test_lu_and_plain_models_are_equal_at_the_same_weights():
    lu, plain = (small(DataSpec((1, 4, 4), "real"), mixing=mixing) for mixing in ("lu", "plain"))
    theirs = [m for m in lu.modules() if isinstance(m, InvertibleConv)]
    for a, b in zip(theirs, [m for m in plain.modules() if isinstance(m, InvertibleConv)], strict=True):
        b.start_at(a.weight())
    state = plain.state_dict()
    state.update({name: value for name, value in lu.state_dict().items() if name in state})
    plain.load_state_dict(state)
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64, generator=generator())
    assert torch.allclose(lu.log_prob(x), plain.log_prob(x), atol=1e-9)


def test_it_starts_at_zero_couplings_and_standard_priors():
    model = Glow(IMAGE, steps=1, width=2)
    x = torch.randint(17, (50, 1, 8, 8), generator=generator()).byte()
    model.initialise(Batch(x), generator())
    for coupling in (m for m in model.modules() if isinstance(m, SplitCoupling)):
        channels = next(coupling.net.parameters()).shape[1]
        assert not coupling.net(torch.randn(2, channels, 4, 4)).any()
    assert not model.base.mean.any()
    assert not model.base.log_sigma.any()


@torch.no_grad()
def test_the_leaving_half_has_a_prior_learned_from_the_half_that_stays():
    """log p(z) by hand: N(mean(h), sigma(h)^2) for the half that leaves, N(mean, sigma^2) of each channel on top."""
    model = small(DataSpec((1, 4, 4), "real"), steps=1)
    scales = model.bijection.steps[0]
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=generator())
    first, second = scales.levels
    *steps, prior = first.steps
    h, total = x, 0
    for step in steps:
        h, log_det = step(h)
        total = total + log_det
    leaving, staying = h[:, :2], h[:, 2:]
    raw, shift = prior.net(staying).chunk(2, 1)
    sigma = (-3 * torch.tanh(raw / 3)).exp()
    normal = torch.distributions.Normal(-shift * sigma, sigma)  # (z - mean) / sigma = z exp(s) + shift
    total = total + normal.log_prob(leaving).sum((1, 2, 3))
    top, log_det = second(staying)
    mean, log_sigma = (t.view(1, -1, 1, 1) for t in (model.base.mean, model.base.log_sigma))
    total = total + log_det + torch.distributions.Normal(mean, log_sigma.exp()).log_prob(top).sum((1, 2, 3))
    assert torch.allclose(model.log_prob(x), total, atol=1e-9)


@torch.no_grad()
def test_class_conditional_densities_agree_with_their_marginal():
    model = small(IMAGE, conditional=True)
    x = torch.randint(17, (5, 1, 8, 8), generator=generator()).byte()
    y = torch.tensor([0, 1, 1, 2, 2, 2])
    model.initialise(Batch(x.repeat(2, 1, 1, 1)[:6], y), generator())
    assert isinstance(model, IsClassConditional)
    assert torch.allclose(model.class_log_prior.exp(), torch.tensor([2.0, 3, 4], dtype=torch.float64) / 9)
    each = torch.stack([model.elbo(x, y=torch.full((5,), k), generator=generator()) for k in range(3)])
    marginal = (each + model.class_log_prior[:, None]).logsumexp(0)
    assert torch.allclose(model.elbo(x, generator=generator()), marginal, atol=1e-9)
    assert (each[0] - each[1]).abs().min() > 1e-3
    weights = model.log_weights(x, 2, y=torch.tensor([0, 1, 2, 0, 1]), generator=generator())
    both = model.log_weights(x, 2, generator=generator())
    assert weights.shape == both.shape == (2, 5)
    loss, _ = model.loss("model", Batch(x, torch.tensor([0, 1, 2, 0, 1])), generator(3))
    given = model.elbo(x, y=torch.tensor([0, 1, 2, 0, 1]), generator=generator(3))
    assert loss.item() == pytest.approx(-given.mean().item())


@torch.no_grad()
def test_classes_start_at_the_moments_of_their_noise():
    """As if ten examples of mean 0 and deviation 1 were added; so labels mean something before they are learned."""
    torch.manual_seed(0)
    model = Glow(DataSpec((1, 4, 4), "real", num_classes=3), steps=2, width=4, conditional=True).double()
    y = torch.tensor([0] * 30 + [1] * 300)  # and no example of class 2
    centres = 3 * torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=generator())
    x = centres[y] + torch.randn(330, 1, 4, 4, dtype=torch.float64, generator=generator(1))
    model.initialise(Batch(x, y), generator())
    z = model.encode(x)
    for label, n in ((0, 30), (1, 300)):
        mine = z[y == label]
        mean = model.base.mean[label]
        assert torch.allclose(mean, mine.mean(0) * n / (n + 10))
        variance = ((mine - mean).square().sum(0) + 10) / (n + 10)
        assert torch.allclose(model.base.log_sigma[label].exp(), variance.sqrt())
    assert not model.base.mean[2].any()
    assert not model.base.log_sigma[2].any()
    told = torch.stack([model.log_prob(x, torch.full((330,), k)) for k in (0, 1)]).argmax(0)
    assert torch.equal(told, y)
    samples = model.sample(200, torch.arange(2).repeat(100), generator=generator())
    nearer = torch.stack([(samples - centre).square().flatten(1).sum(1) for centre in centres[:2]]).argmin(0)
    assert (nearer == torch.arange(2).repeat(100)).double().mean() > 0.95


@torch.no_grad()
def test_samples_of_a_class_follow_its_density():
    model = small(DataSpec((2, 1, 1), "real", num_classes=2), conditional=True, steps=2)
    model.base.mean.copy_(torch.tensor([[-2.0, 0.0], [2.0, 0.5]]))
    n = 4000
    for label in (0, 1):
        y = torch.full((n,), label)
        z = model.encode(model.sample(n, y, generator=generator()))
        sigma = model.base.log_sigma[label].exp()
        assert ((z.mean(0) - model.base.mean[label]).abs() < 4.5 * sigma / n**0.5).all()
        assert torch.allclose(z.std(0), sigma, rtol=0.06)
    drawn = model.encode(model.sample(n, generator=generator()))[:, 0] - model.base.mean[:, 0].mean()
    assert abs((drawn > 0).double().mean() - 0.5) < 0.06, "without labels, classes come from their prior"


@torch.no_grad()
def test_temperature_multiplies_the_noise_of_every_part():
    model = small(IMAGE)
    z = model.base.noise(4, 64, like=next(model.parameters()), generator=generator())
    drawn = []
    for temperature in (1.0, 0.5, 0.0):
        model.temperature = temperature
        drawn.append(model.sample(4, generator=generator()))
        base = torch.zeros(64, dtype=torch.float64)
        base[32:] = model.base.mean[0].repeat_interleave(4)
        sigma = torch.ones(64, dtype=torch.float64)
        sigma[32:] = model.base.log_sigma[0].exp().repeat_interleave(4)
        expected = model.bijection.inverse(base + temperature * sigma * z)[0]
        assert torch.equal(drawn[-1], expected.floor().clamp(0, 16).byte())
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn[2] == drawn[2][:1]).all(), "no noise at T = 0"


@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_recomputation_gives_the_same_gradients(coupling):
    plain, saving = (small(IMAGE, coupling=coupling, recompute=recompute) for recompute in (False, True))
    assert sum(isinstance(m, Recomputed) for m in saving.modules()) == 4
    saving.load_state_dict(dict(zip(saving.state_dict(), plain.state_dict().values(), strict=True)))
    x = torch.randint(17, (4, 1, 8, 8), generator=generator()).byte()
    gradients = []
    for model in (plain, saving):
        model.loss("model", Batch(x), generator())[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def test_it_learns_bars():
    """Two kinds of images: the bound stays below their entropy, and samples are right as often as it promises."""
    torch.manual_seed(0)
    spec = DataSpec((1, 4, 4), "binary")
    kinds = torch.stack([torch.eye(4), torch.eye(4).flip(0)])[:, None].byte()
    x = kinds[torch.randint(2, (256,), generator=generator())]
    model = Glow(spec, steps=2, width=16)
    model.initialise(Batch(x), generator())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = model.elbo(x, generator=generator()).mean().item()
    for step in range(100):
        optimiser.zero_grad()
        model.loss("model", Batch(x[:64]), generator(step))[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
    with torch.no_grad():
        bound = model.elbo(x, generator=generator()).mean().item()
        samples = model.sample(1000, generator=generator())
    assert before + 2 < bound < -math.log(2) + 0.05
    right = (samples[:, None] == kinds).flatten(2).all(2).any(1).double().mean().item()
    promised = 2 * math.exp(bound)  # by Jensen's inequality, sum_x P(x) of the two is at least that
    assert promised > 100 * 2 / 2**16
    assert right > promised - 4 * (promised / 1000) ** 0.5


def test_capabilities_follow_the_data_and_the_condition():
    assert isinstance(Glow(PLANE, steps=1, width=2), HasLogProb)
    bound = Glow(IMAGE, steps=1, width=2)
    assert isinstance(bound, HasElbo)
    assert not isinstance(bound, HasLogProb | IsClassConditional)
    assert squeezes(64, 64) == (6, 4)


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (DataSpec((2,), "real"), {}, "takes images"),
        (DataSpec((1, 5, 5), "real"), {}, "one channel and nothing to squeeze"),
        (IMAGE, {"levels": 4}, "levels=4"),
        (IMAGE, {"steps": 0}, "steps=0"),
        (IMAGE, {"width": 0}, "width=0"),
        (PLANE, {"conditional": True}, "needs data with labels"),
    ],
)
def test_wrong_arguments_are_explained(spec, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Glow(spec, **settings)


def test_a_conditional_flow_wants_its_labels():
    model = Glow(IMAGE, steps=1, width=2, conditional=True)
    with pytest.raises(UserError, match="needs labels"):
        model.loss("model", Batch(torch.zeros(2, 1, 8, 8).byte()), generator())
