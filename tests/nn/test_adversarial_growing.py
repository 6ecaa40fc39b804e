"""Networks that grow: at alpha 0 and 1 they are their coarser and their finer self."""

import pytest
import torch
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial_growing import GrowingDiscriminator, GrowingGenerator, doubled, halved, sides_of
from dgmbench.nn.equalised import pixel_norm

SIDES, MAPS = [4, 8, 16], [5, 4, 3]


def networks() -> tuple[GrowingGenerator, GrowingDiscriminator]:
    torch.manual_seed(0)
    return GrowingGenerator(2, SIDES, MAPS, latent=3), GrowingDiscriminator(2, SIDES, MAPS, group=4)


@pytest.mark.parametrize("level", [1, 2])
def test_at_alpha_0_a_level_is_the_one_below_and_at_1_it_is_itself_alone(level: int) -> None:
    generator, discriminator = networks()
    z, x = torch.randn(8, 3), torch.randn(8, 2, SIDES[level], SIDES[level])
    torch.testing.assert_close(generator(z, level, 0.0), doubled(generator(z, level - 1, 1.0)))
    torch.testing.assert_close(discriminator(x, level, 0.0), discriminator(halved(x), level - 1, 1.0))
    own = generator(z, level, 1.0), discriminator(x, level, 1.0)
    middle = generator(z, level, 0.3)
    torch.testing.assert_close(middle, 0.7 * generator(z, level, 0.0) + 0.3 * own[0])
    generator.to_images[level - 1].weight.data.normal_()
    discriminator.from_images[level - 1].weight.data.normal_()
    assert torch.equal(generator(z, level, 1.0), own[0])
    assert torch.equal(discriminator(x, level, 1.0), own[1])
    assert not torch.equal(generator(z, level, 0.3), middle)


def test_a_discriminator_mixes_the_maps_of_both_ways_by_alpha() -> None:
    _, net = networks()
    x, alpha = torch.randn(4, 2, 8, 8), 0.3

    def act(h: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(h, 0.2)

    first, second = net.blocks[0].first, net.blocks[0].second
    fine = halved(act(second(act(first(act(net.from_images[1](x)))))))
    coarse = act(net.from_images[0](halved(x)))
    maps = 0.3 * fine + 0.7 * coarse
    deviation = maps.var(0, correction=0).add(1e-8).sqrt().mean().expand(4, 1, 4, 4)
    h = act(net.hidden(act(net.last(torch.cat([maps, deviation], 1))).flatten(1)))
    torch.testing.assert_close(net(x, 1, alpha), net.head(h)[:, 0])


def test_a_generator_of_two_levels_by_hand() -> None:
    net, _ = networks()
    z = torch.randn(4, 3)

    def layer(conv: torch.nn.Module, h: torch.Tensor) -> torch.Tensor:
        return pixel_norm(F.leaky_relu(conv(h), 0.2))

    h = pixel_norm(F.leaky_relu(net.project(pixel_norm(z)).view(4, 5, 4, 4), 0.2))
    h = layer(net.first, h)
    torch.testing.assert_close(net(z, 0, 1.0), net.to_images[0](h))
    first, second = net.blocks[0].first, net.blocks[0].second
    h = layer(second, layer(first, h.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    torch.testing.assert_close(net(z, 1, 1.0), net.to_images[1](h))
    assert net(7 * z, 2, 1.0).shape == (4, 2, 16, 16)
    torch.testing.assert_close(net(7 * z, 2, 1.0), net(z, 2, 1.0), atol=1e-3, rtol=1e-3)


def test_sides_and_what_has_none() -> None:
    assert sides_of(DataSpec((3, 64, 64), "binary")) == [4, 8, 16, 32, 64]
    for shape in ((1, 24, 24), (1, 4, 4), (1, 8, 16), (64,)):
        with pytest.raises(UserError, match="4 or 7 times a power of two"):
            sides_of(DataSpec(shape, "binary"))
