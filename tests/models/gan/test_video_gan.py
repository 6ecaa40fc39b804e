"""VideoGAN: the streams by their mask, losses by hand, and videos that move as much as the data do."""

import copy
from typing import Any

import pytest
import torch
from numpy.random import RandomState
from torch import Tensor

from dgmbench.data.bouncing_balls import draw_balls, simulate
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.tasks.motion import frame_change
from dgmbench.models.gan.video_gan import VideoGan
from dgmbench.nn.batchnorm import BatchNorm

from .alphabet import seeded

VIDEOS = DataSpec((7, 30), "binary", frame=(5, 6))  # no side is a power of two


def made(spec: DataSpec = VIDEOS, **arguments: Any) -> VideoGan:
    torch.manual_seed(0)
    return VideoGan(spec, **{"latent": 3, "channels": 4, "doublings": 2, **arguments})


def batch(n: int = 4) -> Batch:
    return Batch(torch.randint(2, (n, 7, 30), generator=seeded(5)).to(torch.uint8))


def with_mask(value: float) -> VideoGan:
    """A model whose mask has this logit everywhere."""
    model = made()
    last = model.generator.moving.convs[-1]
    with torch.no_grad():
        last.weight[:, 1] = 0
        last.bias[:] = torch.tensor([0.3, value])
    return model.eval()


def test_a_mask_of_0_gives_a_still_video_and_one_of_1_the_foreground() -> None:
    z = torch.randn(6, 3, generator=seeded())
    still = with_mask(-200.0)  # so large that the mask is 0, and at 200 it is 1, in floating point
    x = still.generate(z).unflatten(2, (5, 6))
    back = still.scaling.unrounded(torch.tanh(still.generator.still(z)))
    assert torch.equal(x, back.expand(-1, 7, -1, -1))
    assert frame_change(still.sample(6, generator=seeded()), VIDEOS).max() == 0
    assert (x[0] - x[1]).abs().max() > 1e-4  # another z, another background
    moving = with_mask(200.0)
    front = moving.scaling.unrounded(torch.tanh(moving.generator.moving(z)[:, 0]))
    assert torch.equal(moving.generate(z), front.flatten(2))
    assert front.diff(dim=1).abs().max() > 1e-4
    half = with_mask(0.0)
    torch.testing.assert_close(half.generate(z), (moving.generate(z) + still.generate(z)) / 2)


def test_losses_by_hand() -> None:
    model, one = made(), batch()
    z = torch.randn(4, 3, generator=seeded())
    data = (2.0 * one.x - 1).view(4, 7, 5, 6)
    moving = model.generator.moving(z)
    mask = 1 / (1 + torch.exp(-moving[:, 1]))
    videos = mask * torch.tanh(moving[:, 0]) + (1 - mask) * torch.tanh(model.generator.still(z))
    fake, real = model.discriminator(videos), model.discriminator(data)
    torch.testing.assert_close(
        model.loss("generator", one, seeded())[0], -torch.sigmoid(fake).log().mean() + 0.1 * mask.mean()
    )
    wanted = -torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(model.loss("discriminator", one, seeded())[0], wanted)


def test_r1_by_finite_differences_and_without_batch_norm() -> None:
    model, one, step = made(slope_weight=6.0), batch(), 1e-5
    assert not any(isinstance(module, BatchNorm) for module in model.discriminator.modules())
    exact, data = copy.deepcopy(model.discriminator).double(), (2.0 * one.x.double() - 1).view(4, 7, 5, 6)
    nudges = step * torch.eye(7 * 5 * 6, dtype=torch.float64).view(-1, 7, 5, 6)
    with torch.no_grad():
        slopes = torch.stack([(exact(x + nudges) - exact(x - nudges)) / (2 * step) for x in data])
    found, logs = model.loss("discriminator", one, seeded())
    torch.testing.assert_close(found - logs["game"], 3 * slopes.square().sum(1).mean().float(), rtol=1e-3, atol=0)
    assert found > logs["game"]


def test_one_stream_is_the_foreground_alone() -> None:
    model, z = made(streams=1).eval(), torch.randn(2, 3, generator=seeded())
    front = model.scaling.unrounded(torch.tanh(model.generator.moving(z)[:, 0]))
    torch.testing.assert_close(model.generate(z), front.flatten(2))
    assert not hasattr(model.generator, "still")
    assert "mask" not in model.loss("generator", batch(), seeded())[1]


def test_every_pixel_of_a_video_depends_on_the_noise_and_is_seen_by_the_discriminator() -> None:
    model = made()
    z = torch.randn(3, 3, generator=seeded())
    apart = model.generate(z) - model.generate(z + torch.randn(3, 3, generator=seeded(1)))
    assert (apart != 0).any(0).all()
    x = torch.randn(2, 7, 5, 6, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(model.eval().discriminator(x).sum(), x)
    assert (gradient != 0).all()


def balls(n: int, seed: int) -> Tensor:
    """Three balls in a box, 8 frames of 8 x 8."""
    places, _ = simulate(n, 3, 8, RandomState(seed))
    return torch.from_numpy(draw_balls(places, 8)).flatten(2)


def test_samples_move_as_much_as_the_data_and_are_as_bright() -> None:
    """Within a factor of two, in the mean over the last updates; noise and the untrained model do not."""
    spec = DataSpec((8, 64), "binary", frame=(8, 8))
    torch.manual_seed(1)
    model, x, g = VideoGan(spec, latent=8, channels=6, doublings=2), balls(400, 0), seeded()
    held, draws = balls(200, 1), []
    wanted = frame_change(held, spec).mean()
    untrained = frame_change(model.eval().sample(200, generator=seeded()), spec).mean()
    model.train()
    players = model.players()
    optimisers = {name: torch.optim.Adam(own, lr=4e-3, betas=(0.5, 0.999)) for name, own in players.items()}
    for update in range(1, 91):
        one = Batch(x[torch.randint(len(x), (24,), generator=g)])
        for name, optimiser in optimisers.items():
            optimiser.zero_grad()
            model.loss(name, one, g)[0].backward()
            optimiser.step()
            model.after_step(name, one, g)
        if update >= 60 and update % 10 == 0:
            draws.append(model.eval().sample(100, generator=seeded(update)))
            model.train()
    drawn = torch.cat(draws)
    assert 0.5 < frame_change(drawn, spec).mean() / wanted < 2
    assert 0.5 < drawn.float().mean() / held.float().mean() < 2
    noise = frame_change(torch.randint(2, (50, 8, 64), generator=seeded()).to(torch.uint8), spec).mean()
    assert noise / wanted > 2
    assert untrained / wanted < 0.5


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (DataSpec((1, 8, 8), "binary"), {}, "takes videos, sequences of frames, not binary 1x8x8"),
        (DataSpec((5, 64), "binary"), {}, "takes videos"),
        (DataSpec((1, 64), "binary", frame=(8, 8)), {}, "at least two frames, and these have 1"),
        (VIDEOS, {"doublings": 3}, "model.doublings=3 leaves nothing of videos of 7 frames of 5x6"),
        (VIDEOS, {"mask_weight": -1.0}, "mask_weight=-1.0"),
        (VIDEOS, {"slope_weight": -1.0}, "slope_weight=-1.0"),
        (VIDEOS, {"latent": 0}, "latent=0"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)
