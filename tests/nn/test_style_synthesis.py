"""The synthesis of styles: statistics after AdaIN, what noise and styles reach, growing, the mapping by hand."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.style_synthesis import Mapping, StyledGenerator, StyledLayer, adaptive_instance_norm

SIDES, MAPS = [4, 8], [5, 4]


def generator() -> StyledGenerator:
    torch.manual_seed(0)
    net = StyledGenerator(2, SIDES, MAPS, latent=3)
    for layer in net.styled:
        nn.init.normal_(layer.strength)  # noise has none at the start
        nn.init.normal_(layer.style.bias)
    return net


def test_adain_sets_mean_and_deviation_of_every_map_to_the_styles() -> None:
    g = torch.Generator().manual_seed(0)
    h, style = 3 + 5 * torch.randn(4, 6, 8, 8, generator=g), torch.randn(4, 12, generator=g)
    out = adaptive_instance_norm(h, style)
    scale, shift = style[:, :6], style[:, 6:]
    torch.testing.assert_close(out.mean((2, 3)), shift, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((2, 3), correction=0), (1 + scale).abs(), atol=1e-5, rtol=1e-5)
    standard = (h - h.mean((2, 3), keepdim=True)) / h.std((2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(out, (1 + scale)[..., None, None] * standard + shift[..., None, None])
    torch.testing.assert_close(adaptive_instance_norm(7 * h - 2, style), out)
    assert (adaptive_instance_norm(torch.ones(1, 6, 4, 4), style[:1]) - shift[:1, :, None, None]).abs().max() < 1e-6


def test_the_mapping_by_hand_looks_at_the_direction_of_z_only() -> None:
    torch.manual_seed(0)
    net, z = Mapping(3, 2), torch.randn(5, 3)
    w = z / z.square().mean(1, keepdim=True).sqrt()
    for layer in net.layers:
        w = F.leaky_relu(w @ layer.weight.T * (2 / 3) ** 0.5 + layer.bias, 0.2)
    torch.testing.assert_close(net(z), w)
    torch.testing.assert_close(net(4 * z), net(z))


def test_a_layer_by_hand_noise_and_bias_before_the_rectifier() -> None:
    torch.manual_seed(0)
    layer = StyledLayer(2, 3, latent=4)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    h, w, noise = torch.randn(5, 2, 6, 6), torch.randn(5, 4), torch.randn(5, 1, 6, 6)
    assert layer.conv is not None
    maps = F.leaky_relu(layer.conv(h) + layer.strength * noise, 0.2)
    torch.testing.assert_close(layer(h, w, noise), adaptive_instance_norm(maps, layer.style(w)))


def test_without_noise_strength_noise_does_nothing_and_every_plane_reaches_the_picture_with_it() -> None:
    net, plain = generator(), StyledGenerator(2, SIDES, MAPS, latent=3)
    w, noise = torch.randn(2, 4, 3), torch.randn(2, net.noise_dim)
    assert net.noise_dim == 2 * 16 + 2 * 64
    assert torch.equal(plain(w, noise, 1, 1.0), plain(w, 0 * noise, 1, 1.0))
    noise.requires_grad_()
    (gradient,) = torch.autograd.grad(net(w, noise, 1, 1.0).square().sum(), noise)
    assert bool((gradient != 0).any(0).view(-1, 16)[:2].all())
    assert bool(gradient[:, 32:].ne(0).any(0).all())
    below = torch.cat([noise[:, :32], torch.zeros(2, 128)], 1)
    assert torch.equal(net(w, noise, 0, 1.0), net(w, below, 0, 1.0))


def test_every_layer_takes_its_own_style() -> None:
    net = generator()
    w, noise = torch.randn(2, 4, 3), torch.randn(2, net.noise_dim)

    def picture(w: Tensor, level: int) -> Tensor:
        return net(w, noise, level, 1.0)

    for layer in range(4):
        other = w.clone()
        other[:, layer] += 1
        assert not torch.allclose(picture(other, 1), picture(w, 1))
        assert torch.equal(picture(other, 0), picture(w, 0)) == (layer >= 2)


def test_at_alpha_0_it_is_its_coarser_self_enlarged_and_at_1_it_is_itself_alone() -> None:
    net = generator()
    w, noise = torch.randn(2, 4, 3), torch.randn(2, net.noise_dim)
    small, large = net(w, noise, 0, 1.0), net(w, noise, 1, 1.0)
    doubled = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(net(w, noise, 1, 0.0), doubled)
    torch.testing.assert_close(net(w, noise, 1, 0.4), 0.6 * doubled + 0.4 * large)
    net.to_images[0].weight.data.zero_()
    assert torch.equal(net(w, noise, 1, 1.0), large)
