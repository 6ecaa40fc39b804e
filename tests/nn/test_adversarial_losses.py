"""Adversarial losses and the gradient penalty against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial import make_discriminator
from dgmbench.nn.adversarial_losses import (
    LOSSES,
    AdversarialLoss,
    FDivergence,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    OutputLoss,
    RelativisticAverage,
    Wasserstein,
    adversarial_loss,
    gradient_penalty,
)
from dgmbench.nn.f_divergences import DIVERGENCES


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(w: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x * w).flatten(1).sum(1)


def test_values_at_logit_one() -> None:
    one = torch.ones(1, dtype=torch.float64)
    log_d = -math.log1p(math.exp(-1))  # log sigmoid(1)
    log_not_d = -math.log1p(math.exp(1))  # log(1 - sigmoid(1))
    assert NonSaturating().generated(one).item() == pytest.approx(-log_d, abs=1e-12)
    assert NonSaturating().encoded(one).item() == pytest.approx(-log_not_d, abs=1e-12)
    assert Minimax().generated(one).item() == pytest.approx(log_not_d, abs=1e-12)
    assert Minimax().encoded(one).item() == pytest.approx(log_d, abs=1e-12)
    assert (-log_d, log_not_d) == (pytest.approx(0.3132617, abs=5e-8), pytest.approx(-1.3132617, abs=5e-8))
    for loss in (Minimax(), NonSaturating()):
        assert loss.real(one).item() == pytest.approx(-log_d, abs=1e-12)
        assert loss.fake(one).item() == pytest.approx(-log_not_d, abs=1e-12)
    wasserstein = Wasserstein()
    assert (wasserstein.real(one), wasserstein.fake(one)) == (-1, 1)
    assert (wasserstein.generated(one), wasserstein.encoded(one)) == (-1, 1)


def test_losses_stay_finite_and_linear_at_extreme_logits() -> None:
    far = torch.tensor([-1e4, 1e4])
    assert torch.equal(Minimax().real(far), torch.tensor([1e4, 0.0]))
    assert torch.equal(Minimax().generated(far), torch.tensor([0.0, -1e4]))


# --- on a finite alphabet: data p, samples q, a table of outputs -----------------------------------------------------

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def alphabet(p: Tensor, n: int = 20) -> Tensor:
    """n letters whose frequencies are exactly p."""
    return torch.arange(len(p)).repeat_interleave((n * p).round().long())


def best_table(loss: AdversarialLoss) -> tuple[Tensor, float]:
    """The discriminator's outputs at the letters that minimise its loss at data P and samples Q, and that loss."""
    real, fake = alphabet(P), alphabet(Q)

    def value(table: object) -> tuple[float, object]:
        a = torch.as_tensor(table, dtype=torch.float64).clone().requires_grad_()
        objective = loss.discriminator(a[real], a[fake])
        return objective.item(), torch.autograd.grad(objective, a)[0].numpy()

    found = minimize(value, torch.full((4,), 0.1).numpy(), jac=True, method="BFGS", options={"gtol": 1e-9})
    return torch.as_tensor(found.x), found.fun


@pytest.mark.parametrize(("a", "b", "c"), [(-1.0, 1.0, 0.0), (0.0, 1.0, 1.0)])
def test_least_squares_optimum_and_what_the_generator_then_minimises(a: float, b: float, c: float) -> None:
    """Mao et al. 2017, equations 5 to 8: D* = (b p + a q) / (p + q); at (-1, 1, 0) Pearson's chi-squared divergence."""
    loss = LeastSquares(a=a, b=b, c=c)
    table, _ = best_table(loss)
    torch.testing.assert_close(table, (b * P + a * Q) / (P + Q), atol=1e-6, rtol=0)
    opponents = 2 * loss.opponents(table[alphabet(P)], table[alphabet(Q)]).item()
    pearson = ((P + Q - 2 * Q).square() / (P + Q)).sum().item()  # of P + Q against 2 Q
    assert (opponents == pytest.approx(pearson, rel=1e-5)) == ((a, b, c) == (-1.0, 1.0, 0.0))


