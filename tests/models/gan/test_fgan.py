"""f-GAN: the shipped settings of the GAN with each divergence, on an alphabet where everything is known."""

import pytest
import torch
from torch import Tensor

from dgmbench.config import compose
from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.models.gan.gan import Gan
from dgmbench.nn.adversarial_losses import FDivergence
from dgmbench.nn.f_divergences import DIVERGENCES

from .alphabet import LETTERS, P_FAKE, P_REAL, alphabet, linear_critic, optimum, seeded, shipped


def divergence(name: str, p: Tensor, q: Tensor) -> Tensor:
    """The divergences as they are written where they have names of their own, and not by their f."""
    m = (p + q) / 2
    both = (p * (p / m).log() + q * (q / m).log()).sum()
    return {
        "kl": (p * (p / q).log()).sum(),
        "reverse_kl": (q * (q / p).log()).sum(),
        "pearson": ((p - q).square() / q).sum(),
        "neyman": ((p - q).square() / p).sum(),
        "squared_hellinger": (p.sqrt() - q.sqrt()).square().sum(),
        "jensen_shannon": both,
        "gan": both - 2 * torch.tensor(2.0).log(),
    }[name]


def fgan(*overrides: str) -> Gan:
    model = shipped("fgan", LETTERS, "model.hidden_sizes=[]", *overrides)
    assert isinstance(model, Gan)
    assert isinstance(model.adversarial, FDivergence)
    return model


def test_the_default_is_the_first_of_the_paper() -> None:
    assert fgan().adversarial == FDivergence("kl", saturating=True)
    assert compose("train", ["model=fgan"]).trainer.clip == 1.0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_bound_is_tight_at_the_trained_discriminator_and_the_generator_minimises_it(name: str) -> None:
    model = fgan(f"model.loss.divergence={name}")
    p, q = torch.tensor(P_REAL), torch.tensor(P_FAKE)
    best, loss = optimum(model)
    exact = divergence(name, p, q)
    torch.testing.assert_close(-loss, exact, rtol=1e-4, atol=1e-5)
    # T* = f'(p / q): of another ratio than that of the data and samples the bound is below
    u = (p / q).requires_grad_()
    (slope,) = torch.autograd.grad(DIVERGENCES[name].f(u).sum(), u)
    torch.testing.assert_close(DIVERGENCES[name].activation(best), slope, rtol=0.02, atol=0.02)
    # the generator's loss is the bound but for the term of data, which it does not move
    generator, _ = model.loss("generator", Batch(alphabet(P_REAL)), seeded())
    at_data = (p * DIVERGENCES[name].activation(best)).sum()
    torch.testing.assert_close(generator.detach() + at_data, exact, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        linear_critic(model).weight.add_(0.2 * torch.randn(1, 4, generator=seeded(1)))
    assert -model.loss("discriminator", Batch(alphabet(P_REAL)), seeded())[0] < exact - 1e-4


def test_the_other_generator_loss_pulls_towards_data_as_well() -> None:
    """Section 3.2 there: maximise E T in place of minimising -E f*(T); both gradients have the sign of -f'(T)."""
    batch = Batch(alphabet(P_REAL))
    for name in DIVERGENCES:
        gradients = []
        for saturating in (True, False):
            loss = FDivergence(name, saturating=saturating)  # type: ignore[arg-type]
            model = Gan(LETTERS, hidden_sizes=(), loss=loss)
            outputs = torch.linspace(-1.5, 1.0, 5, requires_grad=True)
            gradients.append(torch.autograd.grad(loss.generated(outputs).sum(), outputs)[0])
            assert model.loss("generator", batch, seeded())[0].isfinite()
        assert all((g < 0).all() for g in gradients)
        assert not torch.allclose(*gradients)


def test_a_divergence_that_does_not_exist_is_explained() -> None:
    with pytest.raises(UserError, match="did you mean jensen_shannon"):
        fgan("model.loss.divergence=jensen")
