"""LSGAN: the shipped settings of the GAN in both codings, on an alphabet where everything is known."""

import pytest
import torch

from dgmbench.data.spec import Batch
from dgmbench.models.gan.gan import Gan
from dgmbench.nn.adversarial_losses import LeastSquares

from .alphabet import LETTERS, P_FAKE, P_REAL, Fixed, alphabet, linear_critic, optimum, seeded, shipped

CODINGS = {(0.0, 1.0, 1.0): (), (-1.0, 1.0, 0.0): ("model.loss.a=-1", "model.loss.b=1", "model.loss.c=0")}


def lsgan(coding: tuple[float, float, float]) -> Gan:
    model = shipped("lsgan", LETTERS, "model.hidden_sizes=[]", *CODINGS[coding])
    assert isinstance(model, Gan)
    assert model.adversarial == LeastSquares(*coding)
    return model


@pytest.mark.parametrize("coding", CODINGS)
def test_best_discriminator_and_what_the_generator_minimises_at_it(coding: tuple[float, float, float]) -> None:
    """Mao et al. 2017, equations 5 to 8: D* = (b p + a q) / (p + q), and, where b - c = 1 and b - a = 2, Pearson's
    chi-squared divergence of p + q from 2 q; the two codings have the same D* up to scale, but only one the divergence.
    """
    a, b, c = coding
    model = lsgan(coding)
    p, q = torch.tensor(P_REAL), torch.tensor(P_FAKE)
    best, value = optimum(model)
    torch.testing.assert_close(best, (b * p + a * q) / (p + q), atol=1e-3, rtol=0)
    least = 0.5 * (p * (best - b).square() + q * (best - a).square()).sum()
    torch.testing.assert_close(value, least, rtol=1e-4, atol=0)
    # The generator's own loss, and the part of the objective that does not depend on it (p is fixed).
    at_samples = 2 * model.loss("generator", Batch(alphabet(P_REAL)), seeded())[0].detach()
    both = at_samples + (p * (best - c).square()).sum()
    chi_squared = lambda r, s: ((r - s).square() / r).sum()
    assert (both.item() == pytest.approx(chi_squared(p + q, 2 * q).item(), rel=1e-3)) == (c == 0)
    assert both.item() != pytest.approx(chi_squared(p, q).item(), rel=0.05)


@pytest.mark.parametrize("coding", CODINGS)
def test_outputs_have_no_sigmoid_and_their_gradients_are_differences_from_the_targets(
    coding: tuple[float, float, float],
) -> None:
    """Far out the gradients grow, where a sigmoid's would vanish: the point of the method (section 3.2 there)."""
    a, b, c = coding
    model = lsgan(coding)
    model.generator = Fixed(torch.eye(4)[:1])
    head = linear_critic(model)
    for output in (-50.0, 0.3, 50.0):
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(output)
        assert model.critic(torch.eye(4)).tolist() == pytest.approx([output] * 4)
        batch = Batch(torch.eye(4)[1:2])
        loss, _ = model.loss("discriminator", batch, seeded())
        by_weight, by_bias = torch.autograd.grad(loss, [head.weight, head.bias])
        assert by_weight[0].tolist() == pytest.approx([output - a, output - b, 0, 0], rel=1e-5)
        assert by_bias.item() == pytest.approx(2 * output - a - b, rel=1e-5)
        loss, _ = model.loss("generator", batch, seeded())
        assert loss.item() == pytest.approx(0.5 * (output - c) ** 2, rel=1e-5)
