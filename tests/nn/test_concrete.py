"""The Concrete distribution against the law of its logits, frequencies and its limit."""

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.nn.concrete import draw_concrete

PROBS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def drawn(temperature: float, n: int = 20_000) -> Tensor:
    return draw_concrete(PROBS.log().expand(n, 3), temperature, Generator().manual_seed(0))


def test_the_log_odds_of_two_shares_are_logistic() -> None:
    """log(y_1 / y_2) has location log(pi_1 / pi_2) / t and scale 1 / t."""
    log_probs, t = torch.tensor([0.3, 0.7], dtype=torch.float64).log(), 0.7
    y = draw_concrete(log_probs.expand(5000, 2), t, Generator().manual_seed(1))
    assert torch.allclose(y.sum(1), torch.ones(5000, dtype=torch.float64))
    quantile = torch.sigmoid(t * (y[:, 0].log() - y[:, 1].log()) - (log_probs[0] - log_probs[1])).sort().values
    steps = (torch.arange(5000) + 0.5) / 5000
    assert (quantile - steps).abs().max() < 1.95 / 5000**0.5, "Kolmogorov-Smirnov at 0.1 percent"


@pytest.mark.parametrize("temperature", [0.1, 0.66, 5.0])
def test_the_largest_share_is_a_draw_of_the_category_at_every_temperature(temperature: float) -> None:
    share = torch.bincount(drawn(temperature).argmax(1), minlength=3) / 20_000
    assert ((share - PROBS).abs() < 4 * (PROBS * (1 - PROBS) / 20_000).sqrt()).all()


def test_it_tends_to_the_category_as_the_temperature_falls() -> None:
    away = torch.tensor([1 - drawn(t).max(1).values.mean() for t in (2.0, 0.5, 0.1, 0.01)])
    assert (away.diff() < 0).all()
    assert away[-1] < 0.01
    mean = drawn(0.001).mean(0)
    assert ((mean - PROBS).abs() < 4 * (PROBS * (1 - PROBS) / 20_000).sqrt() + 1e-3).all()


def test_gradients_pass_and_stay_finite_at_low_temperature_and_in_single_precision() -> None:
    log_probs = torch.tensor([[-50.0, 0.0, -80.0]]).log_softmax(1).expand(1000, 3).clone().requires_grad_()
    y = draw_concrete(log_probs, 0.05, Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(y.square().sum(), log_probs)
    assert gradient.isfinite().all()
    soft = PROBS.log().expand(1000, 3).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(draw_concrete(soft, 0.66, Generator().manual_seed(2))[:, 0].sum(), soft)
    assert gradient[:, 0].min() > 0
    assert gradient[:, 1].max() < 0
