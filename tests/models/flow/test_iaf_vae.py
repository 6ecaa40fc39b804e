"""Inverse autoregressive flow posteriors, on one layer and on many, against autograd, quadrature and the plain VAE."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.flow.bidirectional import BidirectionalVae, ConvolutionalStep, LatentLayer, gated
from dgmbench.models.flow.iaf_vae import IafVae, InverseAutoregressiveFlow
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.observation import gaussian_log_density

BINARY = DataSpec((1, 3, 3), "binary")
SMALL = {"hidden_sizes": (8,), "latent": 2, "autoregressive_sizes": (8,), "context": 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def shaken(module: Any, scale: float = 0.5) -> Any:
    """The module in double precision, its parameters away from where they start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in module.double().parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def flow(steps: int, latent: int = 5) -> InverseAutoregressiveFlow:
    torch.manual_seed(0)
    return shaken(InverseAutoregressiveFlow(latent, steps=steps, hidden_sizes=(12, 12), context=3))


def jacobian(steps: InverseAutoregressiveFlow, z: Tensor, context: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda v: steps(v[None, None], context[None])[0][0, 0], z)


def test_gate_is_the_surveys() -> None:
    z, m, raw = normal(3, 4, seed=1), normal(3, 4, seed=2), normal(3, 4, seed=3)
    image, log_sigma = gated(z, m, raw)
    sigma = 1 / (1 + torch.exp(-(raw + 2)))
    assert torch.allclose(log_sigma.exp(), sigma)
    assert torch.allclose(image, sigma * z + (1 - sigma) * m)
    assert torch.isfinite(gated(z, m, raw - 2000)[1]).all()


def test_a_steps_jacobian_is_triangular_with_the_gates_on_its_diagonal() -> None:
    steps, context = flow(1), normal(3, seed=1)
    z = normal(5, seed=2)
    matrix = jacobian(steps, z, context)
    assert matrix.triu(1).abs().max() == 0
    assert (matrix.tril(-1).abs() > 1e-6).sum() >= 8, "the dimensions before are really read"
    log_sigma = steps(z[None, None], context[None])[1][0, 0]
    assert torch.allclose(matrix.diagonal().log(), log_sigma)


def test_every_second_step_takes_the_reverse_order() -> None:
    steps = flow(2)
    z, context = normal(5, seed=2), normal(3, seed=1)

    def only_second(v: Tensor) -> Tensor:
        m, s = (value.flip(-1) for value in steps.nets[1].given(v[None, None].flip(-1), context[None]))  # type: ignore[operator]
        return gated(v[None, None], m, s)[0][0, 0]

    matrix = torch.autograd.functional.jacobian(only_second, z)
    assert matrix.tril(-1).abs().max() == 0
    assert (matrix.triu(1).abs() > 1e-6).sum() >= 8
    both = jacobian(steps, z, context)
    assert both.triu(1).abs().max() > 1e-6
    assert both.tril(-1).abs().max() > 1e-6, "together, every dimension reaches every other"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_log_det_of_each_example_and_draw_is_the_sum_of_log_sigmas(count: int) -> None:
    steps = flow(count)
    z, context = normal(2, 4, 5, seed=1), normal(4, 3, seed=2)
    parts = steps(z, context)[1]
    assert parts.shape == (2, 4, 5)
    for draw, example in itertools.product(range(2), range(4)):
        sign, expected = torch.linalg.slogdet(jacobian(steps, z[draw, example], context[example]))
        assert sign == 1
        assert parts[draw, example].sum().item() == pytest.approx(expected.item(), abs=1e-9)
    moved = context.clone()
    moved[1] += 1
    changed = (steps(z, moved)[1] - parts).abs().sum((0, 2)) > 1e-6
    assert changed.tolist() == [False, True, False, False], "the context of an example is its own"


def test_no_steps_are_the_vae() -> None:
    torch.manual_seed(0)
    vae = Vae(BINARY, hidden_sizes=(8,), latent=2)
    torch.manual_seed(0)
    without = IafVae(BINARY, **{**SMALL, "steps": 0})
    x = torch.randint(2, (6, 1, 3, 3), generator=generator()).byte()
    assert torch.equal(vae.log_weights(x, 3, generator=generator()), without.log_weights(x, 3, generator=generator()))
    assert torch.allclose(vae.elbo(x, generator=generator()), without.elbo(x, generator=generator()), atol=1e-6)
    assert torch.equal(vae.encode(x), without.encode(x))


