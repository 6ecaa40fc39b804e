"""BEGAN: the controller of k and the measure of convergence by hand, and both objectives written out a second time."""

import pytest
import torch
from torch import Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.began import Began

from .alphabet import Fixed, seeded

SPEC = DataSpec((1, 4, 4), "discrete", levels=4)
PLANE = DataSpec((2,), "real")


def make(spec: DataSpec = SPEC, **arguments: object) -> Began:
    torch.manual_seed(0)
    return Began(spec, latent=3, code=4, hidden_sizes=(8, 6), **arguments)  # type: ignore[arg-type]


def images(n: int = 7, seed: int = 0) -> Batch:
    return Batch(torch.randint(4, (n, 1, 4, 4), generator=seeded(seed)).to(torch.uint8))


class Zero(nn.Module):
    """An autoencoder that rebuilds everything as zero, so that L(v) is the mean of |v|."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), x


def known(real: float, fake: float, **arguments: object) -> tuple[Began, Batch]:
    """A model and data with L(x) = real and L(G(z)) = fake."""
    model = make(PLANE, **arguments)
    model.discriminator = Zero()  # type: ignore[assignment]
    model.generator = Fixed(torch.tensor([[fake, -fake]] * 4))
    return model, Batch(torch.tensor([[-real, real]] * 4))


def test_three_updates_of_k_by_hand() -> None:
    """gamma L(x) - L(G(z)) = 0.4 * 2 - 0.3 = 0.5, then 0.4 * 2 - 1.1 = -0.3, from k = 0 at a rate of 0.1."""
    model, batch = known(2.0, 0.3, gamma=0.4, rate=0.1)
    assert model.k == 0
    model.after_step("discriminator", batch, seeded())
    assert model.k == 0, "k moves once an update, after both players"
    for expected in (0.05, 0.1):
        model.after_step("generator", batch, seeded())
        assert model.k.item() == pytest.approx(expected, rel=1e-5)
    model.generator = Fixed(torch.tensor([[1.1, 1.1]] * 4))
    model.after_step("generator", batch, seeded())
    assert model.k.item() == pytest.approx(0.07, rel=1e-5)


def test_k_stays_between_0_and_1() -> None:
    for fake, end in ((0.0, 1.0), (50.0, 0.0)):
        model, batch = known(2.0, fake, rate=0.4)
        for _ in range(4):
            model.after_step("generator", batch, seeded())
            assert 0 <= model.k <= 1
        assert model.k == end


@pytest.mark.parametrize(("fake", "expected"), [(0.3, 2 + 0.5), (1.1, 2 + 0.3)])
def test_measure_of_convergence(fake: float, expected: float) -> None:
    """M = L(x) + |gamma L(x) - L(G(z))| at L(x) = 2, gamma = 0.4, whichever side is ahead."""
    model, batch = known(2.0, fake, gamma=0.4)
    _, logs = model.loss("discriminator", batch, seeded())
    assert logs["convergence"].item() == pytest.approx(expected, rel=1e-6)
    assert (logs["real"].item(), logs["fake"].item()) == (pytest.approx(2.0), pytest.approx(fake))


def test_k_survives_a_resume() -> None:
    model, batch = known(2.0, 0.3, rate=0.1)
    model.after_step("generator", batch, seeded())
    assert model.k > 0
    resumed, _ = known(2.0, 0.3, rate=0.1)
    resumed.load_state_dict(model.state_dict())
    for each in (model, resumed):
        each.after_step("generator", batch, seeded())
    assert torch.equal(model.k, resumed.k)
    assert model.k.item() == pytest.approx(2 * 0.1 * (0.5 * 2.0 - 0.3), rel=1e-5)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_loss_and_gradient_are_those_of_the_formula(player: str, power: int) -> None:
    model, batch = make(power=power), images()
    model.k.fill_(0.3)
    z = 2 * torch.special.ndtr(torch.randn(7, 3, generator=seeded())) - 1
    fakes = model.generator(z)

    def error(u: Tensor) -> Tensor:
        return (u - model.discriminator.decoder(model.discriminator.encoder(u))).abs().pow(power).sum() / u.numel()

    real = error(batch.x.float() / 1.5 - 1)
    expected = {"discriminator": real - 0.3 * error(fakes), "generator": error(fakes)}[player]
    loss = model.loss(player, batch, seeded())[0]
    torch.testing.assert_close(loss, expected)
    own = model.players()[player]
    for a, b in zip(torch.autograd.grad(loss, own), torch.autograd.grad(expected, own), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_noise_is_uniform_and_generate_is_sample_as_a_function_of_it() -> None:
    model = make().eval()
    n = 20_000
    z = model.latents(torch.randn(n, 1, generator=seeded()))
    quartiles = torch.quantile(z, torch.tensor([0.25, 0.5, 0.75]))
    assert z.abs().max() <= 1
    for found, expected in zip(quartiles.tolist(), (-0.5, 0.0, 0.5), strict=True):
        assert found == pytest.approx(expected, abs=4 * 2 * (0.25 / n) ** 0.5)
    generated = model.generate(torch.randn(5, 3, generator=seeded()))
    assert torch.equal(model.sample(5, generator=seeded()), generated.round().clamp(0, 3).byte())


@pytest.mark.parametrize("net", ["dcgan", "resnet"])
def test_convolutional_networks_train(net: str) -> None:
    torch.manual_seed(0)
    spec = DataSpec((1, 16, 16), "discrete", levels=4)
    model = Began(spec, net=net, channels=4, latent=3, code=4)  # type: ignore[arg-type]
    model.k.fill_(0.5)
    batch = Batch(torch.randint(4, (6, 1, 16, 16), generator=seeded()).to(torch.uint8))
    for player, parameters in model.players().items():
        gradients = torch.autograd.grad(model.loss(player, batch, seeded())[0], parameters)
        assert all(g.abs().max() > 0 for g in gradients)
        model.after_step(player, batch, seeded())
    assert model.k != 0.5
    assert model.eval().reconstruct(batch.x).shape == batch.x.shape


def test_the_controller_holds_the_ratio_of_the_errors() -> None:
    """A game of one number each, by the class's own controller: whatever gamma is, L(G) / L(x) ends there.

    The discriminator's share of attention moves L(G) up with k, as raising the error of samples does: L(G) = 0.1 + k.
    """
    for gamma in (0.3, 0.7):
        model, batch = known(1.0, 0.1, gamma=gamma, rate=0.2)
        for _ in range(60):
            level = 0.1 + model.k.item()
            model.generator = Fixed(torch.tensor([[level, level]] * 4))
            model.after_step("generator", batch, seeded())
        assert 0.1 + model.k.item() == pytest.approx(gamma, abs=1e-4)


def test_the_generator_starts_with_samples_that_differ() -> None:
    """Variance of about one before tanh, from z of variance 1/3 and biases of zero."""
    model = Began(DataSpec((1, 8, 8), "real"))
    x = model.generator(model.latents(torch.randn(500, 64, generator=seeded())))
    assert 0.3 < x.std(0).mean() < 1.2


@pytest.mark.parametrize(
    ("arguments", "message"), [({"gamma": 1.5}, "gamma"), ({"rate": 0.0}, "rate"), ({"latent": 0}, "latent")]
)
def test_bad_arguments_are_explained(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Began(SPEC, **arguments)  # type: ignore[arg-type]
