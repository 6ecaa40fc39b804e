"""Self-attention against a loop over positions, at its start, and how far it sees."""

import torch
from torch import Tensor, nn

from dgmbench.nn.attention import SelfAttention


def attention(channels: int, gamma: float) -> SelfAttention:
    torch.manual_seed(0)
    layer = SelfAttention(channels).double()
    nn.init.constant_(layer.gamma, gamma)
    return layer


def pictures(n: int, channels: int) -> Tensor:
    return torch.randn(n, channels, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_it_starts_as_the_identity_that_can_learn() -> None:
    layer = SelfAttention(8)
    x = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), x)
    (gradient,) = torch.autograd.grad((layer(x) * x).sum(), layer.gamma)
    assert gradient != 0


def test_every_position_is_the_mean_of_all_under_its_own_weights() -> None:
    """Equations 1-3 by a loop over pairs of positions, values and the gradient of the queries' map."""
    layer, x = attention(16, 0.7), pictures(2, 16)
    f, g, h = (maps.weight[:, :, 0, 0] for maps in (layer.f, layer.g, layer.h))
    v = layer.v.weight[:, :, 0, 0]
    positions = [(r, c) for r in range(3) for c in range(4)]
    columns = []
    for b in range(2):
        for rj, cj in positions:
            scores = torch.stack([(f @ x[b, :, ri, ci]) @ (g @ x[b, :, rj, cj]) for ri, ci in positions])
            beta = scores.exp() / scores.exp().sum()
            seen = sum(beta[i] * (h @ x[b, :, ri, ci]) for i, (ri, ci) in enumerate(positions))
            columns.append(x[b, :, rj, cj] + 0.7 * (v @ seen))
    expected = torch.stack(columns).unflatten(0, (2, 3, 4)).movedim(3, 1)
    found = layer(x)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(y.pow(3).sum(), layer.g.weight)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert [m.weight.shape[:2] for m in (layer.f, layer.g, layer.h, layer.v)] == [(2, 16)] * 3 + [(16, 2)]


def test_a_corner_sees_the_opposite_corner_as_a_convolution_does_not() -> None:
    layer, x = attention(8, 1.0), pictures(1, 8)
    x.requires_grad_()
    for net, sees in ((layer, True), (nn.Conv2d(8, 8, 3, padding=1).double(), False), (attention(8, 0.0), False)):
        (gradient,) = torch.autograd.grad(net(x)[0, :, 0, 0].sum(), x)
        assert bool(gradient[0, :, -1, -1].abs().max() > 0) == sees
