"""SRGAN and ESRGAN: losses of both stages by hand, the interpolation's parents, sharper than bicubic enlargement."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.quality.similarity import psnr, ssim
from dgmbench.evaluation.tasks.enhancement import baseline
from dgmbench.models.gan.srgan import SrGan
from dgmbench.nn.super_resolution import VGG19, DenseBlock, FeatureMaps

IMAGES = DataSpec((1, 16, 16), "discrete", levels=256)
ESRGAN = {
    "generator": "rrdb",
    "growth": 2,
    "loss": "relativistic_average",
    "distance": "absolute",
    "activated": False,
    "adversarial_weight": 0.3,
    "pixel_weight": 0.7,
}


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = IMAGES, **arguments: object) -> SrGan:
    torch.manual_seed(0)
    return SrGan(spec, **({"scale": 2, "channels": 3, "blocks": 1} | arguments))  # type: ignore[arg-type]


def batch(n: int = 5) -> Batch:
    return Batch(torch.randint(256, (n, 1, 16, 16), generator=seeded()).to(torch.uint8))


def in_second_stage(**arguments: object) -> SrGan:
    model = made(**arguments)
    model.enter_stage(model.stages()[1], seeded())
    return model


def scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def test_the_first_stage_is_the_distance_of_pixels() -> None:
    one = batch()
    for distance, power in (("squared", 2), ("absolute", 1)):
        model = made(distance=distance)
        large = model.generator(scaled(model.degrade(one.x)))
        wanted = (large - scaled(one.x)).abs().pow(power).mean()
        torch.testing.assert_close(model.loss("generator", one, seeded())[0], wanted)
    assert [stage.players for stage in model.stages()] == [("generator",), ("discriminator", "generator")]
    assert [stage.players for stage in made(pretrain=1.0).stages()] == [("generator",)]


def test_the_second_stage_of_srgan_by_hand() -> None:
    model, one = in_second_stage(adversarial_weight=0.3), batch()
    large, x = model.generator(scaled(model.degrade(one.x))), scaled(one.x)
    content = (model.features(large) - model.features(x)).square().mean()
    wanted = content + 0.3 * F.softplus(-model.discriminator(large)).mean()
    torch.testing.assert_close(model.loss("generator", one, seeded())[0], wanted)
    wanted = F.softplus(-model.discriminator(x)).mean() + F.softplus(model.discriminator(large)).mean()
    torch.testing.assert_close(model.loss("discriminator", one, seeded())[0], wanted)


def test_the_relativistic_loss_of_esrgan_by_hand_and_both_of_its_terms_reach_the_generator() -> None:
    """a(x) - E a(G) and a(G) - E a(x), cross entropies of both; the generator's has data and samples exchanged."""
    model, one = in_second_stage(**ESRGAN), batch()
    large, x = model.generator(scaled(model.degrade(one.x))), scaled(one.x)
    real, fake = model.discriminator(x), model.discriminator(large)
    d_real, d_fake = torch.sigmoid(real - fake.mean()), torch.sigmoid(fake - real.mean())
    torch.testing.assert_close(
        model.loss("discriminator", one, seeded())[0], -(d_real.log().mean() + (1 - d_fake).log().mean())
    )
    terms = -(1 - d_real).log().mean(), -d_fake.log().mean()
    content = (model.features(large) - model.features(x)).abs().mean()
    wanted = content + 0.7 * (large - x).abs().mean() + 0.3 * sum(terms)
    torch.testing.assert_close(model.loss("generator", one, seeded())[0], wanted)
    for term in terms:
        gradients = torch.autograd.grad(term, list(model.generator.parameters()), retain_graph=True)
        assert max(float(gradient.abs().max()) for gradient in gradients) > 0


@pytest.mark.parametrize("arguments", [{}, ESRGAN], ids=["srgan", "esrgan"])
def test_interpolation_at_0_and_1_gives_the_two_parents_and_between_them_the_mean_of_their_weights(
    arguments: dict[str, object],
) -> None:
    model, small = made(**arguments), made().degrade(batch(2).x)
    for parameter in model.generator.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=seeded()))
    model.loss("generator", batch(), seeded())
    model.after_step("generator", batch(), seeded())
    model.enter_stage(model.stages()[1], seeded())
    first = copy.deepcopy(model).eval()
    for value in [*model.generator.parameters(), *model.generator.buffers()]:
        value.data.add_(0.02 * torch.rand(value.shape, generator=seeded(1)))
    model.eval()
    own = model.enhance(small)
    model.interpolation = 0.0
    assert not torch.equal(own, first.enhance(small))
    torch.testing.assert_close(model.enhance(small), first.enhance(small))
    middle = copy.deepcopy(first)
    pairs = zip(middle._state().values(), model._state().values(), strict=True)
    for value, other in pairs:
        value.data.add_(other.data).div_(2)
    model.interpolation = 0.5
    torch.testing.assert_close(model.enhance(small), middle.enhance(small))
    model.interpolation = 1.0
    assert torch.equal(model.enhance(small), own)


