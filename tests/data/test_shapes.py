"""Shapes: every combination once, and every factor can be told from the picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dgmbench.data import load
from dgmbench.data.shapes import FACTORS, render

Config = Callable[..., dict[str, Any]]


def test_every_combination_once_and_no_two_alike(config: Config, tmp_path: Path) -> None:
    data = load(config("shapes"), tmp_path)
    assert data.spec.factors == tuple(FACTORS.items())
    x = np.concatenate([part.x for part in data.splits.values()])
    y = np.concatenate([part.y for part in data.splits.values()])
    assert np.array_equal(np.sort(y), np.arange(3 * 3 * 8 * 6 * 6))
    assert len(np.unique(x.reshape(len(x), -1), axis=0)) == len(x)
    assert not x[:, :, 0].any()  # nothing is cut off at the border
    assert not x[:, :, :, -1].any()


def test_labels_are_the_factors(config: Config, tmp_path: Path) -> None:
    data = load(config("shapes"), tmp_path)
    part = data.splits["test"]
    values = np.stack(np.unravel_index(part.y, tuple(FACTORS.values())), axis=1)
    assert np.array_equal(render(values), part.x)


def test_places_move_the_picture_and_a_quarter_turn_turns_it() -> None:
    here, there = render(np.array([[0, 1, 3, 2, 2], [0, 1, 3, 4, 1]]))
    assert np.array_equal(np.roll(here, (-1, 2), axis=(1, 2)), there)
    for shape in (0, 1):
        flat, turned = render(np.array([[shape, 2, 0, 2, 2], [shape, 2, 2, 2, 2]]))  # the centre is pixel 7 of 15
        assert np.array_equal(np.rot90(flat[0, :15, :15], -1), turned[0, :15, :15])


def test_larger_shapes_cover_more() -> None:
    areas = render(np.array([[s, scale, 1, 2, 2] for s in range(3) for scale in range(3)])).sum((1, 2, 3))
    assert (np.diff(areas.reshape(3, 3), axis=1) > 0).all()
