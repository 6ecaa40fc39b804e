"""BatchNorm against PyTorch's own, and the one difference: when the running statistics move."""

import pytest
import torch
from torch import nn

from dgmbench.nn.batchnorm import BatchNorm, absorb_statistics


@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4, 4)])
def test_equals_pytorch_once_absorbed(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3).double(), (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3).double()
    with torch.no_grad():
        ours.weight.copy_(torch.randn(3))
        theirs.weight.copy_(ours.weight)
    for _ in range(3):
        x = 2 * torch.randn(shape, dtype=torch.float64) + 1
        assert torch.equal(ours(x), theirs(x))
        absorb_statistics(ours)
    assert torch.allclose(ours.running_mean, theirs.running_mean, rtol=1e-12)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-12)
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), rtol=1e-12)


def test_forward_changes_no_state() -> None:
    layer = BatchNorm(3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(8, 3))
    layer.eval()(torch.randn(8, 3))
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_batch_counts_once_and_only_the_last_one_seen_in_training() -> None:
    net = nn.Sequential(nn.Linear(2, 3), BatchNorm(3))
    layer = net[1]
    assert isinstance(layer, BatchNorm)
    x = torch.randn(50, 2)
    net(torch.randn(50, 2))
    net(x)
    net.eval()(torch.randn(50, 2))
    absorb_statistics(net)
    assert torch.allclose(layer.running_mean, 0.1 * net[0](x).mean(0), atol=1e-6)
    after = layer.running_mean.clone()
    absorb_statistics(net)
    assert torch.equal(after, layer.running_mean)
