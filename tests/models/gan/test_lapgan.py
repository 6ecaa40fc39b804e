"""LAPGAN: games that share nothing, conditions of data in training and of samples in sampling, exact pyramids."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Stage
from dgmbench.models.gan.lapgan import LapGan
from dgmbench.nn.laplacian_pyramid import doubled, halved, pyramid

from .alphabet import seeded

SPEC = DataSpec((1, 8, 8), "discrete", levels=256)
X = torch.randint(256, (6, 1, 8, 8), generator=seeded()).to(torch.uint8)


def made(spec: DataSpec = SPEC, **arguments: object) -> LapGan:
    torch.manual_seed(0)
    return LapGan(spec, **({"levels": 2, "latent": 3, "hidden_sizes": (8,), "channels": 2} | arguments))  # type: ignore[arg-type]


def scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


class Truth(nn.Module):
    """In a generator's place: gives what it was made with, and keeps what it was asked about."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value
        self.asked: tuple[Tensor, ...] = ()

    def forward(self, *asked: Tensor) -> Tensor:
        self.asked = asked
        return self.value


def with_truth(model: LapGan, x: Tensor) -> LapGan:
    smallest, residuals = pyramid(scaled(x), model.levels)
    model.generators = nn.ModuleList([Truth(value) for value in (smallest, *residuals)])
    model.pictures(torch.zeros(len(x), model.noise_dim))
    return model


def test_with_the_true_residuals_in_the_generators_places_a_sample_is_the_image() -> None:
    model = with_truth(made(), X)
    model.register_parameter("anchor", nn.Parameter(torch.zeros(())))
    assert torch.equal(model.sample(6), X)
    torch.testing.assert_close(model.generate(torch.zeros(6, model.noise_dim)), X.float(), atol=1e-3, rtol=0)
    smaller = halved(scaled(X))
    for level, below in ((1, halved(smaller)), (2, smaller)):
        torch.testing.assert_close(model.generators[level].asked[1], doubled(below), atol=1e-5, rtol=0)


def test_conditions_of_samples_come_from_the_samples_below_each_with_its_own_noise() -> None:
    model, noise = made(), torch.randn(4, 3 + 16 + 64, generator=seeded())
    first = model.generators[0](noise[:, :3])
    condition = doubled(first)
    second = condition + model.generators[1](noise[:, 3:19].view(4, 1, 4, 4), condition)
    condition = doubled(second)
    third = condition + model.generators[2](noise[:, 19:].view(4, 1, 8, 8), condition)
    for ours, wanted in zip(model.pictures(noise), (first, second, third), strict=True):
        torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(model.generate(noise), (third + 1) * 127.5)
    sizes = model.growth(4, generator=seeded(1))
    assert sizes.shape == (4, 3, 1, 8, 8)
    assert torch.equal(sizes[:, -1], model.sample(4, generator=seeded(1)))
    drawn = model.scaling.inverse(model.pictures(torch.randn(4, 83, generator=seeded(1)))[0])
    assert torch.equal(sizes[:, 0], F.interpolate(drawn.float(), (8, 8)).to(torch.uint8))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_both_losses_of_every_game_by_hand_with_conditions_of_data(level: int) -> None:
    """D sees residual + condition, of data the picture at this size itself."""
    model, side = made(), (2, 4, 8)[level]
    picture = scaled(X)
    for _ in range(2 - level):
        picture = halved(picture)
    z = torch.randn(6, (3, 16, 64)[level], generator=seeded())
    if level:
        condition = doubled(halved(picture))
        fakes = condition + model.generators[level](z.view(6, 1, side, side), condition)
    else:
        fakes = model.generators[0](z)
    real, fake = (model.discriminators[level](x)[:, 0] for x in (picture, fakes))
    loss, _ = model.loss(f"discriminator_{side}", Batch(X), seeded())
    torch.testing.assert_close(loss, F.softplus(-real).mean() + F.softplus(fake).mean())
    torch.testing.assert_close(model.loss(f"generator_{side}", Batch(X), seeded())[0], F.softplus(-fake).mean())


def test_the_games_share_no_parameter_and_no_other_network_enters_a_loss() -> None:
    model = made()
    every = [id(p) for own in model.players().values() for p in own]
    assert len(every) == len(set(every)) == len(list(model.parameters()))
    assert list(model.players()) == [f"{role}_{side}" for side in (2, 4, 8) for role in ("discriminator", "generator")]
    for player in model.players():
        before, _ = model.loss(player, Batch(X), seeded())
        other = copy.deepcopy(model)
        for name, own in other.players().items():
            if not name.endswith(player[-2:]):
                for parameter in own:
                    parameter.data.normal_(generator=seeded())
        assert torch.equal(other.loss(player, Batch(X), seeded())[0], before)


def test_loss_changes_no_state() -> None:
    model = made()
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        model.loss(player, Batch(X), seeded())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_what_a_generator_learns_is_the_residual_that_belongs_to_its_condition() -> None:
    """Pictures whose fine pixels follow from the coarse ones: +-1 checkers on bright, flat on dark ground.

    Only the game of the largest size is played; its samples, given conditions of new data, have the right contrast.
    """
    g, spec = seeded(), DataSpec((1, 4, 4), "real")
    checkers = (-1.0) ** (torch.arange(4)[:, None] + torch.arange(4))

    def data(n: int) -> tuple[Tensor, Tensor]:
        bright = torch.randint(2, (n, 1, 1, 1), generator=g).float()
        return 2 * bright - 1 + bright * checkers, bright.flatten() > 0

    model = made(spec, levels=1, channels=8)
    players = ["discriminator_4", "generator_4"]
    optimisers = {name: torch.optim.Adam(model.players()[name], lr=3e-3, betas=(0.5, 0.999)) for name in players}
    assert model.turn(0, Stage("train", tuple(model.players()))) == tuple(model.players())
    for _ in range(150):
        batch = Batch(data(50)[0])
        for name, optimiser in optimisers.items():
            optimiser.zero_grad()
            model.loss(name, batch, g)[0].backward()
            optimiser.step()
    held, bright = data(100)
    _, condition = model.real(held, 1)
    with torch.no_grad():
        contrast = (model.made(1, torch.randn(100, 16, generator=g), condition) * checkers).mean((1, 2, 3))
    assert (contrast[bright] - 1).abs().mean() < 0.3
    assert contrast[~bright].abs().mean() < 0.3


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((1, 12, 12), "binary"), {"levels": 3}, "model.levels=3 takes images whose sides can be halved 3"),
        (DataSpec((64,), "real"), {}, "takes images"),
        (SPEC, {"levels": 0}, "model.levels=0 must be at least 1"),
        (SPEC, {"channels": 0}, "channels=0"),
        (SPEC, {"loss": "relativistic_average"}, "looks at data too"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)


def test_labels_are_refused() -> None:
    with pytest.raises(UserError, match="no classes"):
        made().sample(2, torch.zeros(2, dtype=torch.long))
