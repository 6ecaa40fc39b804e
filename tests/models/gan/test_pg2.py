"""PG2: the masked losses by hand, a second stage that starts as the first one ends, and poses that are not copied."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.pg2 import Pg2
from dgmbench.nn.poses import located, pose_mask

from .pairs import PAIRS, assert_better_than_the_source_and_than_black, pairs


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = PAIRS, **arguments: object) -> Pg2:
    torch.manual_seed(0)
    settings = {"channels": 3, "halvings": 1, "bottleneck": 4, "patch_channels": 3, "layers": 1, "radius": 1.5}
    return Pg2(spec, **(settings | arguments))  # type: ignore[arg-type]


def taken_apart(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Target and source scaled, the target's joints, and 1 + the mask."""
    assert batch.given is not None
    x, source, target = 2.0 * batch.x - 1, 2 * batch.given[:, :1] - 1, batch.given[:, 4:]
    return x, source, target, 1 + pose_mask(located(target), ((0, 1), (0, 2)), (16, 16), 1.5)


def test_the_masked_loss_of_the_first_stage_by_hand() -> None:
    """Pixels near a bone of the target count twice; the source's pose plays no part."""
    model, batch = made(), pairs(5)
    x, source, target, weight = taken_apart(batch)
    coarse = model.poser(torch.cat([source, target], 1)).detach()
    total = sum(
        float(weight[b, 0, i, j] * (coarse[b, 0, i, j] - x[b, 0, i, j]).abs())
        for b in range(5)
        for i in range(16)
        for j in range(16)
    )
    loss, _ = model.loss("poser", batch, seeded())
    assert float(loss.detach()) == pytest.approx(total / (5 * 256), rel=1e-5)
    assert set(weight.unique().tolist()) == {1.0, 2.0}
    assert float((weight == 2).float().mean()) < 0.3
    other = batch.given.clone()
    other[:, 1:4] = 0
    assert torch.equal(model.loss("poser", batch._replace(given=other), seeded())[0], loss)


def test_the_second_stage_starts_as_the_identity_on_the_first() -> None:
    model, batch = made(), pairs(5)
    posed = model.poses(batch.given)
    assert torch.equal(model.transferred(posed), model.posed(posed))
    model.loss("refiner", batch, seeded())[0].backward()
    assert model.refiner.up.last.weight.grad.abs().max() > 0  # and leaves it
    assert all(p.grad is None for p in model.poser.parameters())  # which trains no longer
    assert [stage.players for stage in model.stages()] == [("poser",), ("discriminator", "refiner")]
    assert [stage.players for stage in made(coarse=1.0).stages()] == [("poser",)]


def test_the_second_stage_by_hand() -> None:
    model, batch = made(l1_weight=3.0), pairs(5)
    for p in model.refiner.up.last.parameters():
        p.data.normal_(generator=seeded())
    x, source, target, weight = taken_apart(batch)
    coarse = model.poser(torch.cat([source, target], 1))
    fine = coarse + model.refiner(torch.cat([source, coarse], 1))
    real, fake = (model.discriminator(torch.cat([source, each], 1)) for each in (x, fine))
    wanted = F.softplus(-fake).mean() + 3.0 * ((fine - x).abs() * weight).mean()
    torch.testing.assert_close(model.loss("refiner", batch, seeded())[0], wanted)
    wanted = F.softplus(-real).mean() + F.softplus(fake).mean()
    torch.testing.assert_close(model.loss("discriminator", batch, seeded())[0], wanted)


def test_held_out_numbers_and_pictures_are_those_of_the_refined_picture() -> None:
    model, batch = made(), pairs(5)
    shown = model.enhance(batch.given)
    assert 0 <= shown.min() <= shown.max() <= 1
    assert torch.equal(model.sample(5, given=batch.given), shown.round().to(torch.uint8))
    found = model.held_out(batch)
    assert list(found) == list(model.objectives())
    ours = (shown - batch.x.float()).abs().mean((1, 2, 3))
    plain = (batch.given[:, :1] - batch.x.float()).abs().mean((1, 2, 3))
    torch.testing.assert_close(found["target_error"], ours)
    torch.testing.assert_close(found["copy_error"], plain)
    torch.testing.assert_close(found["target_error_over_copy"], ours - plain)
    with pytest.raises(UserError, match="3 pictures need as many conditions, and 5 are given"):
        model.sample(3, given=batch.given)
    with pytest.raises(UserError, match="name it, given="):
        model.sample(3)


def test_the_target_pose_is_nearer_than_the_source_and_nearer_than_nothing() -> None:
    """On pictures that it has not seen, beyond four standard errors of the paired differences."""
    model, g = made(channels=16, bottleneck=16, coarse=1.0), seeded()
    train, held = pairs(800), pairs(200, split="test")
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(320):
        rows = torch.randint(len(train.x), (8,), generator=g)
        optimiser.zero_grad()
        model.loss("poser", Batch(train.x[rows], given=train.given[rows]), g)[0].backward()
        optimiser.step()
    assert_better_than_the_source_and_than_black(model, held)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        (replace(PAIRS, given=None), {}, "data=shapes_poses"),
        (PAIRS, {"coarse": 0.0}, r"model.coarse=0.0 must be a share of the budget above 0, at most 1"),
        (PAIRS, {"halvings": 5}, "model.halvings=5 takes sides that are multiples of 32, not 16x16"),
        (PAIRS, {"radius": -1.0}, "radius"),
    ],
)
def test_bad_input_is_explained(spec: DataSpec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(spec, **arguments)
