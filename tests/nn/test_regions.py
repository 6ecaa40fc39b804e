"""Boxes and masks: crops of whole pixels, box coordinates there and back, overlaps by counting, the convex hull."""

import math

import pytest
import torch
from scipy.spatial import Delaunay

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.regions import (
    convex_hull,
    cropped,
    decoded,
    encoded,
    framed,
    iou,
    iou_of_masks,
    jittered,
    objects_of,
    require_objects,
)

FACTORS = (("digit", 3), ("size", 5), ("row", 6), ("column", 6))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole_boxes(n: int, side: int, seed: int = 0) -> torch.Tensor:
    """Boxes of whole pixels inside a picture."""
    size = torch.randint(1, side + 1, (n, 2), generator=seeded(seed))
    corner = (torch.rand(n, 2, generator=seeded(seed + 1)) * (side - size + 1)).long()
    return torch.cat([corner, corner + size], 1).float()


def test_labels_say_class_side_and_box() -> None:
    spec = DataSpec((1, 9, 8), "discrete", levels=4, factors=FACTORS)
    label = ((2 * 5 + 3) * 6 + 1) * 6 + 4  # digit 2, side 3, row 1, column 4
    digit, size, boxes = objects_of(
        Batch(torch.empty(3, 0), torch.tensor([label, -1, 7])), spec
    )  # the last one has side 0
    assert digit.tolist() == [2, -1, -1]
    assert size.tolist() == [3, -1, -1]
    assert boxes.tolist() == [[4, 1, 7, 4], [0, 0, 8, 9], [0, 0, 8, 9]]
    assert require_objects(spec) == 3
    with pytest.raises(UserError, match="digits_canvas_sizes"):
        require_objects(DataSpec((1, 9, 8), "discrete", levels=4, num_classes=3))


def test_a_crop_of_whole_pixels_is_these_pixels_and_outside_is_zero() -> None:
    x = torch.rand(3, 2, 7, 9, generator=seeded())
    boxes = torch.tensor([[2.0, 1, 6, 5], [0, 3, 4, 7], [-2, -2, 2, 2]])
    crops = cropped(x, boxes, 4)
    torch.testing.assert_close(crops[0], x[0, :, 1:5, 2:6])
    torch.testing.assert_close(crops[1], x[1, :, 3:7, 0:4])
    torch.testing.assert_close(crops[2, :, 2:, 2:], x[2, :, :2, :2])
    assert (crops[2, :, :2] == 0).all()


def test_a_crop_is_linear_between_pixels() -> None:
    """Of a plane, every place inside gives the plane's value there."""
    rows, columns = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(6) + 0.5, indexing="ij")
    x = (3 * rows - 2 * columns)[None, None]
    crop = cropped(x, torch.tensor([[1.2, 2.1, 4.8, 6.3]]), 5)[0, 0]
    place = (torch.arange(5) + 0.5) / 5
    torch.testing.assert_close(crop, 3 * (2.1 + 4.2 * place)[:, None] - 2 * (1.2 + 3.6 * place))


def test_boxes_are_the_numbers_that_they_are_encoded_as() -> None:
    boxes, proposals = whole_boxes(50, 20), whole_boxes(50, 20, seed=5)
    t = encoded(boxes, proposals)
    torch.testing.assert_close(decoded(t, proposals), boxes)
    assert torch.equal(encoded(boxes, boxes), torch.zeros(50, 4))
    one = encoded(torch.tensor([[2.0, 0, 6, 2]]), torch.tensor([[0.0, 0, 2, 4]]))[0].tolist()
    assert one == pytest.approx([(4 - 1) / 2, (1 - 2) / 4, math.log(2), math.log(0.5)])


def test_proposals_stay_within_the_jitter_and_are_uniform() -> None:
    boxes = torch.tensor([[4.0, 2, 12, 6]]).expand(20_000, 4)
    found = jittered(boxes, 0.2, seeded())
    t = encoded(found, boxes)
    change = torch.cat([t[:, :2], t[:, 2:].exp() - 1], 1)
    assert (change.abs() <= 0.2 + 1e-6).all()
    assert (change.std(0) - 0.2 / 3**0.5).abs().max() < 4 * 0.2 / 3**0.5 / 20_000**0.5
    assert change.mean(0).abs().max() < 4 * 0.2 / 3**0.5 / 20_000**0.5
    torch.testing.assert_close(jittered(boxes, 0.0, seeded()), boxes)


def test_overlaps_are_those_of_counted_pixels() -> None:
    a, b = whole_boxes(60, 12), whole_boxes(60, 12, seed=9)

    def mask(boxes: torch.Tensor) -> torch.Tensor:
        made = torch.zeros(len(boxes), 12, 12, dtype=torch.bool)
        for one, (x0, y0, x1, y1) in zip(made, boxes.long().tolist(), strict=True):
            one[y0:y1, x0:x1] = True
        return made

    ours = iou(a, b)
    both, either = (mask(a) & mask(b)).flatten(1).sum(1), (mask(a) | mask(b)).flatten(1).sum(1)
    torch.testing.assert_close(ours, both / either)
    torch.testing.assert_close(iou_of_masks(mask(a), mask(b)), ours)
    assert 0 < int((ours == 0).sum()) < 60
    empty = torch.zeros(1, 3, 3, dtype=torch.bool)
    assert iou_of_masks(empty, empty).item() == 1
    assert iou_of_masks(empty, ~empty).item() == 0


def test_the_convex_hull_is_that_of_a_triangulation() -> None:
    masks = torch.rand(40, 9, 11, generator=seeded()) < torch.linspace(0.03, 0.3, 40)[:, None, None]
    masks[:, 4, 5] = masks[:, 1, 2] = masks[:, 6, 8] = masks[:, 7, 1] = True  # not all on one line
    pixels = torch.cartesian_prod(torch.arange(9), torch.arange(11)).numpy()
    for mask, hull in zip(masks, convex_hull(masks), strict=True):
        inside = Delaunay(mask.nonzero().numpy()).find_simplex(pixels, tol=1e-9) >= 0
        assert torch.equal(hull, torch.from_numpy(inside).view(9, 11))


def test_the_hull_of_little_is_little() -> None:
    masks = torch.zeros(3, 5, 5, dtype=torch.bool)
    masks[1, 2, 3] = True
    masks[2, 0, 0] = masks[2, 2, 4] = True  # a line through (1, 2)
    hull = convex_hull(masks)
    assert hull.flatten(1).sum(1).tolist() == [0, 1, 3]
    assert hull[2, 1, 2]


def test_a_frame_runs_around_the_box() -> None:
    x = framed(torch.zeros(2, 1, 6, 7), torch.tensor([[2.0, 1, 4, 4], [0.2, 0, 6.8, 5.9]]), 1.0)[:, 0]
    assert x[0, 0, 1:5].tolist() == [1] * 4
    assert x[0, 4, 1:5].tolist() == [1] * 4
    assert x[0, 1:4, 2:4].sum() == 0
    assert x[0].sum() == 2 * 4 + 2 * 3
    assert x[1].sum() == 0  # all outside of the picture
