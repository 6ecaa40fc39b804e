"""beta-VAE: what a weight of the KL does to gradients, and to the rate of Gaussian data, where the optimum is known."""

import math

import numpy as np
import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.codes.disentanglement import beta_vae_score, mutual_information_gap
from dgmbench.models.vae.vae import Vae

SPEC = DataSpec((1, 3, 3), "binary")
SIGMA = 0.5
VARIANCES = (9.0, 3.0, 0.8, 0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(**settings: object) -> Vae:
    torch.manual_seed(0)
    return Vae(SPEC, hidden_sizes=(8,), latent=3, **settings).double()  # type: ignore[arg-type]


def images() -> Batch:
    return Batch(torch.randint(2, (20, 1, 3, 3), generator=generator(1)).byte())


def gradient(model: Vae) -> torch.Tensor:
    loss = model.loss("model", images(), generator(2))[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_beta_1_gives_the_vaes_gradients_and_the_gradient_is_linear_in_beta() -> None:
    plain, none, four = gradient(made()), gradient(made(beta=0.0)), gradient(made(beta=4.0))
    assert torch.equal(gradient(made(beta=1.0)), plain)
    torch.testing.assert_close(four, none + 4 * (plain - none), rtol=1e-10, atol=1e-12)
    assert (four - plain).abs().max() > 0.1


def test_the_log_is_the_bound_whatever_is_charged() -> None:
    expected = made().loss("model", images(), generator(2))[1]
    for settings in ({"beta": 4.0}, {"beta": 1000.0, "capacity": 25.0}):
        found = made(**settings).loss("model", images(), generator(2))[1]
        assert {key: value.item() for key, value in found.items()} == {k: v.item() for k, v in expected.items()}


def test_weight_and_capacity_rise_linearly() -> None:
    model = made(beta=3.0, kl_warmup=2, capacity=8.0, capacity_warmup=4)
    for beta, capacity in ((0.0, 0.0), (1.5, 2.0), (3.0, 4.0), (3.0, 6.0), (3.0, 8.0), (3.0, 8.0)):
        loss, logs = model.loss("model", images(), generator())
        charged = beta * abs(logs["kl"].item() - capacity)
        assert loss.item() == pytest.approx(charged - logs["reconstruction"].item())
        model.after_step("model", images(), generator())


def gaussian_data() -> torch.Tensor:
    """Examples whose covariance is exactly diagonal with the ``VARIANCES``."""
    x = torch.randn(400, len(VARIANCES), dtype=torch.float64, generator=generator(3))
    x = torch.linalg.qr(x - x.mean(0)).Q * 20  # columns of length 20: their variance over 400 examples is 1
    return x * torch.tensor(VARIANCES, dtype=torch.float64).sqrt()


def rate_after_training(**settings: object) -> float:
    """E KL of a linear VAE on the Gaussian data, trained until nothing moves, without noise in its gradient.

    The expectation of the reconstruction over z is a closed form: that of the mean code minus the spread of the code
    through the decoder, 1/2 sum_j sigma_j^2 |w_j|^2 / sigma^2.
    """
    torch.manual_seed(0)
    model = Vae(DataSpec((4,), "real"), hidden_sizes=(), latent=4, sigma=SIGMA, **settings).double()  # type: ignore[arg-type]
    x, updates = gaussian_data(), 250
    with torch.no_grad():  # each code dimension begins at a data dimension of its own, which saves most of the way
        model.encoder[1].weight.mul_(0.1).add_(torch.eye(8, 4))
        model.decoder[0].weight.mul_(0.1).add_(torch.eye(4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - update / updates)
        optimiser.zero_grad()
        mean, log_sigma = model.posterior(x)
        spread = 0.5 * ((2 * log_sigma).exp() * model.decoder[0].weight.square().sum(0)).sum(1) / SIGMA**2
        fit = model.observation.log_prob(model.decoder(mean), x) - spread
        kl = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1) - log_sigma
        (-fit.mean() + model._charge(kl.mean(0))).backward()
        optimiser.step()
    return kl.sum(1).mean().item()


def best_rate(beta: float) -> float:
    return sum(max(0.0, 0.5 * math.log(variance / (beta * SIGMA**2))) for variance in VARIANCES)


def test_the_rate_falls_with_beta_as_in_the_closed_form() -> None:
    rates = [rate_after_training(beta=beta) for beta in (1.0, 4.0, 16.0)]
    assert rates[0] > rates[1] > rates[2]
    assert rates == pytest.approx([best_rate(beta) for beta in (1.0, 4.0, 16.0)], abs=0.03)


def test_the_rate_is_held_at_the_capacity() -> None:
    """Between the rate that beta would allow and the one that the data would take."""
    for capacity in (1.0, 3.0):
        assert rate_after_training(beta=50.0, capacity=capacity, capacity_warmup=0) == pytest.approx(capacity, abs=0.05)


def test_scores_of_known_codes() -> None:
    rng = np.random.RandomState(0)
    factors = np.column_stack([rng.randint(size, size=3000) for size in (4, 5)])
    standard = (factors - factors.mean(0)) / factors.std(0) + 0.01 * rng.randn(3000, 2)
    half = np.sqrt(0.5)
    rotated = standard @ np.array([[half, -half], [half, half]])
    mig = {
        "identity": mutual_information_gap(standard, factors),
        "rotated": mutual_information_gap(rotated, factors),
        "one of a pair rotated": mutual_information_gap(np.column_stack([standard[:, 0], rotated[:, 1]]), factors),
        "duplicated": mutual_information_gap(np.repeat(standard, 2, axis=1), factors),
        "constant": mutual_information_gap(np.zeros((3000, 2)), factors),
    }
    assert mig["identity"] >= 0.9
    assert mig["constant"] == pytest.approx(0, abs=1e-12)
    assert mig["duplicated"] <= 0.1
    assert mig["duplicated"] < mig["one of a pair rotated"] < mig["identity"]
    assert mig["rotated"] < 0.1, "both dimensions say as much of each factor"
    score = {
        "identity": beta_vae_score(standard, factors, points=800),
        "rotated": beta_vae_score(rotated, factors, points=800),
        "constant": beta_vae_score(np.zeros((3000, 2)), factors, points=800),
    }
    assert score["identity"] >= 0.9
    chance = 0.5 + 4 * 0.5 / 200**0.5
    assert score["constant"] <= chance
    assert score["rotated"] < score["identity"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": -1.0}, "beta=-1.0"),
        ({"capacity": -2.0}, "capacity=-2.0"),
        ({"capacity_warmup": -1}, "capacity_warmup=-1"),
        ({"capacity": 5.0, "free_bits": 0.1}, "exclude each other"),
    ],
)
def test_wrong_arguments_are_explained(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        made(**settings)
