"""SeGAN: losses by hand, visible pixels that stay, and a hidden part that is found better than by the hull."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from dgmbench.data.digits_canvas import DigitsCanvasOccluded
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.se_gan import SeGan
from dgmbench.nn.regions import convex_hull

SPEC = DataSpec((3, 8, 8), "discrete", levels=5, given=DataSpec((3, 8, 8), "discrete", levels=5))


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = SPEC, **arguments: object) -> SeGan:
    torch.manual_seed(1)
    settings = {"channels": 2, "halvings": 1, "patch_channels": 2, "layers": 1} | arguments
    return SeGan(spec, **settings)  # type: ignore[arg-type]


def batch(n: int = 4) -> Batch:
    """Random objects of which a column is hidden."""
    g = seeded(3)
    mask = torch.rand(n, 8, 8, generator=g) < 0.5
    alone = torch.randint(1, 5, (n, 8, 8), generator=g) * mask
    front = torch.zeros(8, 8, dtype=torch.bool)
    front[:, 3:5] = True
    picture = torch.where(front, torch.randint(1, 5, (n, 8, 8), generator=g), alone)
    x = torch.stack([alone, 4 * mask, 4 * (mask & front)], 1)
    given = torch.stack([picture, 4 * (mask & ~front), torch.zeros_like(alone)], 1)
    return Batch(x.to(torch.uint8), None, torch.arange(n), given.to(torch.uint8))


def test_the_segmentor_minimises_weighted_cross_entropy() -> None:
    model, one = made(hidden_weight=5.0), batch()
    logits = model.segmentor(2 * one.given[:, :2] / 4 - 1)[:, 0]
    each = F.binary_cross_entropy_with_logits(logits, one.x[:, 1] / 4, reduction="none")
    weight = torch.where(one.x[:, 2] > 0, 5.0, 1.0)
    torch.testing.assert_close(model.loss("segmentor", one, seeded())[0], (weight * each).sum() / weight.sum())


def test_generator_and_discriminator_by_hand() -> None:
    model, one = made(pixel_weight=7.0), batch()
    x, given = one.x / 4, one.given / 4
    picture, visible = given[:, 0], given[:, 1]
    m = (((model.segmentor(2 * given[:, :2] - 1)[:, 0] > 0) | (x[:, 2] > 0)) & (visible == 0)).float()
    seen = torch.stack([picture * visible, visible, m], 1)
    painted = picture * visible + model.generator(2 * seen - 1)[:, 0].sigmoid() * m
    fake = model.discriminator(torch.stack([picture, visible, painted], 1))
    real = model.discriminator(torch.stack([picture, visible, x[:, 0]], 1))
    wanted = F.softplus(-fake).mean() + 7.0 * (painted - x[:, 0]).abs().mean()
    torch.testing.assert_close(model.loss("generator", one, seeded())[0], wanted)
    wanted = F.softplus(-real).mean() + F.softplus(fake).mean()
    torch.testing.assert_close(model.loss("discriminator", one, seeded())[0], wanted)


def test_visible_pixels_are_kept_and_only_the_hidden_part_is_painted() -> None:
    model, one = made(), batch(16)
    with torch.no_grad():
        model.segmentor.up.last.bias -= model.segmentor(2 * one.given[:, :2] / 4 - 1).median()
    found = model.enhance(one.given)
    alone, mask, hidden = found[:, 0], found[:, 1] > 0, found[:, 2] > 0
    visible = one.given[:, 1] > 0
    assert torch.equal(alone[visible], one.given[:, 0][visible].float())
    assert 0 < int(hidden.sum()) < hidden.numel()
    assert not (hidden & visible).any()
    assert torch.equal(mask, hidden | visible)
    assert (alone[~mask] == 0).all()
    assert len(alone[hidden].unique()) > 10
    assert (alone[hidden] < 4).all()  # paint alone, and nothing of what lies in front


def test_overlaps_and_errors_by_hand() -> None:
    model, one = made(), batch(6)
    values = model.held_out(one)
    found, true, visible = model.enhance(one.given), one.x[:, 2] > 0, one.given[:, 1] > 0
    hidden, hull = found[:, 2] > 0, convex_hull(visible) & ~visible
    for k in range(6):
        union = hidden[k] | true[k]
        assert values["hidden_iou"][k] == pytest.approx(float((hidden[k] & true[k]).sum() / union.sum()))
        of_hull = float((hull[k] & true[k]).sum() / (hull[k] | true[k]).sum())
        assert values["hull_iou"][k] == pytest.approx(of_hull)
        assert values["hidden_iou_over_hull"][k] == pytest.approx(float(values["hidden_iou"][k]) - of_hull)
        apart = (found[k, 0] - one.x[k, 0]).abs()[union].mean() / 4
        assert values["hidden_error"][k] == pytest.approx(float(apart), abs=1e-6)
        nobody = (one.given[k, 0] * visible[k] - one.x[k, 0].float()).abs()[union].mean() / 4
        assert values["black_error"][k] == pytest.approx(float(nobody), abs=1e-6)
    assert set(values) == set(model.objectives())


def test_the_hidden_part_is_found_better_than_by_the_hull(tmp_path: Path) -> None:
    data = DigitsCanvasOccluded(side=20, object_side=16, tile=8).read(tmp_path)
    parts = {name: (torch.tensor(part.x), torch.tensor(part.given)) for name, part in data.parts.items()}
    model, g = made(data.spec, channels=4, halvings=2), seeded()
    optimiser = torch.optim.Adam(model.segmentor.parameters(), lr=1e-2)
    x, given = parts["train"]
    for _ in range(60):
        rows = torch.randint(len(x), (16,), generator=g)
        loss, _ = model.loss("segmentor", Batch(x[rows], None, None, given[rows]), g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, given = parts["test"]
    better = model.held_out(Batch(x[:150], None, None, given[:150]))["hidden_iou_over_hull"]
    assert better.mean() > 2 * better.std() / 150**0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(DataSpec((3, 8, 8), "discrete", levels=5)), "digits_canvas_occluded"),
        (
            lambda: made(DataSpec((1, 8, 8), "discrete", levels=5, given=DataSpec((1, 8, 8), "binary"))),
            "three channels",
        ),
        (lambda: made(halvings=4), "halvings=4"),
        (lambda: made(segment=1.0), r"model\.segment=1\.0"),
        (lambda: made(hidden_weight=0.0), "hidden_weight"),
        (lambda: made(pixel_weight=-1.0), "pixel_weight"),
    ],
)
def test_bad_input_is_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_batch_without_what_is_given_is_refused() -> None:
    with pytest.raises(UserError, match="given"):
        made().loss("segmentor", batch()._replace(given=None), seeded())
