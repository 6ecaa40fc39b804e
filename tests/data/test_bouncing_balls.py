"""Bouncing balls: energy and momentum are kept, nothing leaves the box, and frames show the balls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState

from dgmbench.data import load
from dgmbench.data.bouncing_balls import BOX, RADIUS, SUBSTEPS, collide, draw_balls, simulate
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def test_energy_is_kept_and_no_ball_leaves_the_box() -> None:
    places, speeds = simulate(20, 3, 80, RandomState(0))
    energy = (speeds**2).sum((2, 3))
    assert np.allclose(energy, 3.0)
    most = 3**0.5 / SUBSTEPS  # the fastest ball's way in a substep, after which it is turned back
    assert places.min() > RADIUS - most
    assert places.max() < BOX - RADIUS + most
    assert (np.abs(np.diff(speeds, axis=1)).sum((1, 2, 3)) > 1).all()  # each video has collisions


def test_collisions_keep_momentum_and_exchange_velocities_along_the_line() -> None:
    speed, other = np.array([[1.0, 0.5]]), np.array([[-1.0, 0.25]])
    collide(np.array([[2.0, 2.0]]), np.array([[4.0, 2.0]]), speed, other)
    assert speed.tolist() == [[-1.0, 0.5]]
    assert other.tolist() == [[1.0, 0.25]]
    collide(np.array([[2.0, 2.0]]), np.array([[4.0, 2.0]]), speed, other)  # they part already
    assert speed.tolist() == [[-1.0, 0.5]]


def test_frames_show_discs() -> None:
    frames = draw_balls(np.array([[[[2.0, 5.0]]]]), 100)
    assert frames.sum() / 100 == pytest.approx(np.pi * RADIUS**2, rel=0.01)
    rows, columns = np.nonzero(frames[0, 0])
    assert (columns.mean() + 0.5) / 10 == pytest.approx(2.0, abs=0.01)
    assert (rows.mean() + 0.5) / 10 == pytest.approx(5.0, abs=0.01)


def test_the_set(config: Config, tmp_path: Path) -> None:
    data = load({**config("bouncing_balls"), "train": 20, "valid": 5, "test": 5}, tmp_path)
    assert data.spec.frame == (15, 15)
    assert data.splits["train"].x.shape == (20, 50, 225)
    assert not np.array_equal(data.splits["valid"].x, data.splits["test"].x)
    with pytest.raises(UserError, match="balls"):
        load({**config("bouncing_balls"), "balls": 9}, tmp_path)


def test_the_short_set(config: Config, tmp_path: Path) -> None:
    data = load({**config("bouncing_balls_short"), "train": 20, "valid": 5, "test": 5}, tmp_path)
    assert data.spec.frame == (16, 16)
    assert data.splits["train"].x.shape == (20, 8, 256)
