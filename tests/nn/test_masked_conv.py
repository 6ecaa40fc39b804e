"""Masked convolutions: dependencies by gradient, the square masked kernel, and caches against full passes."""

import pytest
import torch
from torch.nn import functional as F

from dgmbench.nn.masked_conv import (
    CachedConv,
    CachedVerticalConv,
    MaskedConv2d,
    VerticalConv2d,
    channel_groups,
)


def conv(mask, above, beside, channels=3):
    torch.manual_seed(0)
    return MaskedConv2d(
        channel_groups(5, channels), channel_groups(4, channels).repeat(2), mask, above=above, beside=beside
    ).double()


@pytest.mark.parametrize("features", [3, 4, 5, 12])
def test_groups_are_sorted_and_even(features):
    sizes = torch.bincount(channel_groups(features, 3), minlength=3)
    assert sizes.max() - sizes.min() <= 1
    assert (channel_groups(features, 3).diff() >= 0).all()


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize(("above", "beside"), [(1, 1), (2, 1), (0, 2), (0, 0)])
def test_each_feature_sees_exactly_the_past(mask, above, beside):
    layer = conv(mask, above, beside)
    x = torch.randn(1, 5, 5, 6, dtype=torch.float64, requires_grad=True)
    out, y, column = layer(x), 3, 2
    for o, group in enumerate(layer.out_groups.tolist()):
        (gradient,) = torch.autograd.grad(out[0, o, y, column], x, retain_graph=True, allow_unused=True)
        for i, other in enumerate(layer.in_groups.tolist()):
            for row in range(5):
                for c in range(6):
                    over = y - above <= row < y and abs(c - column) <= beside
                    left = row == y and column - beside <= c < column
                    own = (row, c) == (y, column) and (other < group or (other == group and mask == "B"))
                    assert (gradient[0, i, row, c] != 0) == (over or left or own)


def test_it_is_the_square_kernel_with_a_mask():
    layer = conv("B", 1, 1)
    square = F.pad(layer.weight * layer.mask, (0, 0, 0, 1))
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64)
    assert torch.allclose(layer(x), F.conv2d(x, square, layer.bias, padding=1), rtol=1e-12)


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("above", "beside"), [(1, 1), (2, 3), (0, 2), (0, 0)])
@torch.no_grad()
def test_cached_convolution_equals_a_full_pass(mask, channels, above, beside):
    layer = conv(mask, above, beside, channels)
    x, extra = torch.randn(2, 5, 6, 4, dtype=torch.float64), torch.randn(2, 8, 6, 4, dtype=torch.float64)
    full, cache = layer(x) + extra, CachedConv(layer, 2, 4)
    for row in range(6):
        cache.start_row(extra[:, :, row].transpose(1, 2))
        for column in range(4):
            for group in range(channels):
                inputs, outputs = layer.in_groups == group, layer.out_groups == group
                if mask == "A":  # the group's own inputs are not known yet
                    got = cache.read(column, group)
                    cache.write(column, group, x[:, inputs, row, column])
                else:
                    got = cache.step(column, group, x[:, inputs, row, column])
                assert torch.allclose(got, full[:, outputs, row, column], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_vertical_convolution_and_its_cache(strict):
    torch.manual_seed(0)
    layer = VerticalConv2d(2, 3, 5, strict=strict).double()
    x = torch.randn(2, 2, 6, 4, dtype=torch.float64)
    full, cache = layer(x), CachedVerticalConv(layer, 2, 4)
    for row in range(6):
        later = x.clone()
        later[:, :, row if strict else row + 1 :] += 1
        assert torch.equal(layer(later)[:, :, row], full[:, :, row])
        assert (layer(later)[:, :, row + 1 :] != full[:, :, row + 1 :]).any() or row == 5
        own = None if strict else x[:, :, row].transpose(1, 2)
        assert torch.allclose(cache.row(own).transpose(1, 2), full[:, :, row], rtol=1e-12, atol=1e-12)
        if strict:
            for column in range(4):
                cache.input.write(column, slice(0, 2), x[:, :, row, column])
