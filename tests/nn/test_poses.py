"""Poses: joints read from maps, masks against distances by hand, parts moved by known affine maps, patches nearby."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgmbench.data.shapes_poses import heat_maps
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.poses import (
    PoseCondition,
    Rectangles,
    deformed,
    inside,
    located,
    nearest_neighbour_loss,
    places_in,
    pose_mask,
    rectangles,
    rescaled,
)
from dgmbench.nn.unet import UNet
from dgmbench.nn.warping import middles

BONES = ((0, 1), (0, 2))
GIVEN = DataSpec((7, 6, 8), "real", bones=BONES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_condition_is_taken_apart() -> None:
    read = PoseCondition(DataSpec((1, 6, 8), "binary", given=GIVEN))
    given = torch.rand(2, 7, 6, 8)
    posed = read(given)
    assert torch.equal(posed.picture, 2 * given[:, :1] - 1)
    assert torch.equal(torch.cat([posed.source, posed.target], 1), given[:, 1:])
    with pytest.raises(UserError, match="name it, given="):
        read(None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "data=shapes_poses"),
        (DataSpec((4, 6, 8), "real", bones=((0, 1),)), "as many heat maps of joints for the one pose as for the other"),
        (DataSpec((7, 6, 6), "real", bones=BONES), "a picture of its size"),
        (DataSpec((7, 6, 8), "real"), "the bones of these data are none"),
        (DataSpec((7, 6, 8), "real", bones=((0, 3),)), "which of the 3 joints are joined"),
    ],
)
def test_data_without_poses_are_refused(given: DataSpec | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PoseCondition(DataSpec((1, 6, 8), "binary", given=given))


def test_joints_are_read_from_their_maps_exactly_up_to_the_border() -> None:
    points = torch.rand(20, 3, 2, generator=seeded(), dtype=torch.float64) * 15 + 0.5
    maps = torch.from_numpy(heat_maps(points.numpy(), 16))
    torch.testing.assert_close(located(maps).double(), points, atol=1e-4, rtol=0)


def test_the_mask_of_a_pose_by_hand() -> None:
    points = torch.tensor([[[1.5, 2.0], [5.5, 2.0], [1.5, 4.0]]])
    mask = pose_mask(points, BONES, (6, 8), 1.2)[0, 0]
    for down, across in itertools.product(range(6), range(8)):
        x, y = across + 0.5, down + 0.5
        first = math.hypot(x - min(max(x, 1.5), 5.5), y - 2.0)
        second = math.hypot(x - 1.5, y - min(max(y, 2.0), 4.0))
        assert mask[down, across] == (min(first, second) <= 1.2)
    assert 0 < mask.sum() < mask.numel()


def test_rectangles_reach_beyond_their_bones_by_half_their_width() -> None:
    points = torch.tensor([[[2.0, 2.0], [6.0, 2.0], [2.0, 4.0]]])
    found = rectangles(points, BONES, 0.4)  # mean length 3, so 1.2 wide
    torch.testing.assert_close(found.middle, torch.tensor([[[4.0, 2.0], [2.0, 3.0]]]))
    torch.testing.assert_close(found.along, torch.tensor([[[2.6, 0.0], [0.0, 1.6]]]))
    torch.testing.assert_close(found.across, torch.tensor([[[0.0, 0.6], [-0.6, 0.0]]]))
    mask = inside(found, (6, 8))[0]
    assert torch.equal(mask[0].nonzero(), torch.tensor([[row, column] for row in (1, 2) for column in range(1, 7)]))
    assert inside(rectangles(torch.full((1, 2, 2), 3.0), ((0, 1),), 0.4), (6, 6)).isfinite().all()


def turned(points: Tensor, angle: float, scale: float, shift: Tensor) -> Tensor:
    matrix = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ matrix.T + shift


@pytest.mark.parametrize(("angle", "scale", "shift"), [(0.7, 1.0, (3.2, -1.7)), (-2.0, 1.3, (7.0, 28.0))])
def test_a_known_affine_map_is_recovered_to_sub_pixel(angle: float, scale: float, shift: tuple[float, float]) -> None:
    """Maps of a part that hold its own pixels' places: what stands in the target is the place whence it came."""
    points = torch.tensor([[[8.0, 8.0], [12.0, 9.0]]])
    moved = turned(points, angle, scale, torch.tensor(shift))
    source, target = (rectangles(each, ((0, 1),), 1.0) for each in (points, moved))
    pixels, mask = middles(24, 24, points), inside(source, (24, 24))
    found = deformed(pixels.permute(2, 0, 1)[None] * mask, source, target, mask)[0].permute(1, 2, 0)
    deep = (places_in(target, pixels)[0, 0].abs() < 0.6).all(-1)
    assert deep.sum() > 5
    wanted = turned(pixels - torch.tensor(shift), -angle, 1 / scale, torch.zeros(2))
    assert (found - wanted)[deep].norm(dim=-1).max() < 1e-3
    corners = torch.tensor([(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)])
    before, after = (
        each.middle[0, 0] + corners[:, :1] * each.along[0, 0] + corners[:, 1:] * each.across[0, 0]
        for each in (source, target)
    )
    ones = torch.ones(4, 1)
    fitted = torch.linalg.lstsq(torch.cat([after, ones], 1), before).solution  # the paper's least squares
    torch.testing.assert_close(torch.cat([pixels[deep], torch.ones(len(pixels[deep]), 1)], 1) @ fitted, wanted[deep])