@torch.no_grad()
def test_elbo_is_the_mean_log_weight_and_weights_average_to_the_probability() -> None:
    torch.manual_seed(1)
    model = IafVae(BINARY, steps=2, **SMALL)
    vae = shaken(model, 0.3).inner
    assert isinstance(vae, Vae)
    vae.encoder[-1].bias[2:4] = 1.5  # a posterior wider than the prior keeps the weights' variance finite
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    nodes = torch.cartesian_prod(axis, axis)
    x = torch.tensor(list(itertools.product((0, 1), repeat=9)), dtype=torch.uint8).reshape(-1, 1, 3, 3)[::31]
    log_joint = vae.observation.log_prob(vae.decoder(nodes)[:, None], x) - 0.5 * nodes.square().sum(1)[:, None]
    exact = log_joint.logsumexp(0) - math.log(2 * math.pi) + 2 * math.log(0.1)
    log_w = model.log_weights(x, 4000, generator=generator())
    w = (log_w - exact).exp()
    assert ((w.mean(0) - 1).abs() < 5 * w.std(0) / 4000**0.5).all()
    elbo = torch.stack([model.elbo(x, generator=generator(seed)) for seed in range(400)])
    error = (elbo.var(0) / 400 + log_w.var(0) / 4000).sqrt()
    assert ((elbo.mean(0) - log_w.mean(0)).abs() < 5 * error).all()
    assert (elbo.mean(0) < exact + 4 * error).all()


@pytest.mark.parametrize("net", ["mlp", "bidirectional"])
def test_free_bits_and_warm_up_change_the_loss_only(net: str) -> None:
    x = torch.randint(2, (40, 1, 4, 4), generator=generator()).byte()
    settings = {**SMALL, "net": net, "channels": 4, "layers": 2, "steps": 2}

    def model(**extra: Any) -> IafVae:
        torch.manual_seed(0)
        return shaken(IafVae(DataSpec((1, 4, 4), "binary"), **settings, **extra), 0.2)

    plain = model()
    kl = plain.inner._terms(x, 1, generator())[1].mean(0)
    assert len(kl) == (2 if net == "mlp" else 4), "a part for each dimension, or map of a layer"
    free = kl.sort().values[:2].mean().item()  # above the least part and below the others
    eased = model(free_bits=free, kl_warmup=4)
    for beta in (0.0, 0.25, 0.5):
        loss, logs = eased.loss("model", Batch(x), generator())
        wanted = -logs["reconstruction"] + beta * kl.clamp(min=free).sum()
        assert loss.item() == pytest.approx(wanted.item())
        assert logs["elbo"].item() == pytest.approx((logs["reconstruction"] - kl.sum()).item())
        eased.after_step("model", Batch(x), generator())
    assert torch.equal(plain.elbo(x, generator=generator()), eased.elbo(x, generator=generator()))
    assert torch.equal(plain.log_weights(x, 2, generator=generator()), eased.log_weights(x, 2, generator=generator()))


