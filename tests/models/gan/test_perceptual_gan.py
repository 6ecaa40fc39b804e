"""Perceptual GAN: losses by hand, a plain detector without residual, and small objects that the residual helps."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from dgmbench.data.digits_canvas import DigitsCanvasSizes
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.gan.perceptual_gan import PerceptualGan
from dgmbench.nn.regions import cropped, decoded, encoded, iou, jittered, objects_of

from .objects import KNOWN, LARGE, ONE, SMALL, batch

FACTORS = (("digit", 3), ("size", 8), ("row", 9), ("column", 9))
SPEC = DataSpec((1, 12, 12), "discrete", levels=256, factors=FACTORS)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = SPEC, *, residual: bool = True, **arguments: object) -> PerceptualGan:
    torch.manual_seed(0)
    settings = {"channels": 2, "pool": 2, "small": 4, "blocks": 1, "hidden": 8} | arguments
    model = PerceptualGan(spec, **settings)  # type: ignore[arg-type]
    if residual and model.share < 1:
        torch.nn.init.normal_(model.generator.last.weight)
    return model


STEPS = 240
DIGIT, _, BOXES = objects_of(ONE, SPEC)


def regions(model: PerceptualGan, seed: int) -> tuple[torch.Tensor, ...]:
    """Proposals, and each one's deep features and residual."""
    proposals = jittered(BOXES, model.jitter, seeded(seed))
    shallow = F.relu(model.fine(ONE.x / 127.5 - 1))
    fine, deep = cropped(shallow, proposals, 4), cropped(model.deep(shallow), proposals / 2, 2)
    return proposals, deep, model.generator(fine)


def tasks(said: object, rows: list[int], proposals: torch.Tensor) -> torch.Tensor:
    """Class and box loss of what is said of these rows."""
    apart = said.box - encoded(BOXES[rows], proposals[rows])  # type: ignore[attr-defined]
    smooth = F.smooth_l1_loss(apart, torch.zeros_like(apart), reduction="sum") / len(rows)
    return F.cross_entropy(said.classes, DIGIT[rows]) + smooth  # type: ignore[attr-defined]


def test_losses_by_hand() -> None:
    model = made(adversarial_weight=0.3)
    proposals, deep, residual = regions(model, 5)
    wanted = tasks(model.say(deep[KNOWN]), KNOWN, proposals)
    torch.testing.assert_close(model.loss("detector", ONE, seeded(5))[0], wanted)
    completed = (deep + residual)[SMALL]
    fake, real = model.discriminator(completed), model.discriminator(deep[LARGE])
    wanted = 0.3 * F.softplus(-fake).mean() + tasks(model.say(completed), SMALL, proposals)
    torch.testing.assert_close(model.loss("generator", ONE, seeded(5))[0], wanted)
    wanted = F.softplus(-real).mean() + F.softplus(fake).mean()
    torch.testing.assert_close(model.loss("discriminator", ONE, seeded(5))[0], wanted)


def test_no_residual_is_the_plain_detector() -> None:
    model, alone = made(residual=False), made(detector=1.0)
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if k in alone.state_dict()})
    for each in (model, alone):
        found = each.held_out(ONE, generator=seeded(2))
        assert torch.equal(found["small_accuracy"][SMALL], found["small_accuracy_plain"][SMALL])
    x, proposals = ONE.x / 127.5 - 1, jittered(BOXES, 0.1, seeded())
    for ours, plain in (model.said_of(x, proposals), alone.said_of(x, proposals)):
        assert torch.equal(ours.classes, plain.classes)
        assert torch.equal(ours.box, plain.box)
    assert torch.equal(model.said_of(x, proposals)[0].classes, alone.said_of(x, proposals)[0].classes)
    ours, plain = made().said_of(x, proposals)
    assert (ours.classes - plain.classes).abs().max() > 1e-3
    assert set(alone.players()) == {"detector"}
    assert [stage.players for stage in alone.stages()] == [("detector",)]


def test_what_is_measured_by_hand() -> None:
    model = made()
    found = model.held_out(ONE, generator=seeded(5))
    proposals, deep, residual = regions(model, 5)
    ours, plain = model.say(deep + residual), model.say(deep)
    for k in range(6):
        if k not in SMALL:
            assert all(bool(found[name][k].isnan()) for name in found if name != "large_accuracy")
            continue
        right = [float(said.classes[k].argmax() == DIGIT[k]) for said in (ours, plain)]
        assert [float(found[f"small_accuracy{which}"][k]) for which in ("", "_plain")] == right
        assert float(found["small_accuracy_over_plain"][k]) == right[0] - right[1]
        for name, said in (("small_iou", ours), ("small_iou_plain", plain)):
            box = decoded(said.box[k : k + 1], proposals[k : k + 1])
            torch.testing.assert_close(found[name][k], iou(box, BOXES[k : k + 1])[0])
    assert found["large_accuracy"].isnan().tolist() == [k not in LARGE for k in range(6)]
    assert found["large_accuracy"][LARGE].tolist() == (plain.classes.argmax(1) == DIGIT)[LARGE].float().tolist()
    assert set(found) == set(model.objectives())
    panels = model.panels(ONE, generator=seeded(5))
    assert panels.shape == (6, 4, 1, 12, 12)
    torch.testing.assert_close(panels[:, 0], ONE.x.float())


def test_small_objects_are_recognised_better_than_by_the_plain_detector(tmp_path: Path) -> None:
    data = DigitsCanvasSizes(side=20, sizes=[5, 12], noise=30).read(tmp_path)
    parts = {name: (torch.tensor(part.x), torch.tensor(part.y)) for name, part in data.parts.items()}
    model, g = (
        made(data.spec, residual=False, channels=4, pool=3, hidden=32, small=8, adversarial_weight=0.02),
        seeded(),
    )
    optimisers = {name: torch.optim.Adam(own, lr=4e-3) for name, own in model.players().items()}
    x, y = parts["train"]
    held = Batch(*(torch.cat([parts[name][k] for name in ("valid", "test")]) for k in range(2)))
    for update in range(STEPS):
        rows = torch.randint(len(x), (50,), generator=g)
        for name in ("detector",) if update < STEPS // 2 else ("discriminator", "generator"):
            loss = model.loss(name, Batch(x[rows], y[rows]), g)[0]
            own = model.players()[name]
            for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
                parameter.grad = gradient
            optimisers[name].step()
        if update == STEPS // 2:
            before = copy.deepcopy(model.heads.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.heads.state_dict().items())
    better = model.held_out(held, generator=seeded())["small_accuracy_over_plain"]
    better = better[~better.isnan()]
    assert better.mean() > 2 * better.std() / len(better) ** 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(DataSpec((1, 12, 12), "discrete", levels=256, num_classes=10)), "digits_canvas_sizes"),
        (lambda: made(detector=0.0), r"model\.detector=0\.0"),
        (lambda: made(pool=0), "pool"),
        (lambda: made(jitter=-0.1), "jitter"),
        (lambda: made(adversarial_weight=-1.0), "adversarial_weight"),
        (lambda: made().loss("detector", Batch(ONE.x), seeded()), "this one has none"),
        (lambda: made().loss("generator", batch([3, 3]), seeded()), "batch_size"),
        (lambda: made().loss("discriminator", batch([7, 7]), seeded()), "batch_size"),
    ],
)
def test_bad_input_is_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
