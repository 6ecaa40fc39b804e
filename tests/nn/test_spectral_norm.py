"""Spectral normalisation against the singular value decomposition and finite differences."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgmbench.nn.spectral_norm import SpectralNorm, power_step, spectral_normalise


def norm_of(layer: nn.Module) -> SpectralNorm:
    assert parametrize.is_parametrized(layer)
    return layer.parametrizations.weight[0]  # type: ignore[index, union-attr, return-value]


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations.weight.original  # type: ignore[union-attr, return-value]


def normalised(layer: nn.Module) -> nn.Module:
    layer = layer.double()
    spectral_normalise(layer)
    with torch.no_grad():
        original(layer).normal_(generator=torch.Generator().manual_seed(1))  # what u and v do not know yet
    return layer


def rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """Outputs by everything else."""
    return (weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight).flatten(1)


LAYERS = {
    "linear": lambda: nn.Linear(30, 20),
    "convolution": lambda: nn.Conv2d(3, 8, 4),
    "transposed": lambda: nn.ConvTranspose2d(3, 8, 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_largest_singular_value_is_one_after_power_steps_and_the_direction_stays(name: str) -> None:
    torch.manual_seed(0)
    layer = normalised(LAYERS[name]())
    before = torch.linalg.svdvals(rows(layer, layer.weight))[0]
    assert before > 1.01, "sigma = u^T W v is never more than the largest singular value"
    for _ in range(200):
        power_step(layer)
    values = torch.linalg.svdvals(rows(layer, original(layer).detach()))
    assert norm_of(layer).sigma(original(layer)).item() == pytest.approx(values[0].item(), rel=1e-3)
    assert norm_of(layer).sigma(original(layer)) <= values[0] * (1 + 1e-12)
    assert torch.linalg.svdvals(rows(layer, layer.weight))[0].item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(layer.weight * values[0], original(layer), rtol=1e-3, atol=0)


def test_one_power_step_by_hand() -> None:
    torch.manual_seed(0)
    layer = normalised(nn.Linear(5, 4))
    u, w = norm_of(layer).u.clone(), original(layer).detach()
    power_step(layer)
    v = w.T @ u / (w.T @ u).norm()
    torch.testing.assert_close(norm_of(layer).v, v)
    torch.testing.assert_close(norm_of(layer).u, w @ v / (w @ v).norm())


def test_first_weights_are_normalised_at_once() -> None:
    """20 steps from a random start: within a few percent even where two singular values are close."""
    for seed in range(5):
        torch.manual_seed(seed)
        layer = nn.Linear(64, 256)
        spectral_normalise(layer)
        assert torch.linalg.svdvals(layer.weight)[0].item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_flows_through_sigma(name: str) -> None:
    """Against central differences; equation 10 there: what lengthens W alone has no gradient."""
    torch.manual_seed(0)
    layer = normalised(LAYERS[name]())
    power_step(layer)
    size = (2, 30) if name == "linear" else (2, 3, 6, 6)
    x, w, g = torch.randn(size, dtype=torch.float64), original(layer), torch.Generator().manual_seed(2)
    objective = lambda: layer(x).square().sum()
    (gradient,) = torch.autograd.grad(objective(), w)
    for _ in range(5):
        direction = torch.randn(w.shape, dtype=torch.float64, generator=g)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                w.add_(sign * 1e-5 * direction)
                ends.append(objective().item())
                w.sub_(sign * 1e-5 * direction)
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)
    assert (gradient * w).sum().abs() < 1e-9 * gradient.norm() * w.norm()


def test_passes_move_nothing_and_autocast_leaves_sigma_precise() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    spectral_normalise(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(3, 1, 4, 4)
    net.train()(x)
    net.eval()(x)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    sigma = norm_of(net[3]).sigma(original(net[3]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm_of(net[3]).sigma(original(net[3])), sigma)
    power_step(net)
    assert not torch.equal(before["3.parametrizations.weight.0.u"], norm_of(net[3]).u)