def test_least_squares_terms_by_hand_for_every_player() -> None:
    loss = LeastSquares(a=-1.0, b=2.0, c=1.0)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0])
    assert loss.discriminator(real, fake).item() == (0.5 * 1 + 0.5 * 1) / 2 + 0.5 * 1
    assert loss.generator(fake).item() == 0.5 * 1
    assert loss.encoder(real).item() == (0.5 * 1 + 0.5 * 9) / 2, "its target is -1 + 2 - 1"


def test_hinge_has_no_gradient_beyond_its_margins_and_its_value_is_the_total_variation() -> None:
    """At the optimum, sign(p - q), the value is 2 - sum |p - q| (Lim and Ye 2017)."""
    a = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    (at_data,) = torch.autograd.grad(Hinge().real(a).sum(), a)
    (at_samples,) = torch.autograd.grad(Hinge().fake(a).sum(), a)
    assert at_data.tolist() == [-1, -1, -1, 0]
    assert at_samples.tolist() == [0, 1, 1, 1]
    table = torch.sign(P - Q)
    value = Hinge().discriminator(table[alphabet(P)], table[alphabet(Q)])
    assert value.item() == pytest.approx(2 - (P - Q).abs().sum().item(), abs=1e-12)
    for _ in range(100):
        other = 3 * torch.randn(4, dtype=torch.float64)
        assert Hinge().discriminator(other[alphabet(P)], other[alphabet(Q)]) >= value - 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_divergence_is_tight_on_a_finite_alphabet(name: str) -> None:
    """max over discriminators = sum q f(p / q), which the generator minimises, and never more for another one."""
    loss = FDivergence(name)  # type: ignore[arg-type]
    exact = (Q * DIVERGENCES[name].f(P / Q)).sum().item()
    table, value = best_table(loss)
    real, fake = table[alphabet(P)], table[alphabet(Q)]
    assert -value == pytest.approx(exact, rel=1e-7)
    assert loss.opponents(real, fake).item() == pytest.approx(exact, rel=1e-7)
    assert loss.generator(fake).item() == pytest.approx(exact - loss.encoder(real).item(), rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = torch.randn(4, dtype=torch.float64, generator=generator)
        assert -loss.discriminator(other[alphabet(P)], other[alphabet(Q)]).item() <= exact + 1e-12


def test_f_divergence_gan_is_the_minimax_loss_and_its_trick_the_non_saturating_one() -> None:
    a = double(9)
    for saturating, other in ((True, Minimax()), (False, NonSaturating())):
        loss = FDivergence("gan", saturating=saturating)
        for term in ("real", "fake", "generated", "encoded"):
            torch.testing.assert_close(getattr(loss, term)(a), getattr(other, term)(a))


# --- relativistic ----------------------------------------------------------------------------------------------------


def test_relativistic_average_by_hand() -> None:
    """Jolicoeur-Martineau 2019, equations 11 and 12, with D = sigmoid of an output against the other side's mean."""
    real, fake = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, -1.5])
    at_data = [1 / (1 + math.exp(-(x - -0.5))) for x in real.tolist()]
    at_samples = [1 / (1 + math.exp(-(x - 3.0))) for x in fake.tolist()]
    discriminator = -sum(map(math.log, at_data)) / 3 - sum(math.log(1 - d) for d in at_samples) / 2
    generator = -sum(math.log(1 - d) for d in at_data) / 3 - sum(map(math.log, at_samples)) / 2
    loss = RelativisticAverage()
    assert loss.sees_real
    assert loss.discriminator(real, fake).item() == pytest.approx(discriminator, rel=1e-5)
    assert loss.generator(fake, real).item() == pytest.approx(generator, rel=1e-5)
    assert loss.opponents(real, fake).item() == pytest.approx(generator, rel=1e-5)


