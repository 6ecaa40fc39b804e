"""Adversarial losses and the gradient penalty against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.nn.adversarial import make_discriminator
from dgmbench.nn.adversarial_losses import LOSSES, gradient_penalty


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(w: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * w).flatten(1).sum(1)


def test_values_at_logit_one() -> None:
    one = torch.ones(1, dtype=torch.float64)
    log_d = -math.log1p(math.exp(-1))  # log sigmoid(1)
    log_not_d = -math.log1p(math.exp(1))  # log(1 - sigmoid(1))
    assert LOSSES["non_saturating"].generator(one).item() == pytest.approx(-log_d, abs=1e-12)
    assert LOSSES["minimax"].generator(one).item() == pytest.approx(log_not_d, abs=1e-12)
    assert (-log_d, log_not_d) == (pytest.approx(0.3132617, abs=5e-8), pytest.approx(-1.3132617, abs=5e-8))
    for name in ("minimax", "non_saturating"):
        assert LOSSES[name].real(one).item() == pytest.approx(-log_d, abs=1e-12)
        assert LOSSES[name].fake(one).item() == pytest.approx(-log_not_d, abs=1e-12)
    wasserstein = LOSSES["wasserstein"]
    assert (wasserstein.real(one), wasserstein.fake(one), wasserstein.generator(one)) == (-1, 1, -1)


def test_losses_stay_finite_and_linear_at_extreme_logits() -> None:
    far = torch.tensor([-1e4, 1e4])
    assert torch.equal(LOSSES["minimax"].real(far), torch.tensor([1e4, 0.0]))
    assert torch.equal(LOSSES["minimax"].generator(far), torch.tensor([0.0, -1e4]))


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4)])
@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_penalty_of_a_linear_critic_is_the_distance_of_its_norm_from_one(shape: tuple[int, ...], scale: float) -> None:
    w = (scale * double(*shape)).requires_grad_()
    penalty = gradient_penalty(linear(w), double(6, *shape, seed=1), double(6, *shape, seed=2))
    norm = w.detach().norm()
    assert torch.allclose(penalty, ((norm - 1) ** 2).expand(6), rtol=1e-12)
    (gradient,) = torch.autograd.grad(penalty.mean(), w)
    assert torch.allclose(gradient, 2 * (1 - 1 / norm) * w.detach(), rtol=1e-12)


def test_penalty_of_a_quadratic_critic_shows_one_alpha_an_example() -> None:
    # At data 3u and samples 0 with ||u|| = 1 the point is 3 alpha u, and E(3 alpha - 1)^2 = 3 - 3 + 1 = 1 with
    # variance E(3 alpha - 1)^4 - 1 = 81/5 - 27 + 18 - 6 + 1 - 1 = 1.2. One alpha a pixel would give
    # (3 sqrt(1/3) - 1)^2 = 0.54 nearly without spread, one a batch no spread at all.
    n, d = 20_000, 64
    u = torch.full((n, 1, 8, 8), d**-0.5, dtype=torch.float64)
    penalty = gradient_penalty(
        lambda x: x.flatten(1).square().sum(1) / 2,
        3 * u,
        torch.zeros_like(u),
        generator=torch.Generator().manual_seed(0),
    )
    assert penalty.mean().item() == pytest.approx(1, abs=4 * math.sqrt(1.2 / n))
    assert penalty.var().item() == pytest.approx(1.2, rel=0.1)


def test_penalty_interpolates_between_data_and_samples() -> None:
    real, fake = double(4, 3), double(4, 3, seed=1)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum(1)

    gradient_penalty(critic, real, fake)
    alpha = ((seen[0] - fake) / (real - fake)).T
    assert torch.allclose(alpha, alpha[0].expand(3, 4))
    assert ((alpha[0] > 0) & (alpha[0] < 1)).all()
    assert alpha[0].unique().numel() == 4


def test_penalty_at_a_flat_critic_has_a_finite_gradient() -> None:
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(linear(w), double(4, 3), double(4, 3, seed=1))
    assert torch.equal(penalty, torch.ones(4, dtype=torch.float64))
    assert torch.autograd.grad(penalty.sum(), w)[0].isfinite().all()


def test_penalty_is_taken_in_full_precision_under_autocast_and_works_under_no_grad() -> None:
    torch.manual_seed(0)
    critic = make_discriminator("mlp", DataSpec((6,), "real"), hidden_sizes=(16,), channels=1)
    real, fake = torch.randn(8, 6), torch.randn(8, 6)

    def penalty() -> Tensor:
        return gradient_penalty(
            lambda x: critic(x).squeeze(1), real, fake, generator=torch.Generator().manual_seed(0)
        ).detach()

    expected = penalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty(), expected)
    with torch.no_grad():
        assert torch.equal(penalty(), expected)


@pytest.mark.parametrize("net", ["mlp", "dcgan", "resnet"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_perturbing_one_example_leaves_the_others_gradients_unmoved(net: str, norm: str) -> None:
    """Holds in every critic made for a penalty; the batch-norm critic of dcgan shows that the test can fail."""
    torch.manual_seed(0)
    spec = DataSpec((1, 16, 16), "real")
    critic = make_discriminator(net, spec, hidden_sizes=(16,), channels=4, norm=norm).double()  # type: ignore[arg-type]

    def gradients(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(critic(x).sum(), x)[0]

    x = double(3, 1, 16, 16)
    moved = x.clone()
    moved[2] += 1
    unmoved = torch.allclose(gradients(x)[:2], gradients(moved)[:2], rtol=1e-9, atol=1e-15)
    assert unmoved == (not (net == "dcgan" and norm == "batch"))
