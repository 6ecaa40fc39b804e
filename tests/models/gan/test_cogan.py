"""CoGAN: what is shared, the sum of the domains' games, and tuples whose members are of one class."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.cogan import CoGan
from dgmbench.nn.adversarial import make_discriminator, make_generator
from dgmbench.nn.adversarial_coupled import CoupledNetName
from dgmbench.nn.batchnorm import BatchNorm
from dgmbench.nn.labels import domain_of, domains_of

PAIRS = DataSpec((1, 16, 16), "discrete", levels=17, num_classes=2)
FACTORS = DataSpec((1, 16, 16), "discrete", levels=17, num_classes=6, factors=(("class", 3), ("domain", 2)))


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = PAIRS, **arguments: object) -> CoGan:
    torch.manual_seed(0)
    settings = {"net": "mlp", "latent": 3, "hidden_sizes": (8, 6), "channels": 2} | arguments
    return CoGan(spec, **settings)  # type: ignore[arg-type]


def batch(y: list[int]) -> Batch:
    return Batch(torch.randint(17, (len(y), 1, 16, 16), generator=seeded()).to(torch.uint8), torch.tensor(y))


@pytest.mark.parametrize(("net", "layers"), [("mlp", 3), ("dcgan", 3)])
def test_shared_layers_are_the_same_tensors_and_own_layers_are_not(net: CoupledNetName, layers: int) -> None:
    """A step of one domain's game moves what both networks share, and nothing of the other domain's own."""
    sizes = [sum(p.numel() for p in made(net=net, own=own).parameters()) for own in range(1, layers + 1)]
    assert sizes == sorted(set(sizes))
    widths = {"hidden_sizes": (8, 6), "channels": 2}
    one = sum(p.numel() for p in make_generator(net, PAIRS, latent=3, **widths).parameters())
    model = made(net=net, own=layers)
    assert sum(p.numel() for p in model.generator.parameters()) == 2 * one  # nothing is shared
    model = made(net=net)
    z = model.noise(4, seeded())
    first, second = model.generator(z)
    shared, own = list(model.generator.trunk.parameters()), list(model.generator.branches[0].parameters())
    for example, of_own in ((first, True), (second, False)):
        gradients = torch.autograd.grad(example.square().sum(), shared, retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        reached = torch.autograd.grad(example.square().sum(), own, allow_unused=True, retain_graph=True)
        assert all((gradient is not None) == of_own for gradient in reached)
    data = [torch.randn(3, 1, 16, 16), torch.randn(5, 1, 16, 16)]
    outputs = model.discriminator(data)
    assert [len(a) for a in outputs] == [3, 5]
    for k, a in enumerate(outputs):
        trunk = torch.autograd.grad(a.sum(), list(model.discriminator.trunk.parameters()), retain_graph=True)
        assert sum(gradient.abs().max() > 0 for gradient in trunk) >= len(trunk) - 1
        stems = [list(stem.parameters()) for stem in model.discriminator.stems]
        if net == "mlp":  # batch-norm of the shared layers ties all examples of a batch
            reached = torch.autograd.grad(a.sum(), stems[1 - k], allow_unused=True, retain_graph=True)
            assert all(gradient is None or not gradient.any() for gradient in reached)


@pytest.mark.parametrize("net", ["mlp", "dcgan"])
def test_networks_of_domains_that_share_nothing_are_those_of_a_gan(net: CoupledNetName) -> None:
    torch.manual_seed(3)
    widths = {"hidden_sizes": (8, 6), "channels": 2}
    generators = [make_generator(net, PAIRS, latent=3, **widths) for _ in range(2)]
    discriminators = [make_discriminator(net, PAIRS, hidden_sizes=(6, 8), channels=2) for _ in range(2)]
    torch.manual_seed(3)
    model = CoGan(PAIRS, net=net, latent=3, own=9, **widths)  # type: ignore[arg-type]
    z, x = model.noise(4, seeded()), torch.randn(4, 1, 16, 16)
    for ours, theirs in zip(model.generator(z), generators, strict=True):
        torch.testing.assert_close(ours, theirs(z))
    for ours, theirs in zip(model.discriminator([x, x]), discriminators, strict=True):
        torch.testing.assert_close(ours, theirs(x)[:, 0])


@pytest.mark.parametrize("loss", ["minimax", "non_saturating", "relativistic_average"])
def test_losses_are_sums_of_the_domains_games(loss: str) -> None:
    """Two examples of one domain and three of the other: each domain's mean counts alike."""
    model, one = made(loss=loss), batch([0, 1, 1, 0, 1])
    x, z = one.x / 8.0 - 1, torch.randn(3, 3, generator=seeded())
    softplus = F.softplus
    wanted = {"discriminator": torch.zeros(()), "generator": torch.zeros(())}
    reals, fakes = model.discriminator([x[[0, 3]], x[[1, 2, 4]]]), model.discriminator(model.generator(z))
    for real, fake in zip(reals, fakes, strict=True):
        if loss == "relativistic_average":
            real, fake = real - fake.mean(), fake - real.mean()
        wanted["discriminator"] = wanted["discriminator"] + softplus(-real).mean() + softplus(fake).mean()
        of_generator = -softplus(fake).mean() if loss == "minimax" else softplus(-fake).mean()
        if loss == "relativistic_average":
            of_generator = of_generator + softplus(real).mean()
        wanted["generator"] = wanted["generator"] + of_generator
    for player, expected in wanted.items():
        torch.testing.assert_close(model.loss(player, one, seeded())[0], expected)


