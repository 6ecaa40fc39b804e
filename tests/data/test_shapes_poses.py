"""Shapes in pairs: the same identity in two poses of one split, joints where the shape is, frontal views."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import DataSet, load
from dgmbench.data.shapes import FACTORS, SIZES, render
from dgmbench.data.shapes_poses import BONES, JOINTS, ShapesPoses, heat_maps, joints, others
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", params=["shapes_poses", "shapes_frontal"])
def data(request: pytest.FixtureRequest, config: Config, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return load(config(request.param), tmp_path_factory.mktemp("data"))


def values(y: np.ndarray, count: int = 5) -> np.ndarray:
    return np.stack(np.unravel_index(y, tuple(FACTORS.values())[:count]), axis=1)


def test_both_pictures_are_of_one_identity_and_no_split_shows_a_picture_of_another(data: DataSet) -> None:
    every = np.arange(int(np.prod(list(FACTORS.values()))))
    known = {picture.tobytes(): row for picture, row in zip(render(values(every)), values(every), strict=True)}
    frontal, seen = data.name == "shapes_frontal", []
    for part in data.splits.values():
        sources = np.array([known[one.astype(np.uint8).tobytes()] for one in np.asarray(part.given[:, :1])])
        targets = values(part.y, 2 if frontal else 5)
        assert (sources[:, :2] == targets[:, :2]).all()
        assert (sources != values(part.y) if not frontal else sources[:, 2:3] != 0).any(axis=1).all()
        place = np.tile((0, 2.5, 2.5), (len(targets), 1)) if frontal else targets[:, 2:]
        wanted = np.concatenate([targets[:, :2], place], axis=1)
        assert np.array_equal(part.x, render(wanted))
        assert np.array_equal(part.given[:, 1:4], heat_maps(joints(sources), 16))
        assert np.array_equal(part.given[:, 4:], heat_maps(joints(wanted), 16))
        seen.append({row.tobytes() for row in sources} | (set() if frontal else {row.tobytes() for row in targets}))
    assert sum(map(len, seen)) == len(set().union(*seen)) == (2592 * 7 // 8 if frontal else 2592)


def test_joints_lie_on_the_shape_and_turn_and_move_with_it() -> None:
    shapes = np.array([[s, scale, angle, 3, 2] for s in range(3) for scale in range(3) for angle in range(8)])
    points, pictures = joints(shapes), render(shapes)[:, 0]
    for picture, own in zip(pictures, points, strict=True):
        for (a, b), share in ((bone, share) for bone in BONES for share in (0.0, 0.5, 1.0)):
            across, down = np.floor(own[a] + share * (own[b] - own[a])).astype(int)
            assert picture[down - 1 : down + 2, across - 1 : across + 2].any()
    size = np.array(SIZES)[shapes[:, 1]]
    assert np.allclose(points[shapes[:, 2] == 0][:, 0, 0], 8.5 + size[::8] * np.repeat([-0.55, 0.0, -0.6], 3))
    middle, upright = points - (8.5, 7.5), shapes[:, 2] == 0
    quarter = middle[shapes[:, 2] == 2]  # to the right: what was to the right is now below
    assert np.allclose(quarter, np.stack([-middle[upright][..., 1], middle[upright][..., 0]], axis=2))
    moved = shapes + np.array((0, 0, 0, 1, 3))
    assert np.allclose(joints(moved) - points, (1, 3))
    assert {len(each) for each in JOINTS.values()} == {3}


def test_a_heat_map_is_a_gaussian_around_its_joint() -> None:
    (((found,)),) = heat_maps(np.array([[[3.2, 1.5]]]), 6)
    for down, across in ((0, 0), (1, 3), (5, 4)):
        away = (across + 0.5 - 3.2) ** 2 + (down + 0.5 - 1.5) ** 2
        assert found[down, across] == pytest.approx(np.exp(-away / 2), rel=1e-5)


def test_partners_are_others_of_the_same_identity_and_follow_the_draw() -> None:
    identity = np.array([[0], [1], [0], [1], [0], [0]] * 50)
    found = others(identity, 0, "train")
    assert (identity[found] == identity).all()
    assert (found != np.arange(300)).all()
    assert len(set(found[identity[:, 0] == 0])) > 100
    assert (others(identity, 1, "train") != found).any()
    with pytest.raises(UserError, match="The test split has a shape in one pose alone"):
        others(np.array([[0], [1], [1]]), 0, "test")
    with pytest.raises(UserError, match=r"data\.valid and data\.test"):
        ShapesPoses(valid=10).read(Path())
