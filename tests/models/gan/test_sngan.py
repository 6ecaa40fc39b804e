"""SNGAN: the shipped settings of the GAN under a hinge, with a discriminator of spectral norm one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.gan.gan import Gan
from dgmbench.nn.adversarial_losses import Hinge
from dgmbench.nn.batchnorm import BatchNorm

from .alphabet import Fixed, seeded, shipped

PLANE = DataSpec((2,), "real")
IMAGES = DataSpec((1, 16, 16), "discrete", levels=4)


def sngan(spec: DataSpec, *overrides: str) -> Gan:
    model = shipped("sngan", spec, *overrides)
    assert isinstance(model, Gan)
    assert model.adversarial == Hinge()
    return model


def followed(model: Gan) -> Tensor:
    """All singular vectors of the discriminator in one row."""
    return torch.cat([v for name, v in model.discriminator.named_buffers() if name.endswith((".u", ".v"))])


def step(model: Gan, player: str, seed: int, lr: float = 0.1) -> None:
    batch = Batch(torch.randn(16, 2, generator=seeded(seed)))
    parameters = model.players()[player]
    gradients = torch.autograd.grad(model.loss(player, batch, seeded(seed))[0], parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(lr * gradient)
    model.after_step(player, batch, seeded(seed))


@pytest.mark.parametrize("net", ["mlp", "dcgan", "resnet"])
def test_every_weight_of_the_discriminator_is_normalised_and_none_of_the_generator(net: str) -> None:
    model = sngan(IMAGES, f"model.net={net}", "model.channels=6", "model.hidden_sizes=[6]", "model.latent=3")
    layers = [m for m in model.discriminator.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert layers
    for module in layers:
        assert parametrize.is_parametrized(module, "weight")
        assert torch.linalg.svdvals(module.weight.flatten(1))[0].item() == pytest.approx(1, abs=0.05)
    assert not any(isinstance(m, BatchNorm | nn.GroupNorm) for m in model.discriminator.modules())
    assert not any(parametrize.is_parametrized(m) for m in model.generator.modules())
    x = torch.randint(4, (12, 1, 16, 16), generator=seeded()).to(torch.uint8)
    if net != "dcgan":  # whose last layer has no bias
        model.discriminator.head.bias.data.fill_(2.0)  # within both margins the two sides' gradients cancel
    for player, parameters in model.players().items():
        gradients = torch.autograd.grad(model.loss(player, Batch(x), seeded())[0], parameters)
        assert all(g.abs().max() > 0 for g in gradients)


def test_critic_is_lipschitz_with_constant_one_after_training() -> None:
    """Layers of norm one and leaky ReLUs: |a(x) - a(y)| <= |x - y|, up to what one power step a step leaves."""
    model = sngan(PLANE, "model.hidden_sizes=[16,16]")
    for seed in range(30):
        step(model, "discriminator", seed)
    x, y = 3 * torch.randn(2, 2000, 2, generator=seeded())
    with torch.no_grad():
        slopes = (model.critic(x) - model.critic(y)).abs() / (x - y).norm(dim=1)
    assert 0.1 < slopes.max() <= 1.01


def test_singular_vectors_move_once_a_step_of_the_discriminator_and_survive_a_resume() -> None:
    model = sngan(PLANE, "model.hidden_sizes=[5]")
    start = followed(model)
    model.loss("discriminator", Batch(torch.zeros(3, 2)), seeded())
    model.train().critic(torch.zeros(3, 2))
    step(model, "generator", 0)
    model.eval().sample(3)
    assert torch.equal(followed(model), start)
    model.train()
    step(model, "discriminator", 0, lr=1.0)
    head = model.discriminator.head
    w, u = (
        head.parametrizations.weight.original.detach(),
        start[: -head.in_features][-1:],
    )  # u has one row
    assert torch.allclose(followed(model)[-head.in_features :], (w.T @ u) / (w.T @ u).norm())
    resumed = sngan(PLANE, "model.hidden_sizes=[5]")
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.normal_()
    resumed.load_state_dict(model.state_dict())
    for each in (model, resumed):
        step(each, "discriminator", 1)
    assert all(torch.equal(a, resumed.state_dict()[key]) for key, a in model.state_dict().items())


def test_nothing_beyond_the_margins_moves_the_discriminator() -> None:
    """Data at outputs above 1 and samples below -1 have no gradient; the generator has one."""
    model = sngan(PLANE, "model.hidden_sizes=[]")
    model.generator = Fixed(torch.zeros(4, 2))
    bias, real = model.discriminator.head.bias, torch.zeros(4, 2)
    for output, moved in ((2.0, 1.0), (-2.0, -1.0), (0.0, 0.0)):
        with torch.no_grad():
            bias.fill_(output)  # the output at data and samples alike
        (gradient,) = torch.autograd.grad(model.loss("discriminator", Batch(real), seeded())[0], bias)
        assert gradient.item() == pytest.approx(moved), "at 2 samples pull it down, at -2 data up, at 0 both"
    weight = model.discriminator.head.weight.detach()[0]
    with torch.no_grad():
        bias.zero_()
    model.generator = Fixed(-1.5 * weight.repeat(4, 1))
    loss, _ = model.loss("discriminator", Batch(1.5 * weight.repeat(4, 1)), seeded())
    assert loss == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(loss, model.players()["discriminator"]))
    generated, _ = model.loss("generator", Batch(real), seeded())
    assert generated.item() == pytest.approx(1.5, rel=1e-4)
    assert torch.autograd.grad(generated, model.generator.scale)[0].item() == pytest.approx(1.5, rel=1e-4)
