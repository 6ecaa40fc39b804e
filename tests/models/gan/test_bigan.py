"""BiGAN and ALI: the value of the joint game on a finite alphabet, and codes that learn to invert the generator."""

import math

import jaxtyping
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import player_parameters
from dgmbench.models.gan.bigan import BiGan
from dgmbench.nn.batchnorm import BatchNorm

IMAGES = DataSpec((1, 16, 16), "discrete", levels=4)
LETTERS = 4


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 16) -> Batch:
    return Batch(torch.randint(4, (n, 1, 16, 16), generator=seeded()).to(torch.uint8))


class Table(nn.Module):
    """A discriminator with a number of its own for every pair of letters, one-hot x and z."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs = nn.Parameter(torch.zeros(LETTERS, LETTERS))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return ((x @ self.outputs) * code).sum(1, keepdim=True)


class Renamed(nn.Module):
    """One letter for another: one-hot u to one-hot of to[u]."""

    def __init__(self, to: list[int]) -> None:
        super().__init__()
        self.register_buffer("table", F.one_hot(torch.tensor(to), LETTERS).float())

    def forward(self, u: Tensor) -> Tensor:
        return u @ self.table


def letters(counts: list[int]) -> Tensor:
    return torch.eye(LETTERS).repeat_interleave(torch.tensor(counts), 0)


def game(generates: list[int], encodes: list[int], x: list[int], z: list[int]) -> tuple[BiGan, Batch]:
    """The class on a finite alphabet: its noise is the letters z, each as often as said, in place of a Gaussian."""
    model = BiGan(DataSpec((LETTERS,), "real"), latent=LETTERS, hidden_sizes=())
    model.generator, model.encoder, model.discriminator = Renamed(generates), Renamed(encodes), Table()
    model.noise = lambda n, generator: letters(z)  # type: ignore[method-assign,assignment]
    return model, Batch(letters(x))


def best_value(model: BiGan, batch: Batch, p: Tensor, q: Tensor) -> float:
    """The value of the game at D = p / (p + q), after a look that the class's own loss, convex in D, is least there."""
    with torch.no_grad():
        model.discriminator.outputs.copy_((p.log() - q.log()).nan_to_num(0.0, posinf=30.0, neginf=-30.0))
    loss, _ = model.loss("discriminator", batch, seeded())
    (gradient,) = torch.autograd.grad(loss, model.discriminator.outputs)
    assert gradient.abs().max() < 1e-7
    return -float(loss.detach())


def joint(becomes: list[int], counts: list[int], *, swap: bool = False) -> Tensor:
    """P(x, z) as a table, from how often each letter of one side occurs and what it becomes."""
    table = torch.zeros(LETTERS, LETTERS)
    for letter, count in enumerate(counts):
        table[(becomes[letter], letter) if swap else (letter, becomes[letter])] += count / sum(counts)
    return table


def values(generates: list[int], encodes: list[int], x: list[int], z: list[int]) -> tuple[float, float]:
    """The game's value at the best discriminator, and 2 JS - 2 log 2 of the joints."""
    p, q = joint(encodes, x), joint(generates, z, swap=True)
    m = (p + q) / 2
    js = float((torch.xlogy(p, p / m) + torch.xlogy(q, q / m)).nan_to_num(0.0).sum() / 2)
    return best_value(*game(generates, encodes, x, z), p, q), 2 * js - 2 * math.log(2)


def test_value_is_twice_jensen_shannon_of_the_joints() -> None:
    """Some pairs are shared, with other frequencies, and some occur on one side only."""
    found, expected = values([1, 0, 2, 3], [1, 0, 3, 2], [6, 6, 4, 4], [4, 8, 5, 3])
    assert -1.9 * math.log(2) < expected < -0.1
    assert found == pytest.approx(expected, abs=1e-5)


def test_value_is_least_exactly_where_the_encoder_inverts_the_generator() -> None:
    generates, inverse = [2, 0, 3, 1], [1, 3, 0, 2]
    z = [2, 5, 4, 9]
    x = [z[inverse[k]] for k in range(LETTERS)]
    least = -2 * math.log(2)
    assert values(generates, inverse, x, z)[0] == pytest.approx(least, abs=1e-6)
    wrong = [3, 1, 0, 2]
    assert values(generates, wrong, x, z)[0] > least + 0.1
    assert values(generates, inverse, [5] * 4, [5] * 4)[0] == pytest.approx(least, abs=1e-6)
    assert values(generates, wrong, [5] * 4, [5] * 4)[0] > least + 0.1  # although both marginals agree


def test_which_code_belongs_to_which_data_matters() -> None:
    torch.manual_seed(0)
    model = BiGan(IMAGES, latent=3, hidden_sizes=(8,))
    x, z = model.scaling(images().x), model.noise(16, seeded())
    assert not torch.allclose(model.critic(x, z), model.critic(x, z.roll(1, 0)))
    torch.testing.assert_close(model.critic(x, z).roll(1, 0), model.critic(x.roll(1, 0), z.roll(1, 0)))


