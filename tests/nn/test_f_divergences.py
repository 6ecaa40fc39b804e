"""Conjugates, output activations and their compositions against their definitions."""

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from dgmbench.nn.f_divergences import DIVERGENCES

OUTPUTS = torch.tensor([-1.9, -1.0, -0.3, 0.0, 0.2, 0.6], dtype=torch.float64)
# f'(1), where a discriminator that cannot tell data from samples stands (Nowozin et al. 2016, table 6).
THRESHOLDS = {
    "kl": 1.0, "reverse_kl": -1.0, "pearson": 0.0, "neyman": 0.0, "squared_hellinger": 0.0, "jensen_shannon": 0.0,
    "gan": -0.6931471805599453,
}  # fmt: skip


def supremum(name: str, t: float) -> float:
    """sup_u (u t - f(u)) by search over log u."""
    f = DIVERGENCES[name].f

    def negative(log_u: float) -> float:
        u = torch.tensor(log_u, dtype=torch.float64).exp()
        return float(f(u) - u * t)

    return -minimize_scalar(negative, bounds=(-30.0, 30.0), method="bounded", options={"xatol": 1e-10}).fun


@pytest.mark.parametrize("name", DIVERGENCES)
def test_conjugate_is_the_numeric_supremum_and_composes_with_the_activation(name: str) -> None:
    divergence = DIVERGENCES[name]
    t = divergence.activation(OUTPUTS)
    expected = torch.tensor([supremum(name, float(each)) for each in t], dtype=torch.float64)
    torch.testing.assert_close(divergence.conjugate(t), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(divergence.conjugate_of_output(OUTPUTS), divergence.conjugate(t))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_activation_increases_and_reaches_the_optimum(name: str) -> None:
    """f'(p / q) lies in the range of the activation, at p = q at the table's threshold."""
    divergence = DIVERGENCES[name]
    v = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert (divergence.activation(v).diff() > 0).all()
    ratio = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence.f(ratio).sum(), ratio)
    assert slope[1].item() == pytest.approx(THRESHOLDS[name], abs=1e-12)
    outputs = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    values: Tensor = divergence.activation(outputs)
    nearest = (values[:, None] - slope).abs().argmin(0)
    torch.testing.assert_close(values[nearest], slope, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_of_equal_distributions_is_its_least_value(name: str) -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    least = -2 * 0.6931471805599453 if name == "gan" else 0.0
    f = DIVERGENCES[name].f
    assert (p * f(p / p)).sum().item() == pytest.approx(least, abs=1e-12)
    assert (p * f(p.flip(0) / p)).sum().item() > least + 0.01
