"""PGGAN: the game with penalty and drift by hand at every side, stages that grow and fade in, samples of full size."""

import copy

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.pggan import PgGan
from dgmbench.nn.adversarial_growing import doubled, halved

from .alphabet import seeded

SPEC = DataSpec((1, 16, 16), "discrete", levels=256)
X = torch.randint(256, (6, 1, 16, 16), generator=seeded()).to(torch.uint8)


def made(spec: DataSpec = SPEC, **arguments: object) -> PgGan:
    torch.manual_seed(0)
    return PgGan(spec, **({"latent": 3, "channels": 4, "capacity": 32} | arguments))  # type: ignore[arg-type]


def at(stage: int, share: float, **arguments: object) -> PgGan:
    model = made(**arguments)
    model.enter_stage(model.stages()[stage], seeded())
    model.advance(model.stages()[stage], share)
    return model


def scaled(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def test_stages_grow_through_the_sides_and_fade_in_half_of_each() -> None:
    model = made()
    assert [(s.name, s.share) for s in model.stages()] == [("side_4", 0.5), ("side_8", 1.0), ("side_16", 1.0)]
    assert [s.share for s in made(pace=0.5).stages()] == [0.5, 0.5, 0.25]
    assert [s.name for s in made(start=8).stages()] == ["side_8", "side_16"]
    assert (int(model.level), float(model.alpha)) == (2, 1.0), "full-grown where no training has begun"
    for stage, level in zip(model.stages(), range(3), strict=True):
        model.enter_stage(stage, seeded())
        alphas = []
        for share in (0.0, 0.25, 0.5, 1.0):
            model.advance(stage, share)
            alphas.append(float(model.alpha))
        assert int(model.level) == level
        assert alphas == ([0.0, 0.5, 1.0, 1.0] if level else [1.0] * 4)


@pytest.mark.parametrize(("stage", "share"), [(0, 0.2), (1, 0.15), (2, 0.4), (2, 1.0)])
def test_the_game_by_hand_at_every_side(stage: int, share: float) -> None:
    model = at(stage, share, drift=0.3, penalty_weight=7.0)
    alpha = min(1.0, share / 0.5) if stage else 1.0
    data = scaled(X)
    for _ in range(2 - stage):
        data = data.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    data = (1 - alpha) * doubled(halved(data)) + alpha * data
    g = seeded()
    samples = model.generator(torch.randn(6, 3, generator=g), stage, alpha)

    def judge(x: Tensor) -> Tensor:
        return model.discriminator(x, stage, alpha)

    real, fake = judge(data), judge(samples)
    mix = torch.rand(6, 1, 1, 1, generator=g)
    point = (mix * data + (1 - mix) * samples).detach().requires_grad_()
    (slope,) = torch.autograd.grad(judge(point).sum(), point)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    wanted = fake.mean() - real.mean() + 7 * penalty + 0.3 * real.square().mean()
    torch.testing.assert_close(model.loss("discriminator", Batch(X), seeded())[0], wanted)
    torch.testing.assert_close(model.loss("generator", Batch(X), seeded())[0], -fake.mean())


def test_samples_have_the_size_of_the_data_at_every_side() -> None:
    for stage, side in enumerate((4, 8, 16)):
        model = at(stage, 1.0)
        small = model.images(torch.randn(5, 3, generator=seeded()))
        assert small.shape == (5, 1, side, side)
        large = small.repeat_interleave(16 // side, 2).repeat_interleave(16 // side, 3)
        assert torch.equal(model.sample(5, generator=seeded()), model.scaling.inverse(large))
        noise = torch.randn(5, 3, generator=seeded())
        torch.testing.assert_close(model.generate(noise), (large.clamp(-1, 1) + 1) * 127.5)


def test_only_what_has_grown_learns_and_loss_changes_no_state() -> None:
    model = at(1, 0.2)
    before = copy.deepcopy(model.state_dict())
    for player in model.players():
        model.zero_grad()
        model.loss(player, Batch(X), seeded())[0].backward()
        learns = {name.split(".", 1)[1] for name, p in model.named_parameters() if p.grad is not None}
        assert {"to_images.0.weight", "to_images.1.weight"} <= learns or player == "discriminator"
        assert {"from_images.0.weight", "from_images.1.weight"} <= learns
        assert not {"to_images.2.weight", "from_images.2.weight", "blocks.1.first.weight"} & learns
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_first_side_learns_the_mean_picture_and_how_bright_pictures_differ() -> None:
    """Flat pictures, half of them dark and half bright: samples are both, and little between."""
    model, g = at(0, 0.0, spec=DataSpec((1, 8, 8), "real"), channels=8), seeded()
    optimisers = {
        name: torch.optim.Adam(own, lr=2e-2, betas=(0.0, 0.99))  # type: ignore[arg-type]
        for name, own in model.players().items()
    }
    for _ in range(150):
        bright = torch.randint(2, (16, 1, 1, 1), generator=g).float().expand(-1, 1, 8, 8) * 2 - 1
        for name, optimiser in optimisers.items():
            optimiser.zero_grad()
            model.loss(name, Batch(bright), g)[0].backward()
            optimiser.step()
    x = model.sample(200, generator=g)
    level = x.mean((1, 2, 3))
    assert 0.25 < (level > 0).float().mean() < 0.75
    assert (level.abs() - 1).abs().mean() < 0.45
    assert (x - level[:, None, None, None]).abs().mean() < 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec": DataSpec((1, 24, 24), "binary")}, "4 or 7 times a power of two"),
        ({"start": 32}, r"model.start=32 must be one of \[4, 8, 16\]"),
        ({"pace": 0.0}, "pace=0.0 must be more than 0"),
        ({"group": 0}, "group=0"),
        ({"latent": 0}, "latent=0"),
        ({"penalty_weight": -1.0}, "penalty_weight"),
        ({"loss": "relativistic_average"}, "looks at data too"),
    ],
)
def test_bad_input_is_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**arguments)  # type: ignore[arg-type]


def test_labels_are_refused() -> None:
    with pytest.raises(UserError, match="no classes"):
        made().sample(2, torch.zeros(2, dtype=torch.long))
