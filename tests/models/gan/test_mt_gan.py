"""SOD-MTGAN: three losses by hand that reach the generator, and small objects that it helps to recognise."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from dgmbench.data.digits_canvas import DigitsCanvasSizes
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.models.gan.mt_gan import MtGan
from dgmbench.nn.batchnorm import statistics_of
from dgmbench.nn.regions import cropped, decoded, encoded, iou, jittered, objects_of
from dgmbench.nn.super_resolution import resized
from dgmbench.runs.shows import SHOWN, shown_in_training

from .objects import KNOWN, LARGE, ONE, SMALL, batch

FACTORS = (("digit", 3), ("size", 8), ("row", 9), ("column", 9))
SPEC = DataSpec((1, 12, 12), "discrete", levels=256, factors=FACTORS)


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def made(spec: DataSpec = SPEC, **arguments: object) -> MtGan:
    torch.manual_seed(0)
    settings = {"crop": 8, "scale": 2, "small": 4, "channels": 4, "blocks": 1, "hidden": 8} | arguments
    return MtGan(spec, **settings)  # type: ignore[arg-type]


def regions(model: MtGan, seed: int) -> tuple[torch.Tensor, ...]:
    """Proposals, regions of the discriminator's size, and what the generator enlarges, one by one."""
    _, _, boxes = objects_of(ONE, SPEC)
    proposals, x = jittered(boxes, model.jitter, seeded(seed)), ONE.x / 127.5 - 1
    high = torch.cat([cropped(x[k : k + 1], proposals[k : k + 1], 8) for k in range(6)])
    low = torch.cat([cropped(x[k : k + 1], proposals[k : k + 1], 4) for k in range(6)])
    low[LARGE] = resized(high[LARGE], (4, 4))
    return proposals, high, low


