"""Couplings and their nets: formulas written out, weight normalisation beside torch's own, masks that complement."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from dgmbench.nn.couplings import (
    ActNormConv,
    AffineCoupling,
    CouplingResnet,
    SplitCoupling,
    WeightNormConv,
    alternating,
    bounded,
    channel_halves,
    checkerboard,
    coupling_mlp,
)


def randomised(module):
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return module


@pytest.mark.parametrize("make", [lambda p: alternating(5, p), lambda p: checkerboard(3, 4, p),
    lambda p: channel_halves(5, p)], ids=["alternating", "checkerboard", "channels"])  # fmt: skip
def test_masks_of_both_parities_complement_each_other(make):
    even, odd = make(0), make(1)
    assert torch.equal(even + odd, torch.ones_like(even))
    assert 0 < even.sum() < even.numel()
    if even.dim() == 3 and even.shape[0] == 1:  # neighbours differ, along both axes
        assert (even.diff(dim=1) != 0).all()
        assert (even.diff(dim=2) != 0).all()


def test_a_masked_coupling_is_the_papers_formula_with_a_learned_rate():
    coupling = randomised(AffineCoupling(alternating(4, 0), coupling_mlp(4, (6,)), 4).double())
    x = torch.randn(3, 4, dtype=torch.float64)
    raw, shift = coupling.net(x * coupling.mask).chunk(2, 1)
    moves = coupling.mask == 0
    z, log_det = coupling(x)
    s = coupling.rate * torch.tanh(raw)
    assert torch.equal(z[:, ~moves], x[:, ~moves])
    assert torch.allclose(z[:, moves], (x * s.exp() + shift)[:, moves])
    assert torch.allclose(log_det, s[:, moves].sum(1))
    (gradient,) = torch.autograd.grad(log_det.sum(), coupling.rate)
    assert torch.allclose(gradient, (torch.tanh(raw) * moves).sum(0)), "the rate is learned, each channel's its own"


@pytest.mark.parametrize("log_scale", [None, bounded])
def test_a_split_coupling_is_its_formula(log_scale):
    net = nn.Linear(2, 6 if log_scale else 3).double()
    coupling = SplitCoupling(net, slice(0, 2), slice(2, None), log_scale=log_scale)
    x = torch.randn(4, 5, dtype=torch.float64)
    z, log_det = coupling(x)
    raw, shift = net(x[:, :2]).split([3, 3], 1) if log_scale else (torch.zeros(4, 3).double(), net(x[:, :2]))
    s = 3 * torch.tanh(raw / 3)
    assert torch.equal(z[:, :2], x[:, :2])
    assert torch.allclose(z[:, 2:], x[:, 2:] * s.exp() + shift)
    assert torch.allclose(log_det, s.sum(1))
    assert torch.allclose(coupling.inverse(z)[0], x)


@pytest.mark.parametrize(("size", "zero"), [(3, False), (1, False), (1, True)])
def test_weight_normalised_convolutions_are_torchs(size, zero):
    conv = randomised(WeightNormConv(2, 3, size, zero=zero))
    peer = weight_norm(nn.Conv2d(2, 3, size, padding=size // 2).double())
    with torch.no_grad():
        peer.parametrizations.weight.original0.copy_(conv.gain)
        peer.parametrizations.weight.original1.copy_(conv.direction)
        peer.bias.copy_(conv.bias)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    assert torch.allclose(conv(x), peer(x))
    before = conv(x)
    with torch.no_grad():
        conv.direction.mul_(3.0)
    assert torch.allclose(conv(x), before), "the length of a direction does not matter"
    for ours, theirs in zip(
        torch.autograd.grad(conv(x).square().sum(), [conv.gain, conv.bias]),
        torch.autograd.grad(peer(x).square().sum(), [peer.parametrizations.weight.original0, peer.bias]),
        strict=True,
    ):
        assert torch.allclose(ours, theirs)
    start = WeightNormConv(2, 3, size, zero=zero)
    assert torch.allclose(
        start.gain, torch.zeros(()) if zero else start.direction.flatten(1).norm(dim=1)[:, None, None, None]
    )


def test_the_residual_net_of_couplings():
    """x + conv(relu(conv(relu(x)))), and the sum of 1 x 1 convolutions of the stem's and each block's result."""
    net = randomised(CouplingResnet(2, 4, 2))
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    h = net.stem(x)
    total = net.skips[0](h)
    for block, skip in zip(net.blocks, net.skips[1:], strict=True):
        h = h + block.second(F.relu(block.first(F.relu(h))))
        total = total + skip(h)
    assert torch.allclose(net(x), net.last(F.relu(total)))
    assert (CouplingResnet(2, 4, 2)(x.float()) == 0).all(), "a coupling starts as the identity"


def test_a_convolution_with_actnorm_starts_at_standard_outputs():
    conv = randomised(ActNormConv(2, 3, 3))
    x = 1 + 2 * torch.randn(5, 2, 6, 4, dtype=torch.float64)
    plain = F.conv2d(x, conv.weight, padding=1)
    scale, bias = conv.log_scale.exp()[:, None, None], conv.bias[:, None, None]
    assert torch.allclose(conv(x), plain * scale + bias)
    conv.start_at(x)
    out = conv(x).transpose(0, 1).flatten(1)
    assert torch.allclose(out.mean(1), torch.zeros(3).double())
    assert torch.allclose(out.var(1, correction=0), torch.ones(3).double())