# --- bidirectional --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_convolutional_steps_are_triangular_in_raster_order(backwards: bool) -> None:
    torch.manual_seed(0)
    step = shaken(ConvolutionalStep(3, 7, backwards=backwards), 0.3)
    z, context = normal(1, 3, 4, 3, seed=1), normal(1, 7, 4, 3, seed=2)
    image, log_sigma = step(z, context)

    def raster(v: Tensor) -> Tensor:  # positions first, the maps of a position one after another
        return step(v.view(1, 4, 3, 3).permute(0, 3, 1, 2), context)[0].permute(0, 2, 3, 1).flatten()

    matrix = torch.autograd.functional.jacobian(raster, z.permute(0, 2, 3, 1).flatten())
    wrong, right = (matrix.tril(-1), matrix.triu(1)) if backwards else (matrix.triu(1), matrix.tril(-1))
    assert wrong.abs().max() == 0
    assert (right.abs() > 1e-6).sum() > 36
    assert torch.allclose(matrix.diagonal().log(), log_sigma.permute(0, 2, 3, 1).flatten())
    at = 4 * 3  # the middle position of the second row sees its own earlier maps and its neighbours before it
    position = matrix.view(12, 3, 12, 3)[at // 3]
    assert (position[:, at // 3].abs() > 1e-9).sum() == 3 + 3, "its own maps: the diagonal and one triangle"
    assert image.shape == log_sigma.shape == z.shape


def deep(**settings: object) -> BidirectionalVae:
    torch.manual_seed(0)
    model = BidirectionalVae(DataSpec((1, 4, 4), "binary"), **{"channels": 4, "latent": 2, "layers": 2, **settings})  # type: ignore[arg-type]
    return shaken(model, 0.2)


@torch.no_grad()
def test_log_weights_of_many_layers_from_first_principles() -> None:
    """log p(x, z) along the path down at the drawn z, and log q by their noise and autograd's determinants."""
    model, k = deep(), 3
    x = torch.randint(2, (5, 1, 4, 4), generator=generator()).byte()
    records: list[tuple[Tensor, ...]] = []
    inner = model._posterior

    def spy(number: int, said: Tensor) -> object:
        records.append((torch.tensor(number), *inner(number, said)))
        return records[-1][1:]

    model._posterior = spy  # type: ignore[method-assign, assignment]
    log_w = model.log_weights(x, k, generator=generator(4))
    model._posterior = inner  # type: ignore[method-assign]
    draws, given, log_q = generator(4), {}, torch.zeros(k * 5, dtype=torch.float64)
    for number, mean, log_sigma, context in records:
        noise = torch.randn(mean.shape, generator=draws, dtype=torch.float64)
        start = mean + log_sigma.exp() * noise
        layer = model.layers[int(number)]
        assert isinstance(layer, LatentLayer)
        given[int(number)] = layer.step(start, context)[0]
        log_q += gaussian_log_density(start, mean, log_sigma).flatten(1).sum(1)
        for row in range(k * 5):
            there = context[row : row + 1]
            with torch.enable_grad():
                matrix = torch.autograd.functional.jacobian(
                    lambda v, there=there, layer=layer: layer.step(v[None], there)[0][0], start[row]
                )
            size = start[row].numel()
            log_q[row] -= torch.linalg.slogdet(matrix.reshape(size, size)).logabsdet
    log_prior = torch.zeros(k * 5, dtype=torch.float64)

    def scored(number: int, mean: Tensor, log_sigma: Tensor, word: Tensor) -> Tensor:
        log_prior.add_(gaussian_log_density(given[number], mean, log_sigma).flatten(1).sum(1))
        return given[number]

    parameters = model._down(k * 5, scored).unflatten(0, (k, 5))
    expected = model.observation.log_prob(parameters, x) + (log_prior - log_q).view(k, 5)
    assert torch.allclose(log_w, expected)
    code = torch.cat([given[number].flatten(1) for number in reversed(range(len(model.layers)))], 1)
    assert torch.allclose(model.decode(code), model.observation.mean(parameters.flatten(0, 1)))


def test_every_second_layer_takes_the_raster_backwards() -> None:
    masks = [layer.step.first.mask[0, 0] for layer in deep(layers=4).layers]  # type: ignore[union-attr]
    assert [(bool(mask[0, 0]), bool(mask[2, 2])) for mask in masks] == [(True, False), (False, True)] * 2


@torch.no_grad()
def test_the_ways_up_and_down_are_residual() -> None:
    """u + 0.1 conv(elu(...)), so that a layer whose last convolution is zero hands on what it was given."""
    layer = shaken(LatentLayer(4, 2, backwards=False, top=False))
    u, rest, z = normal(3, 4, 5, 5), normal(3, 4, 5, 5, seed=1), normal(3, 2, 5, 5, seed=2)
    onwards = layer.up(nn.functional.elu(u))[:, -4:]
    assert torch.allclose(layer.rise(u)[0], u + 0.1 * layer.up_end(nn.functional.elu(onwards)))
    change = layer.down_end(nn.functional.elu(torch.cat([rest, z], 1)))
    assert torch.allclose(layer.join(u, rest, z), u + 0.1 * change)


@torch.no_grad()
def test_elbo_of_many_layers_is_the_mean_log_weight() -> None:
    model = deep()
    x = torch.randint(2, (4, 1, 4, 4), generator=generator()).byte()
    n = 4000
    log_w = model.log_weights(x, n, generator=generator(1))
    elbo = model.elbo(x.repeat(n, 1, 1, 1), generator=generator(2)).view(n, 4)
    error = (log_w.var(0) / n + elbo.var(0) / n).sqrt()
    assert ((log_w.mean(0) - elbo.mean(0)).abs() < 4.5 * error).all()
    assert (log_w.std(0) > 0.1).all()


def test_layers_are_one_for_each_size_and_codes_hold_them_all() -> None:
    for spec, per_layer in ((DataSpec((3, 28, 28), "discrete", 256), (14, 7, 4)), (DataSpec((1, 5, 3), "real"), (3,))):
        model = IafVae(spec, net="bidirectional", channels=4, latent=2, layers=2, components=2)
        x = torch.randn(2, *spec.shape) if spec.kind == "real" else torch.randint(256, (2, *spec.shape)).byte()
        loss, _ = model.loss("model", Batch(x), generator())
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        code = model.encode(x)
        sides = [size[0] for size in model.inner.sizes]  # type: ignore[union-attr]
        assert sides == [side for side in per_layer for _ in range(2)]
        assert code.shape == (2, sum(2 * a * b for a, b in model.inner.sizes))  # type: ignore[union-attr]
        assert model.decode(code).shape == model.sample(2).shape == model.reconstruct(x).shape == x.shape


def test_inference_meets_the_prior_on_the_way_down() -> None:
    """The posterior of a lower layer depends on the draw above it, and the prior on nothing from below."""
    model = deep()
    x = torch.randint(2, (2, 1, 4, 4), generator=generator()).byte()
    seen: list[tuple[Tensor, Tensor]] = []
    inner = model._posterior

    def spy(number: int, said: Tensor) -> object:
        found = inner(number, said)
        seen.append((found[0], found[1]))
        return found

    model._posterior = spy  # type: ignore[method-assign, assignment]
    for seed in (1, 2):
        model.elbo(x, generator=generator(seed))
    top_a, low_a, top_b, low_b = (mean for mean, _ in seen)
    assert torch.equal(top_a, top_b), "the top layer's posterior has no draw above it"
    assert not torch.allclose(low_a, low_b)
    model._down(2, lambda number, mean, log_sigma, word: mean)  # without x there is a prior all the same


def test_training_closes_the_gap_that_a_gaussian_leaves() -> None:
    """The posterior of z given x = |z| + noise is a ring: no Gaussian comes near, a flow comes nearer."""
    torch.manual_seed(0)
    spec = DataSpec((1,), "real")

    class Absolute(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(()), requires_grad=False)

        def forward(self, z: Tensor) -> Tensor:
            return self.one * z.norm(dim=1).view(-1, 1, 1)

    x = torch.randn(300, 2).norm(dim=1)[:, None] + 0.2 * torch.randn(300, 1)
    bounds = []
    for steps in (0, 3):
        torch.manual_seed(1)
        model = IafVae(
            spec, steps=steps, hidden_sizes=(16,), latent=2, sigma=0.2, autoregressive_sizes=(32,), context=4
        )
        assert isinstance(model.inner, Vae)
        model.inner.decoder = Absolute()  # type: ignore[assignment]
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for update in range(400):
            optimiser.zero_grad()
            model.loss("model", Batch(x), generator(update))[0].backward()
            optimiser.step()
        with torch.no_grad():
            bounds.append(torch.stack([model.elbo(x, generator=generator(s)).mean() for s in range(100)]))
    error = (bounds[0].var() / 100 + bounds[1].var() / 100).sqrt()
    assert bounds[1].mean() > bounds[0].mean() + 0.1 + 4 * error


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"context": 0}, "context=0"),
        ({"autoregressive_sizes": ()}, "leaves no layer"),
        ({"free_bits": -1.0}, "free_bits=-1.0"),
        ({"net": "bidirectional", "layers": 0}, "layers=0"),
        ({"net": "bidirectional"}, "takes images"),
    ],
)
def test_wrong_arguments_are_explained(settings: dict, sentence: str) -> None:
    spec = DataSpec((4,), "binary") if "images" in sentence else BINARY
    with pytest.raises(UserError, match=sentence):
        IafVae(spec, **settings)