def tasks(said: object, rows: list[int], proposals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and box loss over these rows."""
    digit, _, boxes = objects_of(ONE, SPEC)
    classes = F.cross_entropy(said.classes[rows], digit[rows])  # type: ignore[attr-defined]
    apart = said.box[rows] - encoded(boxes[rows], proposals[rows])  # type: ignore[attr-defined]
    return classes, F.smooth_l1_loss(apart, torch.zeros_like(apart), reduction="sum") / len(rows)


def test_the_generators_losses_by_hand() -> None:
    model = made(adversarial_weight=0.3, class_weight=0.7, box_weight=1.3)
    proposals, high, low = regions(model, 5)
    fake = model.generator(low)
    output, said = model.discriminator(fake)
    classes, boxes = tasks(said, KNOWN, proposals)
    pixels = (fake[LARGE] - high[LARGE]).square().mean()
    wanted = pixels + 0.3 * F.softplus(-output[KNOWN]).mean() + 0.7 * classes + 1.3 * boxes
    torch.testing.assert_close(model.loss("generator", ONE, seeded(5))[0], wanted)


def test_the_discriminators_losses_by_hand() -> None:
    model = made()
    proposals, high, low = regions(model, 5)
    real, at_real = model.discriminator(high)
    fake, at_fake = model.discriminator(model.generator(low))
    wanted = F.softplus(-real[LARGE]).mean() + F.softplus(fake[KNOWN]).mean()
    plain = model.discriminator(resized(low, (8, 8)))[1]
    for said, rows in ((at_real, LARGE), (at_fake, KNOWN), (plain, KNOWN)):
        wanted = wanted + sum(tasks(said, rows, proposals))
    torch.testing.assert_close(model.loss("discriminator", ONE, seeded(5))[0], wanted)
    alone = made(enlarge="bicubic")
    assert set(alone.players()) == {"discriminator"}
    seen = ((high, LARGE), (resized(low, (8, 8)), KNOWN))
    wanted = sum(sum(tasks(alone.discriminator(z)[1], rows, proposals)) for z, rows in seen)
    torch.testing.assert_close(alone.loss("discriminator", ONE, seeded(5))[0], wanted)


@pytest.mark.parametrize("task", ["adversarial", "class", "box"])
def test_each_of_the_three_reaches_the_generator(task: str) -> None:
    weights = {f"{name}_weight": float(name == task) for name in ("adversarial", "class", "box")}
    model, without = made(**weights), made(adversarial_weight=0.0, class_weight=0.0, box_weight=0.0)
    own = list(model.generator.parameters())
    with_it = torch.autograd.grad(model.loss("generator", ONE, seeded())[0], own)
    pixels = torch.autograd.grad(without.loss("generator", ONE, seeded())[0], list(without.generator.parameters()))
    assert any(float((a - b).abs().max()) > 1e-6 for a, b in zip(with_it, pixels, strict=True))


def test_what_is_measured_by_hand() -> None:
    model = made().eval()
    digit, _, boxes = objects_of(ONE, SPEC)
    found = model.held_out(ONE, generator=seeded(5))
    proposals, high, low = regions(model, 5)
    ours, plain = (model.discriminator(z)[1] for z in (model.generator(low), resized(low, (8, 8))))
    for k in range(6):
        if k not in SMALL:
            assert all(bool(found[name][k].isnan()) for name in found if name != "large_accuracy")
            continue
        right = [float(said.classes[k].argmax() == digit[k]) for said in (ours, plain)]
        assert [float(found[f"small_accuracy{which}"][k]) for which in ("", "_bicubic")] == right
        assert float(found["small_accuracy_over_bicubic"][k]) == right[0] - right[1]
        box = decoded(ours.box[k : k + 1], proposals[k : k + 1])
        torch.testing.assert_close(found["small_iou"][k], iou(box, boxes[k : k + 1])[0])
        torch.testing.assert_close(found["small_iou_proposal"][k], iou(proposals[k : k + 1], boxes[k : k + 1])[0])
    assert found["large_accuracy"].isnan().tolist() == [k not in LARGE for k in range(6)]
    large = model.discriminator(high)[1].classes.argmax(1) == digit
    assert found["large_accuracy"][LARGE].tolist() == large[LARGE].float().tolist()
    assert set(found) == set(model.objectives())
    panels = model.panels(ONE, generator=seeded(5))
    assert panels.shape == (6, 5, 1, 12, 12)
    torch.testing.assert_close(panels[:, 0], ONE.x.float())
    assert panels.min() >= 0
    assert panels.max() <= 255
    assert torch.equal(SHOWN["panels"](model, ONE, SPEC, seeded(5)), panels)
    assert shown_in_training(model, ONE) == "panels"
    with pytest.raises(UserError, match="Model has no panels"):
        SHOWN["panels"](Model(SPEC), ONE, SPEC, seeded())


def test_small_objects_are_recognised_better_than_enlarged_ones(tmp_path: Path) -> None:
    """By the same discriminator, which has learned from both."""
    data = DigitsCanvasSizes(side=20, sizes=[5, 12], noise=40).read(tmp_path)
    parts = {name: (torch.tensor(part.x), torch.tensor(part.y)) for name, part in data.parts.items()}
    model = made(data.spec, hidden=16, small=8, class_weight=2.0, box_weight=0.1)
    players, g = model.players(), seeded()
    rates = {"generator": 8e-3, "discriminator": 3e-3}
    optimisers = {name: torch.optim.Adam(own, lr=rates[name]) for name, own in players.items()}
    x, y = parts["train"]
    for _ in range(100):
        rows = torch.randint(len(x), (32,), generator=g)
        for name, optimiser in optimisers.items():
            loss = model.loss(name, Batch(x[rows], y[rows]), g)[0]
            for parameter, gradient in zip(players[name], torch.autograd.grad(loss, players[name]), strict=True):
                parameter.grad = gradient
            optimiser.step()
            model.after_step(name, Batch(x[rows], y[rows]), g)
    x, y = (torch.cat([parts[name][k] for name in ("valid", "test")]) for k in range(2))
    found = model.eval().held_out(Batch(x, y), generator=seeded(3))
    better = found["small_accuracy_over_bicubic"]
    better = better[~better.isnan()]
    assert better.mean() > 2 * better.std() / len(better) ** 0.5
    assert found["small_accuracy"].nanmean() > 0.25


def test_the_statistics_kept_are_those_of_the_generators_own_pass() -> None:
    model, other = made(), made()
    model.loss("generator", ONE, seeded(5))
    model.after_step("generator", ONE, seeded(5))
    with statistics_of(other.generator):
        other.generator(regions(other, 5)[2])
    other.after_step("generator", ONE, seeded(5))
    ours, theirs = (dict(each.generator.named_buffers()) for each in (model, other))
    assert ours
    assert all(torch.allclose(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(DataSpec((1, 12, 12), "discrete", levels=256, num_classes=10)), "digits_canvas_sizes"),
        (lambda: made(scale=3), r"model\.scale=3"),
        (lambda: made(crop=9), r"model\.crop=9"),
        (lambda: made(small=0), "small"),
        (lambda: made(jitter=1.0), "jitter"),
        (lambda: made(class_weight=-1.0), "class_weight"),
        (lambda: made().loss("generator", Batch(ONE.x), seeded()), "this one has none"),
        (lambda: made().loss("generator", batch([3, 3]), seeded()), "batch_size"),
        (lambda: made().loss("discriminator", batch([7, 7]), seeded()), "batch_size"),
    ],
)
def test_bad_input_is_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
