"""InfoVAE's weights and distances, where Gaussians give every term in closed form."""

import math

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Facts
from dgmbench.models.vae.infovae import InfoVae
from dgmbench.models.vae.vae import Draws, Vae

SPEC = DataSpec((1, 3, 3), "binary")
SETTINGS = {"hidden_sizes": (8,), "latent": 3}
BATCH = Batch(torch.randint(2, (20, 1, 3, 3), generator=Generator().manual_seed(1)).byte())


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def info(spec: DataSpec = SPEC, **settings: object) -> InfoVae:
    torch.manual_seed(0)
    return InfoVae(spec, **{**SETTINGS, **settings}).double()  # type: ignore[arg-type]


def gradient(model: Vae) -> Tensor:
    loss = model.loss("model", BATCH, seeded(2))[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.players()["model"])])


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_vae_and_the_beta_vae_are_two_of_its_weights(beta: float) -> None:
    torch.manual_seed(0)
    wanted = gradient(Vae(SPEC, beta=beta, **SETTINGS).double())  # type: ignore[arg-type]
    torch.testing.assert_close(gradient(info(alpha=1 - beta, lambda_=beta)), wanted)
    assert (gradient(info(alpha=1 - beta, lambda_=beta + 1.0)) - wanted).abs().max() > 1e-3


def test_at_alpha_1_no_example_is_charged_for_its_own_kl() -> None:
    model = info(alpha=1.0, lambda_=1.0)
    loss, logs = model.loss("model", BATCH, seeded())
    torch.testing.assert_close(loss.detach(), logs["divergence"] - logs["reconstruction"])
    assert logs["kl"] > 0.01


@pytest.mark.parametrize(("alpha", "lambda_"), [(0.0, 1.5), (0.4, 3.0), (1.0, 2.0)])
def test_with_the_kl_it_weighs_information_and_the_prior_apart(alpha: float, lambda_: float) -> None:
    """z = W x + s noise with x ~ N(0, I): q(z) = N(0, W W' + s^2 I); the whole data set is the batch."""
    spec, n = DataSpec((2,), "real"), 1000
    model = info(spec, alpha=alpha, lambda_=lambda_, divergence="kl", hidden_sizes=(), latent=2, sigma=0.7)
    weight, log_variance = torch.tensor([[0.9, 0.3], [0.8, 1.0]]).double(), math.log(0.25)
    linear = model.encoder[-1]
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:2] = weight
        linear.bias.copy_(torch.tensor([0.0, 0.0, log_variance, log_variance]))
    model.prepare(Facts(n, {}))
    covariance = weight @ weight.T + 0.25 * torch.eye(2).double()
    information = 0.5 * (torch.logdet(covariance) - 2 * log_variance)
    apart = 0.5 * (covariance.trace() - 2 - torch.logdet(covariance))
    found = []
    for seed in range(5):
        x = torch.randn(n, 2, generator=seeded(seed))
        with torch.no_grad():
            loss, logs = model.loss("model", Batch(x), seeded(100 + seed))
        found.append(loss + logs["reconstruction"])
    each = torch.stack(found)
    wanted = (1 - alpha) * information + lambda_ * apart
    assert abs(each.mean() - wanted) < 4.5 * each.std() / 5**0.5 + 0.01 * wanted


def draws(z: Tensor) -> Draws:
    return Draws(z, z, z[None], z[None], z[None])


def test_mmd_of_two_gaussians() -> None:
    """E k(x, y) = (h^2 / (h^2 + s^2 + t^2))^(d/2) exp(-|m|^2 / 2(h^2 + s^2 + t^2)) of N(0, s^2 I), N(m, t^2 I)."""
    model, m, s = info(divergence="mmd", bandwidths=(0.5, 2.0)), 0.8, 0.6
    g, h = seeded(), model.bandwidths.double()
    assert h.tolist() == pytest.approx([0.5 * 3**0.5, 2 * 3**0.5])

    def expected(variances: float, distance: float) -> float:
        width = h.square() + variances
        return float(((h.square() / width) ** 1.5 * torch.exp(-3 * distance**2 / (2 * width))).mean())

    wanted = expected(2.0, 0) + expected(2 * s**2, 0) - 2 * expected(1 + s**2, m)
    found = torch.stack(
        [model.distance(draws(m + s * torch.randn(100, 3, generator=g).double()), g) for _ in range(100)]
    )
    assert wanted > 0.05
    assert abs(found.mean() - wanted) < 4.5 * found.std() / 10
    same = torch.stack([model.distance(draws(torch.randn(20, 3, generator=g).double()), g) for _ in range(200)])
    assert abs(same.mean()) < 4.5 * same.std() / 200**0.5, "unbiased"


def test_the_critics_bound_is_twice_jensen_and_shannons_divergence_at_its_best() -> None:
    """For N(0, 1) and N(m, 1) the best critic is linear: log p(z) / q(z) = m^2 / 2 - m z."""
    m = 1.5
    model = info(divergence="js", critic_sizes=(), latent=1)
    assert set(model.players()) == {"critic", "model"}
    assert model.critic is not None
    head = model.critic.head
    with torch.no_grad():
        head.weight.fill_(-m)
        head.bias.fill_(m**2 / 2)
    grid = torch.linspace(-12, 14, 20001, dtype=torch.float64)
    p, q = (torch.exp(-0.5 * (grid - c).square()) / math.sqrt(2 * math.pi) for c in (0.0, m))
    mean = 0.5 * (p + q)
    wanted = torch.trapezoid(p * (p / mean).log() + q * (q / mean).log(), grid).item()
    z = m + torch.randn(200_000, 1, generator=seeded()).double()
    with torch.no_grad():
        best = model.distance(draws(z), seeded(1)).item()
        head.weight.mul_(0.5)
        assert model.distance(draws(z), seeded(1)).item() < best - 0.01
    assert best == pytest.approx(wanted, abs=0.01)


def test_the_critic_and_the_vae_pull_apart() -> None:
    model = info(divergence="js", critic_sizes=(6,), alpha=1.0, lambda_=5.0)
    critic, logs = model.loss("critic", BATCH, seeded())
    vae, others = model.loss("model", BATCH, seeded())
    assert critic.item() == pytest.approx(-others["divergence"].item())
    assert vae.item() == pytest.approx(5 * others["divergence"].item() - others["reconstruction"].item())
    assert logs["divergence"] == others["divergence"]
    held_out = model.held_out(BATCH, generator=seeded())["info_objective"]
    assert held_out.mean().item() == pytest.approx(-vae.item()), "checkpoints go by the loss"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alpha": 2.0}, "alpha=2.0 must be at most 1"),
        ({"alpha": -3.0, "lambda_": 2.0}, "their sum must be at least 1"),
        ({"bandwidths": (0.0,)}, "bandwidths"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        info(**settings)