def test_the_domain_is_the_factor_of_that_name_or_else_the_label() -> None:
    assert domains_of(FACTORS) == ("domain", 2)
    assert domain_of(torch.tensor([0, 1, 4, 5, -1]), FACTORS).tolist() == [0, 1, 0, 1, -1]
    assert domains_of(PAIRS) == (None, 2)
    assert domain_of(torch.tensor([1, 0, -1]), PAIRS).tolist() == [1, 0, -1]
    assert made(FACTORS).batch_policy() == BatchPolicy(balanced="domain")
    assert made().batch_policy() == BatchPolicy(balanced="label")


def test_samples_are_of_the_domains_asked_for_and_tuples_share_their_noise() -> None:
    model = made(FACTORS).eval()
    model.initialise(batch([0] * 26 + [1] * 8), seeded())
    assert model.domain_log_prior.exp().tolist() == pytest.approx([27 / 36, 9 / 36])
    tuples = model.tuples(6, generator=seeded())
    assert tuples.shape == (6, 2, 1, 16, 16)
    y = torch.tensor([0, 1, 4, 5, 3, 2])
    assert torch.equal(model.sample(6, y, generator=seeded()), tuples[torch.arange(6), y % 2])


def test_running_statistics_are_those_of_data_in_the_discriminator_and_of_samples_in_the_generator() -> None:
    model, one = made(net="dcgan"), batch([0, 1] * 8)
    x = model.scaling(one.x)
    seen = torch.cat([stem(x[k::2]) for k, stem in enumerate(model.discriminator.stems)])
    expected = {
        "discriminator": model.discriminator.trunk[0][0](seen),  # type: ignore[index]
        "generator": model.generator.trunk[0][0](model.noise(8, seeded())[:, :, None, None]),  # type: ignore[index]
    }
    for player, values in expected.items():
        model.loss(player, one, seeded())
        model.after_step(player, one, seeded())
        layer = next(m for m in getattr(model, player).modules() if isinstance(m, BatchNorm))
        torch.testing.assert_close(layer.running_mean, 0.1 * values.mean((0, 2, 3)))


# --- classes of tuples --------------------------------------------------------------------------------------------


def trained(x: Tensor, domain: Tensor, *, own: int, seed: int) -> CoGan:
    torch.manual_seed(seed)
    model = CoGan(PAIRS, latent=8, channels=8, own=own)
    players, g = model.players(), seeded(seed)
    optimisers = {name: torch.optim.Adam(ps, lr=3e-3, betas=(0.5, 0.999)) for name, ps in players.items()}
    half = len(x) // 2
    for _ in range(60):
        chosen = 2 * torch.randint(half, (24,), generator=g) + torch.arange(24) % 2
        one = Batch(x[chosen], domain[chosen])
        for name, optimiser in optimisers.items():
            loss = model.loss(name, one, g)[0]
            for parameter, gradient in zip(players[name], torch.autograd.grad(loss, players[name]), strict=True):
                parameter.grad = gradient
            optimiser.step()
            model.after_step(name, one, g)
    return model.eval()


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa: how often two classifications agree, from 0 (as often as by chance) to 1."""
    shares = [np.bincount(labels, minlength=10) / len(labels) for labels in (first, second)]
    by_chance = float(shares[0] @ shares[1])
    return float((np.mean(first == second) - by_chance) / (1 - by_chance))


def test_members_of_a_tuple_are_of_one_class_and_those_of_unshared_networks_are_not() -> None:
    """Digits and their negatives, never seen in pairs; classes by an independent classifier, means of three seeds."""
    data = load_digits()
    classifier = SVC(gamma=0.001).fit(data.data, data.target)
    small = torch.tensor(data.images, dtype=torch.float32)[:, None]
    x, domain = F.interpolate(small, scale_factor=2.0, mode="bilinear").round().byte(), torch.arange(len(small)) % 2
    x = torch.where(domain[:, None, None, None] == 1, 16 - x, x)

    def classes(pictures: Tensor) -> np.ndarray:
        return classifier.predict(F.avg_pool2d(pictures.float(), 2).flatten(1).numpy())

    means = []
    for own in (1, 3):
        found = []
        for seed in range(3):
            tuples = trained(x, domain, own=own, seed=seed).tuples(400, generator=seeded(1))
            found.append(agreement(classes(tuples[:, 0]), classes(16 - tuples[:, 1])))
        means.append(sum(found) / 3)
    assert means[0] > 0.35
    assert means[0] > means[1] + 0.25


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((1, 16, 16), "discrete", levels=17), {}, "at least two domains"),
        (DataSpec((1, 16, 16), "discrete", levels=17, num_classes=1), {}, "and these have 1"),
        (PAIRS, {"own": 0}, "own"),
        (DataSpec((1, 8, 8), "discrete", levels=17, num_classes=2), {"net": "dcgan"}, "16, 28, 32"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)


def test_loss_changes_no_state() -> None:
    model, one = made(net="dcgan"), batch([0, 1] * 4)
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        assert torch.equal(model.loss(player, one, seeded())[0], model.loss(player, one, seeded())[0])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
