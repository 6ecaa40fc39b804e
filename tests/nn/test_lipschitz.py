"""Operator norms against dense matrices, and Jacobian products against autograd."""

import pytest
import torch
from torch import Tensor

from dgmbench.nn.lipschitz import LipschitzNet, SpectralMap

MAPS = {
    "wide": ((3,), 40, 1),
    "square": ((30,), 30, 1),
    "narrow": ((40,), 3, 1),
    "one dimension": ((1,), 1, 1),
    "3 x 3": ((2, 5, 6), 4, 3),
    "1 x 1": ((4, 5, 4), 4, 1),
    "3 x 3 to fewer": ((6, 4, 4), 2, 3),
}


def dense(layer: SpectralMap) -> Tensor:
    """The matrix (outputs, inputs) of the whole map, image to image."""
    size = layer.basis[0].numel()
    basis = torch.eye(size, dtype=layer.weight.dtype).view(size, *layer.inputs)
    return layer.apply_weight(layer.scaled(), basis).flatten(1).T.detach()


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("size", [0.05, 10.0])
def test_no_layer_exceeds_c_and_small_ones_are_left_alone(name, size):
    torch.manual_seed(0)
    inputs, outputs, kernel = MAPS[name]
    layer = SpectralMap(inputs, outputs, coefficient=0.9, kernel=kernel)
    with torch.no_grad():
        layer.weight.copy_(size * torch.randn_like(layer.weight))
    layer.refine(most=500)
    norm = torch.linalg.matrix_norm(dense(layer).double(), ord=2).item()
    assert norm <= 0.9 * (1 + 1e-3)
    assert layer.bound() == pytest.approx(norm, rel=1e-3)
    if layer.norm() < 0.9:
        assert torch.equal(layer.scaled(), layer.weight)
    else:
        assert norm > 0.9 * (1 - 1e-3), "it is scaled to c, and no further"
        kernel_norm = torch.linalg.matrix_norm(layer.scaled().flatten(1), ord=2).item()
        if name.startswith("3 x 3"):
            assert abs(kernel_norm - norm) > 0.05, "the reshaped kernel's norm is another number"


@pytest.mark.parametrize("shape", [(12,), (2, 4, 4)])
def test_the_norm_is_followed_through_a_training_in_which_singular_values_cross(shape):
    """Weights grow along a random direction that is not the first singular one to begin with."""
    torch.manual_seed(1)
    kernel = 3 if len(shape) == 3 else 1
    layer = SpectralMap(shape, shape[0], coefficient=0.5, kernel=kernel)
    target = 3 * torch.randn_like(layer.weight)
    for _ in range(30):
        with torch.no_grad():
            layer.weight.lerp_(target, 0.1)
        layer.refine()
        norm = torch.linalg.matrix_norm(dense(layer).double(), ord=2).item()
        assert norm <= 0.5 * (1 + 1e-3)


def test_the_gradient_is_that_of_the_weight_divided_by_its_norm():
    torch.manual_seed(2)
    layer = SpectralMap((4,), 4, coefficient=0.7).double()
    with torch.no_grad():
        layer.weight.mul_(5)
    layer.refine(most=500)
    probe = torch.randn(4, 4, dtype=torch.float64)
    ours = torch.autograd.grad((probe * layer.scaled()).sum(), layer.weight)[0]
    weight = layer.weight.detach().requires_grad_()
    plain = (probe * (0.7 * weight / torch.linalg.matrix_norm(weight, ord=2))).sum()
    assert torch.allclose(ours, torch.autograd.grad(plain, weight)[0], atol=1e-3)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_jacobian_products_equal_autograd_and_the_network_is_a_contraction(shape):
    torch.manual_seed(3)
    image = len(shape) == 3
    net = (
        LipschitzNet.convolutional(shape, 5, coefficient=0.9) if image else LipschitzNet.mlp(3, (8, 7), coefficient=0.9)
    )
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(4)
    for layer in net.maps:
        layer.refine(most=500)
    x, tangents = torch.randn(5, *shape, dtype=torch.float64), torch.randn(2, 5, *shape, dtype=torch.float64)
    value, product = net.linearise(x)
    assert torch.equal(value, net(x))
    for k in range(2):
        _, expected = torch.autograd.functional.jvp(net, x, tangents[k])
        assert torch.allclose(product(tangents)[k], expected, atol=1e-10)
    y = x + 0.3 * torch.randn_like(x)
    slopes = (net(x) - net(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert net.lipschitz() <= 0.9**3 * (1 + 1e-3)
    assert (slopes <= net.lipschitz()).all()