@pytest.mark.parametrize("base", ["non_saturating", "minimax", "hinge", LeastSquares(a=-1.0, b=1.0, c=1.0)])
def test_relativistic_average_gives_every_player_both_terms_and_sees_no_constant(base: object) -> None:
    loss = RelativisticAverage(base)  # type: ignore[arg-type]
    real, fake = (0.1 * double(5)).requires_grad_(), (0.1 * double(4, seed=1)).requires_grad_()
    for value in (loss.discriminator(real, fake), loss.generator(fake, real), loss.encoder(real, fake)):
        gradients = torch.autograd.grad(value, (real, fake))
        assert all(g.abs().min() > 0 for g in gradients)
        assert (gradients[0].sum() + gradients[1].sum()).abs() < 1e-12, "no gradient along a constant"


def test_relativistic_least_squares_is_ralsgan() -> None:
    real, fake = double(5), double(4, seed=1)
    loss = RelativisticAverage(LeastSquares(a=-1.0, b=1.0, c=1.0))
    at_data, at_samples = real - fake.mean(), fake - real.mean()
    torch.testing.assert_close(
        2 * loss.discriminator(real, fake), (at_data - 1).square().mean() + (at_samples + 1).square().mean()
    )
    torch.testing.assert_close(
        2 * loss.generator(fake, real), (at_data + 1).square().mean() + (at_samples - 1).square().mean()
    )


def test_a_relativistic_loss_without_the_other_side_is_an_error_and_so_is_one_of_another() -> None:
    with pytest.raises(TypeError, match="outputs at data"):
        RelativisticAverage().generator(torch.zeros(2))
    with pytest.raises(TypeError, match="outputs at samples"):
        RelativisticAverage().encoder(torch.zeros(2))
    with pytest.raises(UserError, match="every output by itself"):
        RelativisticAverage("relativistic_average")


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_opponents_are_generator_and_encoder_and_pull_against_the_discriminator(name: str) -> None:
    """A small step of the outputs that helps an opponent hurts a discriminator that has yet to tell the two apart."""
    loss = adversarial_loss(name)
    real, fake = ((0.5 + 0.1 * double(6, seed=seed)).requires_grad_() for seed in (0, 1))
    ours = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    theirs = torch.autograd.grad(loss.opponents(real, fake), (real, fake))
    assert all((a * b).sum() < 0 for a, b in zip(ours, theirs, strict=True))
    if isinstance(loss, OutputLoss):
        torch.testing.assert_close(loss.opponents(real, fake), loss.generator(fake) + loss.encoder(real))
    shifted = loss.discriminator(real + 1, fake + 1)
    assert loss.sees_constant == (not torch.allclose(shifted, loss.discriminator(real, fake)))


@pytest.mark.parametrize("loss", [NonSaturating(), LeastSquares(a=-1.0, b=1.0), RelativisticAverage()])
def test_label_smoothing_weighs_data_as_samples(loss: AdversarialLoss) -> None:
    real, fake = double(5), double(4, seed=1)
    assert loss.has_targets
    base = loss.base if isinstance(loss, RelativisticAverage) else loss
    assert isinstance(base, OutputLoss)
    at_data, at_samples = (real, fake) if base is loss else (real - fake.mean(), fake - real.mean())
    expected = 0.7 * base.real(at_data).mean() + 0.3 * base.fake(at_data).mean() + base.fake(at_samples).mean()
    torch.testing.assert_close(loss.discriminator(real, fake, label_smoothing=0.3), expected)
    assert not any(adversarial_loss(name).has_targets for name in ("wasserstein", "hinge", "f_divergence"))


def test_unknown_names_and_parameters_are_explained() -> None:
    with pytest.raises(UserError, match="did you mean hinge"):
        adversarial_loss("hinges")
    with pytest.raises(UserError, match="must differ, and both are 1"):
        LeastSquares(a=1.0, b=1.0)
    with pytest.raises(Exception, match="pearson") as caught:
        FDivergence("pearsen")  # type: ignore[arg-type]
    assert isinstance(caught.value, UserError) or "TypeCheckError" in type(caught.value).__name__


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
