"""BatchNorm against PyTorch's own, and the one difference: when the running statistics move."""

import pytest
import torch
from torch import nn

from dgmbench.errors import UserError
from dgmbench.nn.batchnorm import BatchNorm, ConditionalBatchNorm, absorb_statistics, statistics_of


@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4, 4)])
def test_equals_pytorch_once_absorbed(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(3).double(), (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3).double()
    with torch.no_grad():
        ours.weight.copy_(torch.randn(3))
        theirs.weight.copy_(ours.weight)
    for _ in range(3):
        x = 2 * torch.randn(shape, dtype=torch.float64) + 1
        with statistics_of(ours):
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


def small_net() -> tuple[nn.Sequential, BatchNorm]:
    net = nn.Sequential(nn.Linear(2, 3), BatchNorm(3))
    layer = net[1]
    assert isinstance(layer, BatchNorm)
    return net, layer


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_batch_counts_once_and_only_the_named_pass_in_training(position: int) -> None:
    """Whatever the order: the named pass may be the first, the middle or the last of three."""
    net, layer = small_net()
    batches = torch.randn(3, 50, 2)
    for i, batch in enumerate(batches):
        if i == position:
            with statistics_of(net):
                net(batch)
        else:
            net(batch)
    net.eval()(torch.randn(50, 2))
    net.train()
    absorb_statistics(net)
    assert torch.allclose(layer.running_mean, 0.1 * net[0](batches[position]).mean(0), atol=1e-6)
    after = layer.running_mean.clone()
    with pytest.raises(UserError, match="no statistics to take up"):
        absorb_statistics(net)
    assert torch.equal(after, layer.running_mean)


def test_of_a_loss_that_is_computed_again_the_last_computation_counts() -> None:
    net, layer = small_net()
    first, second = torch.randn(2, 50, 2)
    for batch in (first, second):
        with statistics_of(net):
            net(batch)
        net(torch.randn(50, 2))
    with statistics_of(net.eval()):  # an evaluation of the loss in between changes nothing
        net(torch.randn(50, 2))
    net.train()
    absorb_statistics(net)
    assert torch.allclose(layer.running_mean, 0.1 * net[0](second).mean(0), atol=1e-6)


def test_ambiguous_passes_are_errors() -> None:
    net, layer = small_net()
    x = torch.randn(5, 2)
    net(x)
    with pytest.raises(UserError, match=r"names no pass of the network\. .* within 'with statistics_of\(net\):'"):
        absorb_statistics(net)
    with pytest.raises(UserError, match="ran twice"), statistics_of(net):
        net(net(x)[:, :2])
    with pytest.raises(UserError, match="within another block"), statistics_of(net), statistics_of(layer):
        net(x)
    assert not layer.keeping, "an error ends the block"
    absorb_statistics(nn.Sequential(nn.Linear(2, 3)))  # nothing to take up in a network without batch-norm


@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4, 4)])
def test_conditional_batch_norm_is_plain_at_the_start_and_scales_each_example_by_its_condition(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    layer, plain = ConditionalBatchNorm(3, 2), BatchNorm(3)
    x = 2 * torch.randn(shape) + 1
    y = torch.eye(2)[torch.arange(shape[0]) % 2]
    assert torch.equal(layer(x, y), plain(x)), "gamma = 1, beta = 0"
    with torch.no_grad():
        layer.scale.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, -1.0]]))
        layer.shift.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    normal = plain(x)
    gamma = torch.tensor([[1.0, 1.0, 1.0], [2.0, 3.0, 0.0]])[torch.arange(shape[0]) % 2]
    beta = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 1.0]])[torch.arange(shape[0]) % 2]
    view = (*gamma.shape, *[1] * (len(shape) - 2))
    torch.testing.assert_close(layer(x, y), gamma.view(view) * normal + beta.view(view))
    with statistics_of(layer):
        layer(x, y)
    absorb_statistics(layer)
    torch.testing.assert_close(layer.norm.running_mean, 0.1 * x.transpose(0, 1).flatten(1).mean(1))
