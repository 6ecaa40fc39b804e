"""VAE/GAN: each player's gradient against autograd of its formula, written out here a second time."""

import copy

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.vae_gan import VaeGan
from dgmbench.nn.batchnorm import BatchNorm

SPEC = DataSpec((1, 4, 4), "discrete", levels=4)
PLAYERS = ("encoder", "decoder", "discriminator")


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def make(**arguments: object) -> VaeGan:
    torch.manual_seed(0)
    return VaeGan(SPEC, latent=3, hidden_sizes=(8, 6), **arguments)  # type: ignore[arg-type]


def images(n: int = 10, side: int = 4, seed: int = 0) -> Batch:
    return Batch(torch.randint(4, (n, 1, side, side), generator=seeded(seed)).to(torch.uint8))


def formulas(model: VaeGan, batch: Batch, gamma: float) -> dict[str, Tensor]:
    """The three objectives from the networks alone, for the codes that ``loss`` draws with ``seeded()``."""
    g = seeded()
    x = batch.x.double() / 1.5 - 1
    x = x.float()
    mean, said = model.encoder(x).split(3, dim=1)
    log_std = 1 - (1 + (1 - said).exp()).log()  # below 1, softly
    z = torch.normal(torch.zeros_like(mean), 1.0, generator=g) * torch.exp(log_std) + mean
    z_prior = torch.normal(torch.zeros_like(mean), 1.0, generator=g)
    reconstruction, sample = model.decoder(z), model.decoder(z_prior)

    def features(u: Tensor) -> Tensor:
        return model.discriminator.trunk(u.flatten(1))

    def d(u: Tensor) -> Tensor:
        return torch.sigmoid(model.discriminator.head(features(u)))[:, 0]

    q = torch.distributions.Normal(mean, log_std.exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    gaussian = torch.distributions.Normal(features(reconstruction), 1.0)
    nll = -gaussian.log_prob(features(x)).sum(1).mean()
    real, fake = d(x).log(), (1 - d(reconstruction)).log() + (1 - d(sample)).log()
    gan = -(real + fake).mean()
    return {"encoder": kl + nll, "decoder": gamma * nll - gan, "discriminator": gan}


def gradients(model: VaeGan, player: str, batch: Batch) -> dict[str, Tensor | None]:
    """What a trainer gets: the other players' parameters are frozen while the loss is computed."""
    for name, parameters in model.players().items():
        for parameter in parameters:
            parameter.requires_grad_(name == player)
            parameter.grad = None
    model.loss(player, batch, seeded())[0].backward()
    model.requires_grad_(True)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("player", PLAYERS)
def test_gradient_is_zero_outside_its_network_and_that_of_the_formula_inside(player: str) -> None:
    model = make(gamma=0.3)
    found = gradients(model, player, images())
    own = dict(getattr(model, player).named_parameters())
    expected = torch.autograd.grad(formulas(model, images(), 0.3)[player], list(own.values()))
    for (name, _), gradient in zip(own.items(), expected, strict=True):
        inside = found.pop(f"{player}.{name}")
        assert inside is not None
        assert inside.abs().max() > 0
        assert torch.allclose(inside, gradient, rtol=1e-4, atol=1e-6)
    assert all(gradient is None for gradient in found.values())


def test_loss_values_are_those_of_the_formulas() -> None:
    model = make(gamma=0.3)
    expected = formulas(model, images(), 0.3)
    constant = (
        0.5 * torch.log(torch.tensor(2 * torch.pi)) * model.discriminator.features(torch.zeros(1, 1, 4, 4)).numel()
    )
    for player, weight in (("encoder", 1.0), ("decoder", 0.3), ("discriminator", 0.0)):
        # The decoder's -gan also has the data's term, which does not depend on the decoder.
        value = expected[player] - weight * constant
        if player == "decoder":
            value = value - F.logsigmoid(model.critic(model.scaling(images().x))).mean()
        assert model.loss(player, images(), seeded())[0].item() == pytest.approx(value.item(), rel=1e-4)


def test_discriminator_gets_nothing_from_the_feature_loss() -> None:
    """Without any freezing: its loss does not depend on gamma, and it leaves encoder and decoder without a gradient."""
    one, other = make(gamma=0.1), make(gamma=100.0)
    for model in (one, other):
        model.loss("discriminator", images(), seeded())[0].backward()
        assert all(p.grad is None for name in ("encoder", "decoder") for p in model.players()[name])
    for a, b in zip(one.discriminator.parameters(), other.discriminator.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)


def test_feature_nll_is_half_the_summed_squared_difference() -> None:
    model = make()
    x, u = torch.randn(2, 5, 1, 4, 4, generator=seeded())
    f, h = model.discriminator.features(x), model.discriminator.features(u)
    expected = [0.5 * sum((a - b) ** 2 for a, b in zip(f[i].tolist(), h[i].tolist(), strict=True)) for i in range(5)]
    assert model.feature_nll(x, u).tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(model.feature_nll(x, x), torch.zeros(5))


def test_non_saturating_decoder_minimises_minus_log_d() -> None:
    model = make(gamma=0.0, loss="non_saturating")
    g = seeded()
    z = model.code(*model.posterior(model.scaling(images().x)), g)
    z_prior = torch.randn(z.shape, generator=g)
    expected = -F.logsigmoid(torch.stack([model.critic(model.decoder(u)) for u in (z, z_prior)])).mean(1).sum()
    assert model.loss("decoder", images(), seeded())[0].item() == pytest.approx(float(expected.detach()), rel=1e-5)


def test_reconstructions_and_codes_are_on_their_scales() -> None:
    model = make().eval()
    x = images().x
    reconstruction = model.reconstruct(x)
    assert reconstruction.shape == x.shape
    assert reconstruction.is_floating_point()
    assert reconstruction.min() >= 0
    assert reconstruction.max() <= 3
    assert torch.allclose(model.scaling(reconstruction), model.decoder(model.encode(x)), atol=1e-6)
    assert model.encode(x).shape == (10, 3)
    sample = model.sample(6, generator=seeded())
    assert sample.shape == (6, 1, 4, 4)
    assert sample.dtype == torch.uint8
    assert sample.max() <= 3
    assert torch.equal(sample, model.sample(6, generator=seeded()))
    vectors = VaeGan(DataSpec((2,), "real"), latent=2, hidden_sizes=(4,))
    assert vectors.reconstruct(torch.zeros(3, 2)).shape == (3, 2)


@pytest.mark.parametrize("net", ["mlp", "dcgan", "resnet"])
def test_loss_changes_no_state_repeats_and_reaches_every_parameter(net: str) -> None:
    torch.manual_seed(0)
    model = VaeGan(DataSpec((1, 16, 16), "discrete", levels=4), net=net, latent=3, hidden_sizes=(8,), channels=2)  # type: ignore[arg-type]
    batch = images(16, 16)
    before = copy.deepcopy(model.state_dict())
    for player, parameters in model.players().items():
        loss = model.loss(player, batch, seeded())[0]
        assert torch.equal(loss, model.loss(player, batch, seeded())[0])
        assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(loss, parameters))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for player in model.players():
        model.loss(player, batch, seeded())
        model.after_step(player, batch, seeded())
    moved = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
    assert moved == {"mlp": set(), "dcgan": set(PLAYERS), "resnet": {"decoder"}}[net]
    assert {id(p) for ps in model.players().values() for p in ps} == {id(p) for p in model.parameters()}


