"""Shapes in the middle: as many of each combination, whole, told by their labels, and no two places alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import load
from dgmbench.data.shapes import render
from dgmbench.data.shapes_turned import APART, MIDDLE, SIZES, ShapesTurned
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def test_every_combination_as_often_and_whole(config: Config, tmp_path: Path) -> None:
    data = load(config("shapes_turned"), tmp_path)
    assert data.spec.factors == (("shape", 3), ("scale", 3), ("angle", 8))
    assert {name: len(part.x) for name, part in data.splits.items()} == {"train": 2520, "valid": 360, "test": 720}
    x, y = (np.concatenate([getattr(part, name) for part in data.splits.values()]) for name in "xy")
    assert np.array_equal(np.bincount(y), np.full(72, 50))
    assert not x[:, :, [0, -1]].any()
    assert not x[:, :, :, [0, -1]].any()


def test_a_picture_is_of_its_label_within_half_a_pixel_of_the_middle() -> None:
    """Of all shapes at a grid of places around the middle, that of the label at some place is nearest, by far."""
    parts = ShapesTurned(each=2).read(Path()).parts
    x, y = (np.concatenate([getattr(part, name) for part in parts.values()]) for name in "xy")
    steps = MIDDLE + np.linspace(-APART, APART, 5)
    grid = np.array([(*each, across, down) for each in np.ndindex(3, 3, 8) for across in steps for down in steps])
    apart = (x.reshape(-1, 1, 256) != render(grid, sizes=SIZES).reshape(1, -1, 256)).sum(2)
    assert (apart.argmin(1) // 25 == y).mean() > 0.9, "two small shapes may look alike at other places"
    assert apart.min(1).mean() < 4
    ends = [np.isin(apart.argmin(1) // step % 5, (0, 4)).mean() for step in (1, 5)]
    assert min(ends) > 0.05, "places reach as far as half a pixel, in both directions"


def test_another_draw_has_other_places_and_none_is_refused() -> None:
    one, other = (ShapesTurned(each=2, draw=draw).read(Path()).parts["train"] for draw in (0, 1))
    assert np.array_equal(one.y, other.y)
    assert not np.array_equal(one.x, other.x)
    with pytest.raises(UserError, match="each=0"):
        ShapesTurned(each=0)
