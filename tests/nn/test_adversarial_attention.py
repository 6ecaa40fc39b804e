"""The bottleneck block, layer by layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dgmbench.nn.adversarial_attention import Bottleneck


@pytest.mark.parametrize("after", [2, 4, 6])
def test_a_bottleneck_by_hand(after: int) -> None:
    """1x1, 3x3, 3x3, 1x1 beside a skip that drops channels, keeps them all or appends some."""
    torch.manual_seed(0)
    block = Bottleneck(4, after, resample="down").double()
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    h = x
    for k, conv in enumerate(block.convs):
        h = F.relu(h)
        if k == 3:
            h = h.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
        h = F.conv2d(h, conv.weight, conv.bias, padding=(0, 1, 1, 0)[k])  # type: ignore[arg-type]
    skip = x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    if after == 6:
        extra = block.extra
        assert extra is not None
        skip = torch.cat([skip, F.conv2d(skip, extra.weight, extra.bias)], 1)
    torch.testing.assert_close(block(x), h + skip[:, :after])
    up = Bottleneck(4, 2, resample="up", norm=True, condition=3).double()
    assert up(x, torch.zeros(2, 3, dtype=torch.float64)).shape == (2, 2, 8, 8)
    nn.init.zeros_(up.convs[3].weight)
    repeated = x[:, :2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x, torch.zeros(2, 3).double()), repeated)
