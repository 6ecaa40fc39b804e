"""Deformable GAN: losses by hand, plain skips at equal poses, parts that arrive, and poses that are not copied."""

from dataclasses import replace

import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.deformable_gan import DeformableGan
from dgmbench.nn.poses import nearest_neighbour_loss

from .pairs import PAIRS, assert_better_than_the_source_and_than_black, pairs


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = PAIRS, **arguments: object) -> DeformableGan:
    torch.manual_seed(0)
    settings = {"channels": 3, "halvings": 2, "patch_channels": 3, "layers": 1, "width": 0.7, "window": 3}
    return DeformableGan(spec, **(settings | arguments))  # type: ignore[arg-type]


def test_losses_by_hand() -> None:
    """D sees source, picture and both poses; G has the nearest-neighbour loss beside its game."""
    model, batch = made(nn_weight=0.3), pairs(4)
    x, source, poses = 2.0 * batch.x - 1, 2 * batch.given[:, :1] - 1, batch.given[:, 1:]
    fake = model.transferred(model.poses(batch.given))
    verdicts = [model.discriminator(torch.cat([source, each, poses], 1)) for each in (x, fake)]
    wanted = F.softplus(-verdicts[0]).mean() + F.softplus(verdicts[1]).mean()
    torch.testing.assert_close(model.loss("discriminator", batch, seeded())[0], wanted)
    wanted = F.softplus(-verdicts[1]).mean() + 0.3 * nearest_neighbour_loss(fake, x, 3).mean()
    torch.testing.assert_close(model.loss("generator", batch, seeded())[0], wanted)


def test_equal_poses_give_the_plain_skips_of_a_u_net() -> None:
    model, batch = made(), pairs(6)
    posed = model.poses(torch.cat([batch.given[:, :4], batch.given[:, 1:4]], 1))
    net = model.generator
    kept = [each.relu() for each in net["source"](torch.cat([posed.picture, posed.source], 1))]
    assert [tuple(each.shape[1:]) for each in kept] == [(3, 16, 16), (6, 8, 8), (12, 4, 4)]
    for ours, plain in zip(model.skips(kept, posed), kept, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    plain = net["decoder"]([torch.cat(both, 1) for both in zip(kept, net["target"](posed.target), strict=True)])
    torch.testing.assert_close(model.transferred(posed), plain, atol=1e-4, rtol=1e-4)


def test_skips_carry_the_source_to_the_target() -> None:
    """The source's own pixels, carried by the skips, are at most a fifth as far from the target as where they were."""
    model, batch = made(), pairs(100)
    source, target = batch.given[:, :1], batch.x.float()
    (carried,) = model.skips([source], model.poses(batch.given))
    assert (carried - target).abs().mean() < (source - target).abs().mean() / 5


def test_the_target_pose_is_nearer_than_the_source_and_nearer_than_nothing() -> None:
    """On pictures that it has not seen, beyond four standard errors of the paired differences."""
    model, g = made(channels=6, halvings=0, window=1, nn_weight=0.1), seeded()
    train, held = pairs(800), pairs(200, split="test")
    rates = {"generator": 5e-3, "discriminator": 3e-4}
    optimisers = {
        player: torch.optim.Adam(own, lr=rates[player], betas=(0.5, 0.999)) for player, own in model.players().items()
    }
    for _ in range(120):
        rows = torch.randint(len(train.x), (16,), generator=g)
        for player, optimiser in optimisers.items():
            optimiser.zero_grad()
            model.loss(player, Batch(train.x[rows], given=train.given[rows]), g)[0].backward()
            optimiser.step()
    assert_better_than_the_source_and_than_black(model, held)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (replace(PAIRS, given=None), {}, "data=shapes_poses"),
        (PAIRS, {"window": 4}, "model.window=4 must be odd"),
        (PAIRS, {"halvings": 5}, "model.halvings=5 takes sides that are multiples of 32, not 16x16"),
        (PAIRS, {"width": 0.0}, "width"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)
