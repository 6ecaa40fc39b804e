"""Projection and joint discriminators, and generators that take their labels in batch-norm."""

import pytest
import torch
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial import NetName, make_discriminator, make_generator
from dgmbench.nn.adversarial_pairs import make_joint_discriminator, make_projection_discriminator
from dgmbench.nn.batchnorm import BatchNorm, ConditionalBatchNorm, absorb_statistics, statistics_of

SPEC = DataSpec((1, 16, 16), "discrete", levels=4)
NETS: list[NetName] = ["mlp", "dcgan", "resnet"]
WIDTHS = {"hidden_sizes": (6, 5), "channels": 2}


def inputs(n: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 1, 16, 16), torch.eye(3)[torch.arange(n) % 3]


@pytest.mark.parametrize("net", NETS)
def test_features_and_outputs_make_the_whole_discriminator(net: NetName) -> None:
    discriminator = make_discriminator(net, SPEC, outputs=2, **WIDTHS)
    x, _ = inputs()
    torch.testing.assert_close(discriminator.outputs(discriminator.features(x)), discriminator(x))


@pytest.mark.parametrize("net", NETS)
def test_a_projection_is_linear_in_the_embedding_and_changes_with_the_label(net: NetName) -> None:
    torch.manual_seed(0)
    discriminator = make_projection_discriminator(net, SPEC, classes=3, **WIDTHS)
    x, y = inputs()
    phi = discriminator.features(x)
    by_hand = torch.stack([(phi[i] * discriminator.embedding.weight[:, i % 3]).sum() for i in range(4)])
    a = discriminator(x, y)
    torch.testing.assert_close(a[:, 0], discriminator.net(x)[:, 0] + by_hand)
    assert not torch.allclose(a, discriminator(x, y.roll(1, 1)))
    with torch.no_grad():
        discriminator.embedding.weight.mul_(2)
    torch.testing.assert_close(discriminator(x, y)[:, 0], a[:, 0] + by_hand)
    # a mixture of labels gives the mixture of outputs
    mixed = discriminator(x, torch.full((4, 3), 1 / 3))
    each = [discriminator(x, torch.eye(3)[[k] * 4]) for k in range(3)]
    torch.testing.assert_close(mixed, torch.stack(each).mean(0))


def test_a_projection_makes_one_pass_so_that_its_statistics_are_those_of_that_pass() -> None:
    discriminator = make_projection_discriminator("dcgan", SPEC, classes=3, **WIDTHS)
    x, y = inputs()
    with statistics_of(discriminator):
        discriminator(x, y)
    absorb_statistics(discriminator)
    layer = next(m for m in discriminator.modules() if isinstance(m, BatchNorm))
    expected = discriminator.net.trunk[:3](x).mean((0, 2, 3))  # type: ignore[index]
    torch.testing.assert_close(layer.running_mean, 0.1 * expected)


@pytest.mark.parametrize("net", NETS)
def test_a_joint_discriminator_sees_which_code_belongs_to_which_data(net: NetName) -> None:
    torch.manual_seed(0)
    discriminator = make_joint_discriminator(net, SPEC, latent=2, **WIDTHS).eval()
    x, _ = inputs()
    z = torch.randn(4, 2)
    a = discriminator(x, code=z)
    assert a.shape == (4, 1)
    assert not torch.allclose(a, discriminator(x, code=z.roll(1, 0)))
    torch.testing.assert_close(a.roll(1, 0), discriminator(x.roll(1, 0), code=z.roll(1, 0)))
    gradients = torch.autograd.grad(a.sum(), list(discriminator.parameters()), allow_unused=True)
    assert all(g is not None for g in gradients), "no idle parameter"


def test_a_discriminator_of_codes_does_not_take_labels() -> None:
    x, y = inputs()
    with pytest.raises(TypeError, match="labels"):
        make_joint_discriminator("mlp", SPEC, latent=3, **WIDTHS)(x, code=y, labels=y)
    with pytest.raises(TypeError, match="code"):
        make_projection_discriminator("mlp", SPEC, classes=3, **WIDTHS)(x, labels=y, code=y)


@pytest.mark.parametrize("net", ["dcgan", "resnet"])
def test_a_generator_takes_labels_in_its_batch_norm(net: NetName) -> None:
    torch.manual_seed(0)
    generator = make_generator(net, SPEC, latent=2, classes=3, labels="batch_norm", **WIDTHS)
    torch.manual_seed(0)
    plain = make_generator(net, SPEC, latent=2, **WIDTHS)
    z, (_, y) = torch.randn(4, 2), inputs()
    norms = [m for m in generator.modules() if isinstance(m, ConditionalBatchNorm)]
    assert len(norms) == sum(isinstance(m, BatchNorm) for m in plain.modules())
    assert torch.equal(generator(z, y), generator(z, y.roll(1, 1))), "it starts without any influence of the label"
    first = next(m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d | nn.Linear))
    assert first.weight.shape == next(m for m in plain.modules() if isinstance(m, type(first))).weight.shape
    for norm in norms:
        nn.init.normal_(norm.scale.weight)
    assert not torch.allclose(generator(z, y), generator(z, y.roll(1, 1)))
    # in evaluation mode only an example's own label counts
    generator.eval()
    other = torch.cat([y[:1], y[1:].roll(1, 1)])
    torch.testing.assert_close(generator(z, y)[0], generator(z, other)[0])
    assert not torch.allclose(generator(z, y)[1:], generator(z, other)[1:])
    gradients = torch.autograd.grad(generator.train()(z, y).square().sum(), list(generator.parameters()))
    assert all(g.abs().max() > 0 for g in gradients)


def test_an_mlp_generator_has_no_batch_norm_for_labels() -> None:
    with pytest.raises(UserError, match="net=dcgan or net=resnet, not mlp"):
        make_generator("mlp", SPEC, latent=2, classes=3, labels="batch_norm", **WIDTHS)
