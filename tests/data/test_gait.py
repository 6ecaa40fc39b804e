"""Gait: bones keep their lengths, the sides alternate, and styles differ as they say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import load
from dgmbench.data.gait import ARM, BONES, HEAD, LEG, POINTS, STYLES, TORSO, walk
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
ONE = np.ones(1)


def test_bones_keep_their_lengths() -> None:
    points = walk(np.arange(3), np.array([0.0, 0.3, 0.8]), np.ones(3), np.ones(3), 30)
    lengths = [np.linalg.norm(points[:, :, a] - points[:, :, b], axis=-1) for a, b in BONES]
    wanted = [HEAD, TORSO, LEG, LEG, LEG, LEG, ARM, ARM, ARM, ARM]
    for found, length in zip(lengths, wanted, strict=True):
        assert np.allclose(found, length)


def test_the_sides_are_half_a_cycle_apart() -> None:
    for number, (cycle, *_) in enumerate(STYLES.values()):
        style, half = np.array([number]), 0.5 / cycle
        later = walk(style, cycle * half * ONE, ONE, ONE, 10)
        assert np.allclose(walk(style, 0 * ONE, ONE, ONE, 10)[:, :, 3:5], later[:, :, 5:7])


def test_the_set(config: Config, tmp_path: Path) -> None:
    data = load({**config("gait"), "train": 60, "valid": 5, "test": 30}, tmp_path)
    assert data.spec.bones == BONES
    assert data.spec.class_names == ("stroll", "run", "march")
    part = data.splits["train"]
    feet = part.x.reshape(60, 40, len(POINTS), 2)[:, :, POINTS.index("left foot"), 0]
    assert np.ptp(feet[part.y == 1], axis=1).min() > np.ptp(feet[part.y == 0], axis=1).max()  # a run's steps are longer
    with pytest.raises(UserError, match="noise"):
        load({**config("gait"), "noise": 0.0}, tmp_path)
