"""InfoGAN: its bound of the mutual information on a finite alphabet, its gradients, and codes that become classes."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.infogan import LEAST_LOG_STD, Codes, InfoGan

DIGITS = DataSpec((1, 8, 8), "discrete", levels=17, num_classes=10)
COUNTS = torch.tensor([[6, 3, 1, 0], [1, 1, 4, 4], [2, 6, 0, 2]])  # of letters x, in each category c


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def small(**arguments: object) -> InfoGan:
    torch.manual_seed(0)
    return InfoGan(DIGITS, latent=3, categories=4, continuous=2, hidden_sizes=(8,), **arguments)  # type: ignore[arg-type]


def digits(n: int = 12) -> Batch:
    return Batch(torch.randint(17, (n, 1, 8, 8), generator=seeded()).to(torch.uint8))


# --- the bound ----------------------------------------------------------------------------------------------------


def alphabet() -> tuple[InfoGan, Tensor, Codes, float]:
    """A model of one-hot letters, every (c, x) as often as ``COUNTS`` says, and the exact I(c; x) of that table."""
    model = InfoGan(DataSpec((4,), "real"), latent=1, categories=3, continuous=0, hidden_sizes=())
    pairs = [(c, x) for c in range(3) for x in range(4) for _ in range(int(COUNTS[c, x]))]
    category, letter = (torch.tensor(column) for column in zip(*pairs, strict=True))
    codes = Codes(torch.zeros(len(pairs), 1), category, torch.zeros(len(pairs), 0))
    p = COUNTS.double() / COUNTS.sum()
    independent = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    return model, torch.eye(4)[letter], codes, float(torch.xlogy(p, p / independent).sum())


def bound(model: InfoGan, x: Tensor, codes: Codes) -> float:
    return float(model.information(model.judged(x)[1], codes)[0].detach())


def test_information_bounds_the_mutual_information_and_is_tight_at_the_posterior() -> None:
    model, x, codes, exact = alphabet()
    assert 0.1 < exact < math.log(3)
    for seed in range(20):
        torch.manual_seed(seed)
        with torch.no_grad():
            model.reader.weight.normal_(std=2.0)
        assert bound(model, x, codes) < exact
    posterior = (COUNTS / COUNTS.sum(0)).clamp_min(1e-12)
    with torch.no_grad():
        model.reader.weight.copy_(posterior.log())
        model.reader.bias.zero_()
    assert bound(model, x, codes) == pytest.approx(exact, abs=1e-6)


def test_information_of_the_numbers_at_the_posterior_of_a_noisy_channel() -> None:
    """c ~ U(-1, 1) and x = c: Q = N(c, s^2) gives E log Q + H(c) = log 2 - log s - log(2 pi) / 2, for any s allowed."""
    model = InfoGan(DataSpec((1,), "real"), latent=1, categories=2, continuous=1, hidden_sizes=())
    codes = model.draw(50, seeded())
    log_std = torch.tensor(-1.5)
    raw = LEAST_LOG_STD + torch.log(torch.expm1(log_std - LEAST_LOG_STD))
    guess = torch.cat([torch.zeros(50, 2), codes.numbers, raw.expand(50, 1)], 1)
    category, numbers = model.information(guess, codes)
    assert numbers.item() == pytest.approx(math.log(2) + 1.5 - 0.5 * math.log(2 * math.pi), rel=1e-5)
    assert category.item() == pytest.approx(0, abs=1e-6)
    sharpest = torch.cat([torch.zeros(50, 2), codes.numbers, torch.full((50, 1), -100.0)], 1)
    at_floor = math.log(2) - LEAST_LOG_STD - 0.5 * math.log(2 * math.pi)
    assert model.information(sharpest, codes)[1].item() == pytest.approx(at_floor, rel=1e-5)


# --- the game -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_losses_and_gradients_by_hand(player: str) -> None:
    """Each player minimises its own term minus lambda L_I; Q's term reaches the generator, and the trunk it shares."""
    model = small(information=0.7, continuous_information=0.3)
    x, codes = model.scaling(digits().x), model.draw(12, seeded())
    one_hot = F.one_hot(codes.category, 4).float()
    samples = model.generator(torch.cat([codes.z, one_hot, codes.numbers], 1))
    features = model.discriminator.features(samples)
    fake, real = torch.sigmoid(model.discriminator(samples))[:, 0], torch.sigmoid(model.discriminator(x))[:, 0]
    guess = model.reader(features)
    log_q = (guess[:, :4].softmax(1) * one_hot).sum(1).log().mean()
    std = (LEAST_LOG_STD + F.softplus(guess[:, 6:] - LEAST_LOG_STD)).exp()
    gaussian = -0.5 * ((codes.numbers - guess[:, 4:6]) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
    information = 0.7 * (log_q + math.log(4)) + 0.3 * (gaussian.sum(1).mean() + 2 * math.log(2))
    own = -fake.log().mean() if player == "generator" else -(real.log() + (1 - fake).log()).mean()
    loss = model.loss(player, digits(), seeded())[0]
    torch.testing.assert_close(loss, own - information)
    parameters = model.players()[player]
    expected = torch.autograd.grad(own - information, parameters, retain_graph=True)
    for ours, wanted in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-6)
    shared = model.players()["generator"] if player == "generator" else list(model.discriminator.trunk.parameters())
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(information, shared))