def test_running_statistics_are_those_of_what_evaluation_gives_each_network() -> None:
    """Encoder and discriminator: data. Decoder: samples of the prior, not the reconstructions of its other pass."""
    torch.manual_seed(0)
    model = VaeGan(DataSpec((1, 16, 16), "discrete", levels=4), net="dcgan", latent=3, channels=2)
    batch = images(32, 16)
    for player in PLAYERS:
        net = getattr(model, player)
        layer = next(m for m in net.modules() if isinstance(m, BatchNorm))
        g = seeded()
        model.code(*model.posterior(model.scaling(batch.x)), g)
        z_prior = torch.randn(32, 3, generator=g)
        before = net.net[0](z_prior[:, :, None, None]) if player == "decoder" else net.trunk[:3](model.scaling(batch.x))
        model.loss(player, batch, seeded())
        model.after_step(player, batch, seeded())
        torch.testing.assert_close(layer.running_mean, 0.1 * before.mean((0, 2, 3)))


def test_reconstruction_of_two_clusters_improves() -> None:
    """On an image and its negative, the learned similarity alone teaches the decoder to tell them apart."""
    torch.manual_seed(0)
    model = VaeGan(SPEC, latent=2, hidden_sizes=(64, 64))
    pair = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 3.0)]).to(torch.uint8)
    pair[:, :, :, 2:] = 3 - pair[:, :, :, 2:]
    batch = Batch(pair.repeat(16, 1, 1, 1))
    optimisers = {name: torch.optim.Adam(ps, lr=2e-3, betas=(0.5, 0.999)) for name, ps in model.players().items()}
    before = (model.reconstruct(pair) - pair).abs().mean()
    for step in range(60):
        for player in model.turn(step, model.stages()[0]):
            gradients_of = torch.autograd.grad(model.loss(player, batch, seeded(step))[0], model.players()[player])
            for parameter, gradient in zip(model.players()[player], gradients_of, strict=True):
                parameter.grad = gradient
            optimisers[player].step()
    after = (model.reconstruct(pair) - pair).abs().mean()
    assert after < before / 2


@pytest.mark.parametrize(("arguments", "message"), [({"net": "cnn"}, "net"), ({"loss": "wasserstein"}, "loss")])
def test_bad_arguments_are_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        make(**arguments)
    assert isinstance(caught.value, UserError) or "TypeCheckError" in type(caught.value).__name__
