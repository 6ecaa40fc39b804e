"""Generator and discriminator networks: the published DCGAN, shapes, labels, and what they refuse."""

import pytest
import torch
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial import DcganDiscriminator, DcganGenerator, make_discriminator, make_generator


def images(side: int, channels: int = 3) -> DataSpec:
    return DataSpec((channels, side, side), "discrete", levels=256)


def layer_shapes(net: nn.Module, kind: type[nn.Module], *inputs: Tensor) -> list[tuple[int, ...]]:
    """Output shapes, without the batch, of the layers of a kind, in the order in which they run."""
    shapes: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    net(*inputs)
    return shapes


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# Radford et al. 2016, figure 1 (widths) and the authors' Torch release (4x4 kernels, ngf = ndf = 64 by default).
GENERATOR = {
    64: [(512, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)],
    32: [(256, 4, 4), (128, 8, 8), (64, 16, 16), (3, 32, 32)],
    28: [(128, 7, 7), (64, 14, 14), (3, 28, 28)],
}


@pytest.mark.parametrize("side", [28, 32, 64])
def test_dcgan_layer_shapes_as_published(side: int) -> None:
    generator = DcganGenerator(images(side), latent=100, channels=64)
    discriminator = DcganDiscriminator(images(side), channels=64)
    assert layer_shapes(generator, nn.ConvTranspose2d, torch.randn(2, 100)) == GENERATOR[side]
    mirrored = [*GENERATOR[side][-2::-1], (1, 1, 1)]
    assert layer_shapes(discriminator, nn.Conv2d, torch.randn(2, 3, side, side)) == mirrored


def test_dcgan_widths_of_figure_1() -> None:
    generator = DcganGenerator(images(64), latent=100, channels=128)
    widths = [shape[0] for shape in layer_shapes(generator, nn.ConvTranspose2d, torch.randn(2, 100))]
    assert widths == [1024, 512, 256, 128, 3]


def test_dcgan_parameter_counts_as_published() -> None:
    # The counts of the release's networks at 64 pixels, 100 latents and 64 channels, known from its many ports.
    assert count(DcganGenerator(images(64), latent=100, channels=64)) == 3_576_704
    assert count(DcganDiscriminator(images(64), channels=64)) == 2_765_568


@pytest.mark.parametrize("side", [28, 32])
def test_dcgan_parameter_counts_by_hand(side: int) -> None:
    widths = {28: [128, 64], 32: [256, 128, 64]}[side]
    base = {28: 7, 32: 4}[side]
    kernels = sum(16 * m * n for m, n in zip(widths, [*widths[1:], 1], strict=True))
    expected = 100 * widths[0] * base**2 + kernels + 2 * sum(widths)
    assert count(DcganGenerator(images(side, 1), latent=100, channels=64)) == expected
    expected = kernels + widths[0] * base**2 + 2 * sum(widths[:-1])
    assert count(DcganDiscriminator(images(side, 1), channels=64)) == expected


def test_dcgan_initialisation_as_published() -> None:
    torch.manual_seed(0)
    for net in (DcganGenerator(images(64), latent=100, channels=64), DcganDiscriminator(images(64), channels=64)):
        for name, parameter in net.named_parameters():
            if parameter.dim() == 4:
                centre, n = 0.0, parameter.numel()
            elif name.endswith("weight"):
                centre, n = 1.0, parameter.numel()
            else:
                assert (parameter == 0).all()
                continue
            assert abs(parameter.mean().item() - centre) < 4 * 0.02 / n**0.5
            assert abs(parameter.std().item() / 0.02 - 1) < 4 / (2 * n) ** 0.5


@pytest.mark.parametrize("side", [16, 28, 32, 64])
@pytest.mark.parametrize("net", ["dcgan", "resnet", "mlp"])
def test_nets_fit_together_at_every_size(net: str, side: int) -> None:
    spec = images(side)
    sizes = {"hidden_sizes": (5, 6), "channels": 2, "classes": 4}
    generator = make_generator(net, spec, latent=3, **sizes)  # type: ignore[arg-type]
    discriminator = make_discriminator(net, spec, outputs=7, **sizes)  # type: ignore[arg-type]
    labels = nn.functional.one_hot(torch.tensor([1, 3]), 4).float()
    x = generator(torch.randn(2, 3), labels)
    assert x.shape == (2, 3, side, side)
    assert x.abs().max() <= 1
    assert discriminator(x, labels).shape == (2, 7)
    assert discriminator.features(x, labels).dim() == 2
    assert not torch.equal(discriminator(x, labels), discriminator(x, labels.flip(0)))
    assert not torch.equal(generator.eval()(torch.ones(2, 3), labels)[0], generator(torch.ones(2, 3), labels)[1])


@pytest.mark.parametrize("net", ["mlp", "resnet"])
def test_the_head_reads_the_features(net: str) -> None:
    discriminator = make_discriminator(net, images(16), hidden_sizes=(5, 6), channels=2)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(discriminator(x), discriminator.head(discriminator.features(x)))


def test_resnet_critic_halves_to_eight_pixels_and_has_no_normalisation() -> None:
    critic = make_discriminator("resnet", images(32), hidden_sizes=(), channels=8)
    shapes = layer_shapes(critic.blocks, nn.Conv2d, torch.randn(1, 8, 32, 32))
    # Two blocks that halve (3x3, 3x3, then 1x1 after pooling), two that do not (no shortcut convolution).
    assert [shape[1] for shape in shapes] == [32, 32, 16, 16, 16, 8, 8, 8, 8, 8]
    assert not any("norm" in type(module).__name__.lower() for module in critic.modules())


def test_real_data_are_not_squashed() -> None:
    torch.manual_seed(0)
    generator = make_generator("mlp", DataSpec((2,), "real"), latent=3, hidden_sizes=(8,), channels=1)
    assert generator(100 * torch.randn(50, 3)).abs().max() > 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 30, 30), (1, 32, 28), (12,)])
@pytest.mark.parametrize("net", ["dcgan", "resnet"])
def test_shapes_without_a_base_are_refused(net: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="net=mlp"):
        make_generator(net, DataSpec(shape, "real"), latent=3, hidden_sizes=(), channels=2)  # type: ignore[arg-type]
