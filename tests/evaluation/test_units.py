"""Nats, bits per dimension, and log-densities of scaled data, against values computed by hand."""

import math

import pytest
import torch
from torch import Generator

from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.units import bits_per_dim, nats_of_levels
from dgmbench.evaluation.metrics import Metric
from dgmbench.nn.bijections import Logit


def bits(nats: float, dim: int) -> float:
    return bits_per_dim(Metric(nats, "nats", "exact", "higher", 1.0, 10, se_draws=0.5), dim).value


def test_bits_of_coins_and_of_dice() -> None:
    assert bits(784 * math.log(0.5), 784) == pytest.approx(1.0)  # binary: a fair coin
    assert bits(3072 * math.log(1 / 256), 3072) == pytest.approx(8.0)  # 8 bits: uniform levels
    assert bits(64 * math.log(1 / 32), 64) == pytest.approx(5.0)  # 5 bits
    turned = bits_per_dim(Metric(-3.0, "nats", "lower bound", "higher", 1.0, 10, se_draws=0.5), 10)
    assert (turned.kind, turned.direction, turned.unit) == ("upper bound", "lower", "bits/dim")
    assert turned.se == pytest.approx(0.1 / math.log(2))
    assert turned.se_draws == pytest.approx(0.05 / math.log(2))


def test_published_densities_of_scaled_images() -> None:
    """NICE (Dinh et al. 2015): MNIST 1980.50 nats on [0, 1] is 4.36 bits, CIFAR-10 5371.78 on [-1, 1] is 4.48."""
    mnist = nats_of_levels(1980.50, space="unit", levels=256, dim=784)
    assert bits(float(mnist), 784) == pytest.approx(8 - 1980.50 / (784 * math.log(2)))
    assert bits(float(mnist), 784) == pytest.approx(4.36, abs=0.005)
    cifar = nats_of_levels(5371.78, space="symmetric", levels=256, dim=3072)
    assert bits(float(cifar), 3072) == pytest.approx(7 - 5371.78 / (3072 * math.log(2)))
    assert bits(float(cifar), 3072) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize(("space", "expected"), [("levels", 0.0), ("unit", 8.0), ("symmetric", 7.0)])
def test_the_offset_of_a_form_of_scaling(space: str, expected: float) -> None:
    assert bits(float(nats_of_levels(0.0, space=space, levels=256, dim=100)), 100) == pytest.approx(expected)


@pytest.mark.parametrize("space", ["levels", "unit", "symmetric", "logit"])
def test_a_uniform_density_of_levels_is_log_k_bits_in_any_space(space: str) -> None:
    """The density of s that makes v uniform on [0, K)^D, by autograd through the form of scaling."""
    levels, dim, margin = 16, 3, 0.05
    v = levels * torch.rand(7, dim, dtype=torch.float64, generator=Generator().manual_seed(0))
    forms = {
        "levels": lambda v: v,
        "unit": lambda v: v / levels,
        "symmetric": lambda v: 2 * v / levels - 1,
        "logit": lambda v: torch.logit(margin + (1 - 2 * margin) * v / levels),
    }
    v.requires_grad_()
    s = forms[space](v)
    (slope,) = torch.autograd.grad(s.sum(), v)
    log_density = -dim * math.log(levels) - slope.log().sum(1)
    found = nats_of_levels(log_density, space=space, levels=levels, dim=dim, scaled=s.detach(), margin=margin)
    torch.testing.assert_close(found, torch.full((7,), -dim * math.log(levels), dtype=torch.float64))


def test_logit_space_at_one_point_by_hand() -> None:
    # K = 256, margin 0, v = 128: s = 0, ds/dv = 1 / (256 * 0.25) = 1 / 64, so 6 bits more than the density's own
    value = nats_of_levels(0.0, space="logit", levels=256, dim=1, scaled=torch.zeros(1))
    assert bits(float(value), 1) == pytest.approx(6.0)
    # margin 0.1, v = 128: ds/dv = 0.8 / 256 / 0.25
    value = nats_of_levels(0.0, space="logit", levels=256, dim=1, scaled=torch.zeros(1), margin=0.1)
    assert bits(float(value), 1) == pytest.approx(6.0 - math.log2(0.8))


def test_the_flows_own_logit_agrees() -> None:
    v = 8 * torch.rand(5, 4, dtype=torch.float64, generator=Generator().manual_seed(0))
    s, log_det = Logit(8.0)(v)
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(s).sum(1)
    mine = nats_of_levels(log_density, space="logit", levels=8, dim=4, scaled=s)
    torch.testing.assert_close(mine, log_density + log_det)


def test_what_cannot_be_converted_is_refused() -> None:
    for wrong in (
        {"space": "logit", "levels": 256, "dim": 2},
        {"space": "logit", "levels": 256, "dim": 2, "scaled": torch.zeros(2), "margin": 0.5},
        {"space": "unit", "levels": 1, "dim": 2},
        {"space": "half", "levels": 2, "dim": 2},
    ):
        with pytest.raises(UserError):
            nats_of_levels(0.0, **wrong)
