"""Encoders and decoders by name: shapes, linearity, gradients."""

import pytest
import torch

from dgmbench.errors import UserError
from dgmbench.nn.encoders import ResidualBlock, build_decoder, build_encoder


@pytest.mark.parametrize("net", ["mlp", "conv", "resnet"])
@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 28, 20)])
def test_shapes(net, shape):
    encoder = build_encoder(net, shape, 6, hidden_sizes=(5, 4), channels=4)
    decoder = build_decoder(net, 3, 2, shape, hidden_sizes=(4, 5), channels=4)
    code = encoder(torch.randn(2, *shape))
    image = decoder(torch.randn(2, 3))
    assert code.shape == (2, 6)
    assert image.shape == (2, 2, *shape)
    (code.square().sum() + image.square().sum()).backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_conv_stops_at_a_side_of_four():
    encoder = build_encoder("conv", (1, 64, 64), 2, hidden_sizes=(), channels=8)
    convs = [m for m in encoder if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convs] == [8, 16, 32, 32, 32]
    assert encoder[-1].in_features == 32 * 4 * 4


def test_a_residual_block_is_its_formula():
    torch.manual_seed(0)
    block = ResidualBlock(6).double()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    h = x
    for norm, conv in zip(block.norms, block.convs, strict=True):
        torch.nn.init.normal_(norm.weight)
        groups = h.view(2, 2, 3 * 16)  # 6 channels in 2 groups of 3
        standard = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        scaled = standard.view_as(h) * norm.weight.view(1, 6, 1, 1)
        h = torch.nn.functional.conv2d(scaled * scaled.sigmoid(), conv.weight, conv.bias, padding=1)
    assert torch.allclose(block(x), x + h)


def test_no_hidden_layer_is_affine():
    encoder = build_encoder("mlp", (4,), 3, hidden_sizes=())
    a, b = torch.randn(1, 4), torch.randn(1, 4)
    assert torch.allclose(encoder(a + b) + encoder(torch.zeros(1, 4)), encoder(a) + encoder(b), atol=1e-6)


@pytest.mark.parametrize(
    ("net", "shape", "hidden", "sentence"),
    [("conv", (4,), (5,), "takes images"), ("mlp", (4,), (0,), "must be positive")],
)
def test_wrong_choices_are_explained(net, shape, hidden, sentence):
    with pytest.raises(UserError, match=sentence):
        build_encoder(net, shape, 2, hidden_sizes=hidden)