def test_generate_is_sample_as_a_function_of_normal_noise() -> None:
    """Quantiles give every category the same mass, and numbers that are uniform on [-1, 1]."""
    model = small()
    seen: list[Codes] = []
    model.generated = lambda codes: seen.append(codes) or codes.z  # type: ignore[method-assign,func-returns-value]
    model.generate(torch.randn(40_000, model.noise_dim, generator=seeded()))
    for codes in (seen[0], model.draw(40_000, seeded())):
        shares = torch.bincount(codes.category, minlength=4) / 40_000
        assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 40_000) ** 0.5
        assert codes.numbers.abs().max() <= 1
        assert codes.numbers.mean(0).abs().max() < 4 * (1 / 3 / 40_000) ** 0.5
        assert (codes.numbers.square().mean(0) - 1 / 3).abs().max() < 4 * (4 / 45 / 40_000) ** 0.5
        assert codes.z.shape == (40_000, 3)


def test_what_is_encoded_is_what_q_reads() -> None:
    model = small().eval()
    codes = model.encode(digits().x)
    assert codes.shape == (12, 6)
    torch.testing.assert_close(codes[:, :4].sum(1), torch.ones(12))
    guess = model.reader(model.discriminator.features(model.scaling(digits().x)))
    torch.testing.assert_close(codes[:, 4:], guess[:, 4:6].detach())


def trained(weight: float, seed: int, x: Tensor) -> InfoGan:
    torch.manual_seed(seed)
    model = InfoGan(DIGITS, latent=4, hidden_sizes=(64, 64), information=weight, continuous_information=0.1 * weight)
    players = model.players()
    optimisers = {name: torch.optim.Adam(own, lr=5e-3, betas=(0.5, 0.999)) for name, own in players.items()}
    g = seeded(seed)
    for _ in range(150):
        batch = Batch(x[torch.randint(len(x), (32,), generator=g)])
        for name, optimiser in optimisers.items():
            loss = model.loss(name, batch, g)[0]
            for parameter, gradient in zip(
                players[name], torch.autograd.grad(loss, players[name], allow_unused=True), strict=True
            ):
                parameter.grad = gradient
            optimiser.step()
    return model.eval()


def matched_accuracy(code: np.ndarray, label: np.ndarray) -> float:
    """The share of examples whose code and label agree under the best one-to-one renaming of codes."""
    table = np.zeros((10, 10))
    np.add.at(table, (code, label), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(code))


def test_the_category_becomes_the_class_of_digits() -> None:
    """Labels of samples are an independent classifier's; means of two seeds."""
    data = load_digits()
    classifier = SVC(gamma=0.001).fit(data.data[:900], data.target[:900])
    assert classifier.score(data.data[900:], data.target[900:]) >= 0.95
    x = torch.tensor(data.images, dtype=torch.uint8)[:, None]
    means = []
    for weight in (1.0, 0.0):
        accuracies = []
        for seed in range(2):
            model = trained(weight, seed, x)
            codes = model.draw(500, seeded(100))
            labels = classifier.predict(model.of_codes(codes).flatten(1).numpy())
            accuracies.append(matched_accuracy(codes.category.numpy(), labels))
        means.append(sum(accuracies) / 2)

    assert means[0] > 0.4
    assert means[0] > means[1] + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"net": "cnn"}, "net"), ({"categories": 1}, "categories"), ({"information": -1.0}, "information")],
)
def test_bad_arguments_are_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((UserError, jaxtyping.TypeCheckError), match=message):
        InfoGan(DIGITS, **arguments)  # type: ignore[arg-type]
