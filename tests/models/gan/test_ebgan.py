"""EBGAN: the pulling-away term in closed form, the margin, and both objectives written out a second time."""

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.ebgan import EbGan, pulling_away_term

from .alphabet import Fixed, seeded, shipped

SPEC = DataSpec((1, 4, 4), "discrete", levels=4)


def make(spec: DataSpec = SPEC, **arguments: object) -> EbGan:
    torch.manual_seed(0)
    return EbGan(spec, latent=3, code=4, hidden_sizes=(8, 6), **arguments)  # type: ignore[arg-type]


def images(n: int = 7, seed: int = 0) -> Batch:
    return Batch(torch.randint(4, (n, 1, 4, 4), generator=seeded(seed)).to(torch.uint8))


def test_pulling_away_is_0_for_orthogonal_and_1_for_parallel_codes_of_any_scale_and_sign() -> None:
    scales = torch.tensor([1.0, -0.1, 30.0, -4.0, 0.5], dtype=torch.float64)[:, None]
    assert pulling_away_term(scales * torch.eye(5, dtype=torch.float64)).item() == 0
    one = torch.randn(1, 6, dtype=torch.float64, generator=seeded())
    assert pulling_away_term(scales * one).item() == pytest.approx(1, abs=1e-12)


def test_pulling_away_is_the_mean_over_ordered_pairs_of_different_examples() -> None:
    codes = torch.randn(6, 3, dtype=torch.float64, generator=seeded())
    pairs = [
        (a @ b / (a.norm() * b.norm())).square() for i, a in enumerate(codes) for j, b in enumerate(codes) if i != j
    ]
    assert len(pairs) == 30
    assert pulling_away_term(codes).item() == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-12)
    at_45_degrees = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert pulling_away_term(at_45_degrees).item() == pytest.approx(0.5)
    assert pulling_away_term(at_45_degrees[:1]).item() == 0, "one example has no pairs"


def test_pulling_away_turns_codes_and_does_not_scale_them() -> None:
    codes = torch.randn(5, 3, dtype=torch.float64, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(pulling_away_term(codes), codes)
    assert (gradient * codes).sum(1).abs().max() < 1e-14
    with torch.no_grad():
        assert pulling_away_term(codes - 0.1 * gradient) < pulling_away_term(codes)


def formulas(model: EbGan, x: Tensor, margin: float, weight: float) -> dict[str, Tensor]:
    """Both objectives from the networks alone, with the noise that ``loss`` draws from ``seeded()``."""
    fakes = model.generator(torch.randn(len(x), 3, generator=seeded()))

    def energy(u: Tensor) -> Tensor:
        return (model.discriminator.decoder(model.discriminator.encoder(u)) - u).square().sum((1, 2, 3)).sqrt()

    codes = model.discriminator.encoder(fakes)
    cosines = torch.nn.functional.cosine_similarity(codes[:, None], codes[None], dim=2)
    apart = cosines.square()[~torch.eye(len(x), dtype=torch.bool)].mean()
    return {
        "discriminator": energy(x.float() / 1.5 - 1).mean() + (margin - energy(fakes)).clamp_min(0).mean(),
        "generator": energy(fakes).mean() + weight * apart,
    }


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_loss_and_gradient_are_those_of_the_formula(player: str) -> None:
    model, batch = make(margin=1.55, pulling_away=0.7), images()
    with torch.no_grad():
        energies = model.energy(model.samples(7, seeded()))[0]
    assert (energies < 1.55).any()
    assert (energies > 1.55).any(), "the margin lies among the energies"
    loss = model.loss(player, batch, seeded())[0]
    expected = formulas(model, batch.x, 1.55, 0.7)[player]
    torch.testing.assert_close(loss, expected)
    own = model.players()[player]
    for a, b in zip(torch.autograd.grad(loss, own), torch.autograd.grad(expected, own), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_samples_beyond_the_margin_move_the_discriminator_not_and_others_do() -> None:
    model, batch = make(), images()
    model.generator = Fixed(torch.rand(7, 1, 4, 4, generator=seeded(3)))
    with torch.no_grad():
        energies = model.energy(model.generator(torch.zeros(7, 3)))[0]

    def gradient(margin: float) -> Tensor:
        model.margin = margin
        loss = model.loss("discriminator", batch, seeded())[0]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.players()["discriminator"])])

    real = model.energy(model.scaling(batch.x))[0].mean()
    alone = torch.cat([g.flatten() for g in torch.autograd.grad(real, model.players()["discriminator"])])
    assert torch.equal(gradient(0.99 * energies.min().item()), alone)
    assert not torch.allclose(gradient(1.01 * energies.min().item()), alone, atol=1e-4)


def test_a_perfect_reconstruction_has_a_finite_gradient() -> None:
    model = make(DataSpec((2,), "real"))
    for parameter in model.discriminator.parameters():
        parameter.data.zero_()
    loss = model.loss("discriminator", Batch(torch.zeros(3, 2)), seeded())[0]
    gradients = torch.autograd.grad(loss, model.players()["discriminator"])
    assert all(g.isfinite().all() for g in gradients)


def test_the_autoencoder_codes_and_rebuilds_raw_data() -> None:
    model, batch = make().eval(), images()
    u = batch.x.float() / 1.5 - 1
    code = model.discriminator.encoder(u)
    torch.testing.assert_close(model.encode(batch.x), code)
    torch.testing.assert_close(model.reconstruct(batch.x), (model.discriminator.decoder(code) + 1) * 1.5)
    samples = model.sample(5, generator=seeded())
    assert samples.dtype == torch.uint8
    assert torch.equal(samples, model.generate(torch.randn(5, 3, generator=seeded())).round().clamp(0, 3).byte())


@pytest.mark.parametrize("net", ["dcgan", "resnet"])
def test_convolutional_networks_train(net: str) -> None:
    spec = DataSpec((1, 16, 16), "discrete", levels=4)
    model = shipped("ebgan", spec, f"model.net={net}", "model.channels=4")
    x = torch.randint(4, (6, 1, 16, 16), generator=seeded()).to(torch.uint8)
    for player, parameters in model.players().items():
        gradients = torch.autograd.grad(model.loss(player, Batch(x), seeded())[0], parameters)
        assert all(g.abs().max() > 0 for g in gradients)
        model.after_step(player, Batch(x), seeded())
    assert model.eval().reconstruct(x).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "message"), [({"margin": 0.0}, "margin"), ({"pulling_away": -1.0}, "pulling_away")]
)
def test_bad_arguments_are_explained(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**arguments)