def test_equal_poses_leave_maps_as_they_are_at_every_scale() -> None:
    points = 3 + 10 * torch.rand(4, 3, 2, generator=seeded())
    own = rectangles(points, BONES, 0.5)
    for scale in (1, 2, 4):
        maps = torch.rand(4, 3, 16 // scale, 16 // scale, generator=seeded(scale))
        masks, smaller = F.adaptive_max_pool2d(inside(own, (16, 16)), maps.shape[2:]), rescaled(own, 1 / scale)
        torch.testing.assert_close(deformed(maps, smaller, smaller, masks), maps, atol=1e-5, rtol=0)


def test_what_lies_outside_of_all_parts_stays_and_the_largest_part_wins() -> None:
    at = torch.tensor([[[4.0, 4.0], [4.0, 4.0]]])
    half = torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[0.0, 2.0], [0.0, 2.0]]])
    source = Rectangles(at, *half)
    target = Rectangles(at + torch.tensor([[[6.0, 0.0], [0.0, 6.0]]]), *half)
    maps = torch.zeros(1, 1, 12, 12)
    maps[0, 0, 3, 3], maps[0, 0, 9, 9], maps[0, 0, 3, 9] = 1.0, 2.0, 0.5
    found = deformed(maps, source, target, inside(source, (12, 12)))[0, 0]
    wanted = torch.zeros(12, 12)  # the part moves to both places, and wins over 0.5
    wanted[3, 9], wanted[9, 3], wanted[9, 9] = 1.0, 1.0, 2.0
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_the_nearest_neighbour_loss_is_0_under_shifts_inside_its_window_alone() -> None:
    x = -torch.ones(1, 1, 14, 14)
    x[0, 0, 5:9, 6:8] = torch.rand(4, 2, generator=seeded())
    for down, across in itertools.product((-3, -2, 0, 1, 2), (-2, 0, 2, 3)):
        loss = float(nearest_neighbour_loss(torch.roll(x, (down, across), (2, 3)), x, 5))
        assert (loss == 0) == (max(abs(down), abs(across)) <= 2)


def test_the_nearest_neighbour_loss_by_hand() -> None:
    g = seeded()
    a, b = (torch.rand(2, 2, 5, 4, generator=g) for _ in range(2))

    def patch(x: Tensor, down: int, across: int) -> Tensor:
        rows = [min(max(down + k, 0), 4) for k in (-1, 0, 1)]
        return x[:, rows][:, :, [min(max(across + k, 0), 3) for k in (-1, 0, 1)]]

    for row in range(2):
        total = 0.0
        for down, across in itertools.product(range(5), range(4)):
            near = itertools.product(
                range(max(0, down - 1), min(5, down + 2)), range(max(0, across - 1), min(4, across + 2))
            )
            total += min(float((patch(a[row], down, across) - patch(b[row], *q)).abs().sum()) for q in near)
        assert float(nearest_neighbour_loss(a, b, 3)[row]) == pytest.approx(total, rel=1e-5)


def test_a_linear_layer_carries_what_convolutions_do_not() -> None:
    """One pixel's change reaches the far corner through the bottleneck alone."""
    x = torch.rand(1, 1, 32, 32, generator=seeded())
    other = x.clone()
    other[..., 0, 0] += 1
    for bottleneck in (0, 4):
        torch.manual_seed(0)
        net = UNet(1, 1, (32, 32), channels=2, halvings=1, bottleneck=bottleneck)
        assert ((net(x) - net(other))[..., -1, -1].abs() > 0).item() == bool(bottleneck)
    with pytest.raises(UserError, match=r"model.halvings=3 takes sides that are multiples of 8, not 12x12"):
        UNet(1, 1, (12, 12), channels=2, halvings=3)
