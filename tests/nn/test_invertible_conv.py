"""Invertible 1 x 1 convolutions: LU factors and plain matrices are one function of W."""

import numpy as np
import pytest
import torch

from dgmbench.nn.invertible_conv import InvertibleConv


def pair(channels: int) -> tuple[InvertibleConv, InvertibleConv, torch.Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(channels, channels, dtype=torch.float64)
    plain, factors = (InvertibleConv(channels, lu=lu).double() for lu in (False, True))
    for conv in (plain, factors):
        conv.start_at(weight)
    return plain, factors, weight


@pytest.mark.parametrize("channels", [2, 7, 12])
def test_lu_equals_plain_at_the_same_weight(channels: int) -> None:
    plain, factors, weight = pair(channels)
    assert torch.allclose(factors.weight(), weight)
    x = torch.randn(3, channels, 2, 5, dtype=torch.float64)
    by_hand = torch.einsum("dc,bchw->bdhw", weight, x)
    exact = 10 * np.linalg.slogdet(weight.numpy())[1]
    for conv in (plain, factors):
        z, log_det = conv(x)
        assert torch.allclose(z, by_hand)
        assert torch.allclose(log_det, torch.full((3,), exact, dtype=torch.float64))
        back, inverse_log_det = conv.inverse(z)
        assert torch.allclose(back, x, atol=1e-9)
        assert torch.allclose(inverse_log_det, -log_det)


def test_gradients_of_the_factors_are_those_of_the_plain_weight_by_the_chain_rule() -> None:
    plain, factors, _ = pair(4)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    for conv in (plain, factors):
        z, log_det = conv(x)
        (z.square().sum() + log_det.sum()).backward()
    chain = torch.autograd.functional.jacobian(
        lambda d: (
            factors.permutation
            @ (factors.lower.tril(-1) + torch.eye(4, dtype=d.dtype))
            @ (factors.upper.triu(1) + (factors.sign * d.exp()).diag())
        ),
        factors.log_diagonal.detach(),
    )
    assert torch.allclose(factors.log_diagonal.grad, torch.einsum("ij,ijk->k", plain.matrix.grad, chain))


@pytest.mark.parametrize("lu", [True, False])
def test_it_starts_at_a_rotation(lu: bool) -> None:
    conv = InvertibleConv(6, lu=lu)
    weight = conv.weight()
    assert torch.allclose(weight @ weight.T, torch.eye(6), atol=1e-5)
    assert conv(torch.randn(2, 6, 3, 3))[1].abs().max() < 1e-4


def test_a_loaded_state_brings_its_permutation_and_signs() -> None:
    """Nothing is cached: the inverse after loading is that of the loaded weight."""
    first, second = InvertibleConv(5, lu=True), InvertibleConv(5, lu=True)
    z = torch.randn(2, 5, 3, 3)
    second.inverse(z)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weight(), second.weight())
    assert torch.equal(first.inverse(z)[0], second.inverse(z)[0])