@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
@pytest.mark.parametrize("encoding", ["deterministic", "stochastic"])
def test_losses_by_hand(loss: str, encoding: str) -> None:
    torch.manual_seed(0)
    model = BiGan(IMAGES, latent=3, hidden_sizes=(8,), loss=loss, encoding=encoding)  # type: ignore[arg-type]
    x, g = model.scaling(images().x), seeded()
    z = torch.randn(16, 3, generator=g)
    codes = model.encoder(x)
    if encoding == "stochastic":
        codes = torch.normal(torch.zeros(16, 3), 1.0, generator=g) * codes[:, 3:].exp() + codes[:, :3]
    d_real = torch.sigmoid(model.critic(x, codes))
    d_fake = torch.sigmoid(model.critic(model.generator(z), z))
    value = (d_real.log() + (1 - d_fake).log()).mean()
    opponents = value if loss == "minimax" else -(d_fake.log() + (1 - d_real).log()).mean()
    for player, expected in (("discriminator", -value), ("opponents", opponents)):
        found = model.loss(player, images(), seeded())[0]
        torch.testing.assert_close(found, expected)
        own = player_parameters(model)[player]
        gradients = torch.autograd.grad(expected, own, retain_graph=True)
        for ours, wanted in zip(torch.autograd.grad(found, own), gradients, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-7)


def test_the_code_of_ali_is_a_draw_and_its_mean_is_what_is_encoded() -> None:
    torch.manual_seed(0)
    model = BiGan(DataSpec((2,), "real"), latent=1, hidden_sizes=(4,), encoding="stochastic")
    x = torch.randn(1, 2).expand(20_000, 2)
    mean, log_std = model.encoder(x[:1])[0].detach()
    codes = model.code(x, seeded()).detach()
    assert codes.mean().item() == pytest.approx(mean.item(), abs=4 * log_std.exp().item() / 20_000**0.5)
    assert codes.std().item() == pytest.approx(log_std.exp().item(), rel=4 / 40_000**0.5)
    assert torch.equal(model.encode(x[:1])[0, 0], mean)


@pytest.mark.parametrize("loss", ["wasserstein", "relativistic_average"])
def test_no_bias_is_idle_where_the_loss_sees_no_constant(loss: str) -> None:
    model = BiGan(IMAGES, net="dcgan", latent=3, hidden_sizes=(8,), channels=2, loss=loss)  # type: ignore[arg-type]
    assert model.discriminator.head.bias is None
    loss, _ = model.loss("discriminator", images(), seeded())
    gradients = torch.autograd.grad(loss, list(model.discriminator.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def inversion_error(seed: int) -> float:
    """Mean |G(E(x)) - x| of linear nets on N(2, 1/4) after 300 updates, relative to its start.

    Players of such a game circle about its solution, so the networks are the averages over the second half.
    """
    torch.manual_seed(seed)
    model = BiGan(DataSpec((1,), "real"), latent=1, hidden_sizes=(32, 32))
    model.generator, model.encoder = nn.Linear(1, 1), nn.Linear(1, 1)
    g, held_out = seeded(seed), 2 + 0.5 * torch.randn(2000, 1, generator=seeded(100))
    error = lambda: float((model.reconstruct(held_out) - held_out).abs().mean())
    start, players = error(), player_parameters(model)
    optimisers = {name: torch.optim.Adam(own, lr=1e-2, betas=(0.5, 0.9)) for name, own in players.items()}
    late: list[Tensor] = []
    for step in range(300):
        batch = Batch(2 + 0.5 * torch.randn(64, 1, generator=g))
        for name, optimiser in optimisers.items():
            gradients = torch.autograd.grad(model.loss(name, batch, g)[0], players[name])
            for parameter, gradient in zip(players[name], gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
        if step >= 150:
            late.append(nn.utils.parameters_to_vector(players["opponents"]).detach())
    nn.utils.vector_to_parameters(torch.stack(late).mean(0), players["opponents"])
    return error() / start


def test_linear_networks_learn_to_invert_each_other() -> None:
    assert inversion_error(0) < 0.1


def test_running_statistics_are_those_of_what_evaluation_gives_each_network() -> None:
    torch.manual_seed(0)
    model = BiGan(IMAGES, net="dcgan", latent=3, channels=2)
    batch = images(32)
    x, z = model.scaling(batch.x), model.noise(32, seeded())
    before = {
        "generator": model.generator.net[0](z[:, :, None, None]),  # type: ignore[index]
        "encoder": model.encoder.trunk[:3](x),  # type: ignore[index]
        "discriminator": model.discriminator.view[0].trunk[:3](x),  # type: ignore[index,union-attr]
    }
    for player in model.players():
        model.loss(player, batch, seeded())
        model.after_step(player, batch, seeded())
    for name, values in before.items():
        layer = next(m for m in getattr(model, name).modules() if isinstance(m, BatchNorm))
        torch.testing.assert_close(layer.running_mean, 0.1 * values.mean((0, 2, 3)))


@pytest.mark.parametrize(("arguments", "message"), [({"net": "cnn"}, "net"), ({"encoding": "noisy"}, "encoding")])
def test_bad_arguments_are_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((UserError, jaxtyping.TypeCheckError), match=message):
        BiGan(IMAGES, **arguments)  # type: ignore[arg-type]
