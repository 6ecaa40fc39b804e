"""Equalised layers: the scale at run time, one speed for all widths; pixel norm and deviations by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dgmbench.nn.equalised import EqualisedConv2d, EqualisedLinear, pixel_norm, with_deviation


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_weights_start_as_standard_normals_and_are_scaled_when_used() -> None:
    torch.manual_seed(0)
    linear, conv = EqualisedLinear(300, 200), EqualisedConv2d(20, 30, 3, gain=1.0)
    for layer in (linear, conv):
        n = layer.weight.numel()
        assert abs(layer.weight.mean()) < 4 / n**0.5
        assert abs(layer.weight.var() - 1) < 4 * (2 / n) ** 0.5
        assert torch.count_nonzero(layer.bias) == 0
        nn.init.normal_(layer.bias)
    x = torch.randn(5, 300, generator=seeded())
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight * (2 / 300) ** 0.5, linear.bias))
    maps = torch.randn(2, 20, 6, 5, generator=seeded())
    torch.testing.assert_close(conv(maps), F.conv2d(maps, conv.weight / (20 * 9) ** 0.5, conv.bias, padding=1))
    assert EqualisedConv2d(2, 3, 1)(torch.zeros(1, 2, 4, 4)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("inputs", [4, 400])
def test_one_step_of_adam_moves_the_effective_weights_of_every_width_at_one_relative_speed(inputs: int) -> None:
    """By its rate times their standard deviation, where a plain layer's wide weights move by the rate itself."""
    torch.manual_seed(0)
    layer = EqualisedLinear(inputs, 3)
    optimiser, before = torch.optim.Adam(layer.parameters(), lr=1e-3), layer.weight.detach() * layer.scale
    layer(torch.randn(8, inputs)).square().sum().backward()
    optimiser.step()
    moved = (layer.weight.detach() * layer.scale - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * (2 / inputs) ** 0.5), rtol=0.02, atol=0)


def test_pixel_norm_gives_every_position_a_mean_square_of_one() -> None:
    x = 7 * torch.randn(3, 5, 2, 4, generator=seeded())
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(3, 2, 4))
    torch.testing.assert_close(pixel_norm(x), x / x.square().mean(1, keepdim=True).sqrt())
    torch.testing.assert_close(pixel_norm(x[:, :, 0, 0]).norm(dim=1), torch.full((3,), 5**0.5))


def test_the_deviation_of_each_group_by_hand() -> None:
    x = torch.randn(8, 3, 2, 2, generator=seeded())
    found = with_deviation(x, 4)
    assert torch.equal(found[:, :3], x)
    for group in (0, 1):  # of b / group = 2 groups: i modulo 2
        wanted = x[group::2].std(0, correction=0).mean()
        torch.testing.assert_close(found[group::2, 3], wanted.expand(4, 2, 2))
    whole = with_deviation(x[:6], 4)[:, 3]
    torch.testing.assert_close(whole, x[:6].std(0, correction=0).mean().expand(6, 2, 2))
    same = with_deviation(x[:1].expand(4, -1, -1, -1), 4)[:, 3]
    torch.testing.assert_close(same, torch.full((4, 2, 2), 1e-4))