def test_features_before_their_relu_are_those_after_it_where_positive() -> None:
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    before, after = (FeatureMaps(weights=None, activated=activated)(x) for activated in (False, True))
    assert before.min() < 0
    assert torch.equal(after, before.clamp_min(0))


def test_features_of_a_file_are_those_of_vgg19(tmp_path: Path) -> None:
    """Against the network put together from layers, at torchvision's places; its weights are no part of the state."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    before = 3
    for group in VGG19:
        for _ in group:
            layers += [torch.nn.Conv2d(before, 1, 3, padding=1), torch.nn.ReLU()]
            before = 1
        layers.append(torch.nn.MaxPool2d(2))
    net = torch.nn.Sequential(*layers[:-2])
    torch.save({f"features.{key}": value for key, value in net.state_dict().items()}, tmp_path / "vgg.pth")
    maps = FeatureMaps(weights=str(tmp_path / "vgg.pth"), activated=False)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    shift = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    unit = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(maps(x), net(((x + 1) / 2 - shift) / unit))
    assert not maps.state_dict()


@pytest.mark.parametrize("generator", ["srresnet", "rrdb"])
def test_with_bicubic_it_starts_at_the_enlargement_and_the_rest_does_not_depend_on_the_colour(generator: str) -> None:
    model, small = made(bicubic=True, generator=generator).eval(), torch.rand(2, 1, 8, 8)
    large = F.interpolate(small, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(model.generator(small), large)
    for parameter in model.generator.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=seeded()))
    rest = model.generator(small) - large
    assert rest.abs().max() > 0.001
    torch.testing.assert_close(model.generator(small + 0.3) - large - 0.3, rest, atol=1e-5, rtol=1e-4)


def test_a_dense_block_by_hand() -> None:
    torch.manual_seed(0)
    block, x = DenseBlock(2, 1), torch.randn(1, 2, 4, 4)
    seen = x
    for conv in block.convs[:-1]:
        seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], 1)
    torch.testing.assert_close(block(x), x + 0.2 * block.convs[-1](seen))


def edges(n: int, seed: int) -> Tensor:
    """Pictures (n, 1, 16, 16) of half-planes with an edge one pixel wide, in any direction."""
    g = seeded(seed)
    angle, offset = 6.283 * torch.rand(n, 1, 1, generator=g), 8 * torch.rand(n, 1, 1, generator=g) - 4
    at = torch.arange(16.0) - 7.5
    away = at[:, None] * angle.sin() + at * angle.cos() - offset
    return (255 * (away + 0.5).clamp(0, 1)).round().to(torch.uint8)[:, None]


def test_srresnet_is_better_than_bicubic_enlargement_in_psnr_and_ssim() -> None:
    """On pictures that it has not seen, beyond four standard errors of the paired differences."""
    model, x, held, g = made(scale=4, pretrain=1.0, channels=8, bicubic=True), edges(400, 0), edges(100, 1), seeded()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(80):
        one = Batch(x[torch.randint(len(x), (20,), generator=g)])
        optimiser.zero_grad()
        model.loss("generator", one, g)[0].backward()
        optimiser.step()
        model.after_step("generator", one, g)
    model.eval()
    small = model.degrade(held)
    ours, plain = model.enhance(small) / 255, baseline(small, IMAGES)
    assert plain is not None
    for measure in (psnr, ssim):
        gain = measure(ours, held / 255) - measure(plain / 255, held / 255)
        assert gain.mean() > 4 * gain.std() / len(held) ** 0.5


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (IMAGES, {"scale": 3}, "model.scale=3 must be a power of two"),
        (DataSpec((1, 10, 10), "discrete", levels=4), {"scale": 4}, "divides the sides of the images, 10x10"),
        (DataSpec((16,), "real"), {}, "takes images"),
        (IMAGES, {"pretrain": 0.0}, "pretrain"),
        (IMAGES, {"features": "/nowhere/vgg19.pth"}, "is no file"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)


def test_pictures_of_other_sizes_are_enhanced_and_small_ones_made_as_the_baseline_expects() -> None:
    model = made().eval()
    assert model.enhance(torch.zeros(2, 1, 5, 7, dtype=torch.uint8)).shape == (2, 1, 10, 14)
    flat = torch.full((1, 1, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(model.degrade(flat), torch.full((1, 1, 8, 8), 77, dtype=torch.uint8))


def test_loss_changes_no_state() -> None:
    model, one = in_second_stage(), batch()
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        assert torch.equal(model.loss(player, one, seeded())[0], model.loss(player, one, seeded())[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
