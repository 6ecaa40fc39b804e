"""The fair autoencoder against quadrature over codes of one dimension, and a probe of its codes by scikit-learn."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from dgmbench.data.fairness_tabular import FairnessTabular
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.vfae import Vfae
from dgmbench.nn.gaussians import draw_normal
from dgmbench.nn.labels import label_nll
from dgmbench.nn.mmd import mmd_squared, rbf_mixture

FACTORS = (("sensitive", 2), ("target", 2))
SPEC = DataSpec((1, 2, 2), "binary", num_classes=4, factors=FACTORS)
NODES, WEIGHTS = (torch.from_numpy(each) for each in hermegauss(40))
WEIGHTS = WEIGHTS / math.sqrt(2 * math.pi)
IMAGES = (torch.arange(16)[:, None] >> torch.arange(4) & 1).view(16, 1, 2, 2).byte()
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(**settings: object) -> Vfae:
    torch.manual_seed(3)
    model = Vfae(SPEC, **{"hidden_sizes": (6,), "latent": 1, **settings}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.2)
        for net, log_variance in ((model.encoder_1, 1.0), (model.encoder_2, 1.0), (model.decoder_1, -0.5)):
            last = net[-1]
            assert isinstance(last, torch.nn.Linear)
            last.bias.chunk(2)[1].copy_(torch.tensor(log_variance))  # wide proposals: weights of finite variance
    model.class_log_prior.copy_(PRIOR)
    return model


@torch.no_grad()
def log_likelihood(model: Vfae, y: int) -> Tensor:
    """log p(x | y) of all pictures, by quadrature over z_2 and, given it, over z_1."""
    s, t = y // 2, y % 2
    mean, log_sigma = model.p_1(NODES[:, None], torch.full((40,), t))
    z = (mean + log_sigma.exp() * NODES).reshape(-1, 1)  # (z_2, z_1)
    parameters = model.parameters_of_x(z, torch.full((len(z),), s))
    of_x = torch.stack([model.observation.log_prob(parameters, x[None]) for x in IMAGES], 1).exp()
    return (torch.outer(WEIGHTS, WEIGHTS).reshape(-1, 1) * of_x).sum(0).log()


@torch.no_grad()
def bound(model: Vfae, x: Tensor, y: int) -> Tensor:
    """E L of one picture, by quadrature, with the KL of z_2 by torch.distributions."""
    s, t = torch.full((1,), y // 2), torch.full((40,), y % 2)
    q = model.q_1(x[None], s)
    z = (q.mean + q.log_sigma.exp() * NODES)[0][:, None]
    q_2 = model.q_2(z, t)
    z_2 = q_2.mean + q_2.log_sigma.exp() * NODES  # (z_1, z_2)
    p = model.p_1(z_2.reshape(-1, 1), torch.full((1600,), y % 2))
    p_1 = Normal(p.mean.view(40, 40), p.log_sigma.exp().view(40, 40))
    of_x = model.observation.log_prob(model.parameters_of_x(z, s.expand(40)), x[None])
    kl = kl_divergence(Normal(q_2.mean, q_2.log_sigma.exp()), Normal(0.0, 1.0))[:, 0]
    log_q = Normal(q.mean[0], q.log_sigma.exp()[0]).log_prob(z)[:, 0]
    return (WEIGHTS * (of_x + p_1.log_prob(z) @ WEIGHTS - log_q - kl)).sum()


@pytest.mark.parametrize("conditioned", [True, False])
def test_bound_and_weights_against_quadrature(conditioned: bool) -> None:
    model = make(conditioned=conditioned)
    total = torch.zeros(16, dtype=torch.float64)
    for y in range(4):
        exact, label = log_likelihood(model, y), torch.full((16,), y)
        assert exact.exp().sum().item() == pytest.approx(1, abs=1e-6)
        total += PRIOR[y].exp() * exact.exp()
        wanted = torch.stack([bound(model, x, y) for x in IMAGES])
        assert (wanted <= exact + 1e-9).all()
        with torch.no_grad():
            many = model.elbo(IMAGES.repeat(400, 1, 1, 1), y=label.repeat(400), generator=seeded(y)).view(400, 16)
            weights = model.log_weights(IMAGES, 1500, y=label, generator=seeded(y)).exp()
        assert ((many.mean(0) - wanted).abs() < 4.5 * many.std(0) / 400**0.5).all()
        assert ((weights.mean(0) - exact.exp()).abs() < 4.5 * weights.std(0) / 1500**0.5).all()
    with torch.no_grad():
        weights = model.log_weights(IMAGES, 1500, generator=seeded()).exp()
    assert ((weights.mean(0) - total).abs() < 4.5 * weights.std(0) / 1500**0.5).all()


def test_only_the_networks_of_x_see_the_attribute_and_only_if_they_are_told() -> None:
    s, z, t = torch.tensor([0, 1]), torch.zeros(2, 1, dtype=torch.float64), torch.tensor([0, 0])
    for conditioned in (True, False):
        model = make(conditioned=conditioned)
        codes, back = model.q_1(IMAGES[:1].expand(2, -1, -1, -1), s).mean, model.parameters_of_x(z, s)
        assert bool((codes[0] == codes[1]).all()) is not conditioned
        assert bool((back[0] == back[1]).all()) is not conditioned
        assert model.target(torch.arange(-1, 4)).tolist() == [-1, 0, 1, 0, 1]
        assert model.sensitive(torch.arange(-1, 4)).tolist() == [-1, 0, 0, 1, 1]
        assert torch.equal(*model.p_1(z, t).mean)


def test_the_loss_by_hand() -> None:
    """The exact discrepancy of the very codes: the features are many here, so their error is small."""
    model = make(label_weight=0.7, mmd_weight=3.0, features=20_000, latent=2)
    y = torch.arange(16) % 4
    batch = Batch(IMAGES, y=y)
    loss, logs = model.loss("model", batch, seeded(5))
    q = model.q_1(IMAGES, y // 2)
    z = q.mean + q.log_sigma.exp() * torch.randn(16, 2, generator=seeded(5), dtype=torch.float64)
    kernel = rbf_mixture(torch.cdist(z, z)[tuple(torch.triu_indices(16, 16, 1))].median()[None].detach())
    apart = mmd_squared(z[y < 2], z[y >= 2], kernel).v_statistic
    labels = label_nll(model.target_log_prob(z), y % 2)
    assert logs["mmd"].item() == pytest.approx(apart.item(), rel=0.05)
    assert logs["labels"].item() == pytest.approx(labels.item())
    wanted = 0.7 * labels + 3.0 * logs["mmd"] - logs["bound"]
    torch.testing.assert_close(loss, wanted)
    one = y < 2
    assert model.loss("model", Batch(IMAGES[one], y=y[one]), seeded())[1]["mmd"] == 0


def trained(x: Tensor, y: Tensor, **settings: object) -> Vfae:
    torch.manual_seed(0)
    spec = DataSpec((10,), "real", num_classes=4, factors=FACTORS)
    model = Vfae(spec, hidden_sizes=(30,), latent=4, **settings)  # type: ignore[arg-type]
    model.initialise(Batch(x, y=y), seeded())
    optimiser, g = torch.optim.Adam(model.parameters(), lr=5e-3), seeded()
    for _ in range(200):
        rows = torch.randint(len(x), (100,), generator=g)
        optimiser.zero_grad()
        model.loss("model", Batch(x[rows], y=y[rows]), g)[0].backward()
        optimiser.step()
    with torch.no_grad():
        model.settle(iter([Batch(x[:1000], y=y[:1000]), Batch(x[1000:], y=y[1000:])]), g)
    return model


def test_a_probe_tells_the_attribute_from_plain_codes_and_not_from_fair_ones(tmp_path: Path) -> None:
    """Less than half of what is above chance is left after a short training.

    The label stays told, and scikit-learn's regression and the model's own probe agree.
    """
    parts = FairnessTabular().read(tmp_path).parts
    (x, y), (x_test, y_test) = (
        (torch.tensor(np.asarray(parts[split].x)), torch.tensor(parts[split].y)) for split in ("train", "test")
    )
    told, right = {}, {}
    for name, settings in {
        "plain": {"conditioned": False, "mmd_weight": 0.0},
        "fair": {"mmd_weight": 100.0, "features": 200},
    }.items():
        model = trained(x, y, **settings)
        with torch.no_grad():
            codes = draw_normal(model.q_1(x, y // 2), 1, seeded(1))[0].numpy()
            codes_test = draw_normal(model.q_1(x_test, y_test // 2), 1, seeded(2))[0].numpy()
        peer = LogisticRegression().fit(codes, y.numpy() // 2)
        told[name] = float(peer.score(codes_test, y_test.numpy() // 2))
        values = model.held_out(Batch(x_test, y=y_test), generator=seeded(3))
        own = {key: value.mean().item() for key, value in values.items()}
        right[name] = own["target_accuracy"]
        assert own["sensitive_accuracy"] == pytest.approx(told[name], abs=4.5 * math.sqrt(0.5 / 2000))  # other draws
        larger = max(np.bincount(y.numpy() // 2)) / len(y)
        assert own["sensitive_accuracy_over_larger_group"] == pytest.approx(
            own["sensitive_accuracy"] - larger, abs=0.05
        )
    assert told["plain"] > 0.8
    assert told["fair"] - 0.5 < 0.5 * (told["plain"] - 0.5)
    assert right["fair"] > 0.7


def test_what_is_held_out_of_an_example_without_label_is_left_open() -> None:
    found = make().held_out(Batch(IMAGES[:2], y=torch.tensor([-1, 3])))
    assert set(found) == set(make().objectives())
    assert all(value.isnan().tolist() == [True, False] for value in found.values())


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (DataSpec((1, 2, 2), "binary"), {}, "needs data with labels"),
        (DataSpec((1, 2, 2), "binary", num_classes=4), {}, "these data have none"),
        (DataSpec((4,), "real", num_classes=6, factors=(("sensitive", 3), ("target", 2))), {}, r"sensitive \(3\)"),
        (SPEC, {"mmd_weight": -1.0}, "mmd_weight=-1.0"),
        (SPEC, {"features": 0}, "features=0"),
    ],
)
def test_what_does_not_fit_is_refused(spec: DataSpec, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Vfae(spec, **settings)  # type: ignore[arg-type]
