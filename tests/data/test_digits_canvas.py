"""Digits on a canvas: the same digits, at the places that their labels say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import load
from dgmbench.data.digits_canvas import DigitsCanvas
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def test_each_digit_stands_where_its_label_says(config: Config, tmp_path: Path) -> None:
    canvas, digits = load(config("digits_canvas"), tmp_path), load(config("digits"), tmp_path)
    assert canvas.spec.shape == (1, 16, 16)
    assert canvas.spec.factors == (("digit", 10), ("row", 9), ("column", 9))
    corners = []
    for split, part in canvas.splits.items():
        own = digits.splits[split]
        digit, row, column = np.unravel_index(part.y, (10, 9, 9))
        assert np.array_equal(digit, own.y)
        corners.append(np.stack([row, column]))
        for x, plain, i, j in zip(part.x, own.x, row, column, strict=True):
            assert np.array_equal(x[:, i : i + 8, j : j + 8], plain >= 8)
            assert x.sum() == (plain >= 8).sum()
    every = np.concatenate(corners, 1)
    counts = np.bincount(every[0] * 9 + every[1], minlength=81)
    expected = counts.sum() / 81
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - 80) < 4 * 160**0.5, "uniform over all places"


def test_another_draw_puts_them_elsewhere_and_sides_are_checked(tmp_path: Path) -> None:
    a, b = (DigitsCanvas(draw=draw).read(tmp_path).parts["test"] for draw in (0, 1))
    assert (a.y != b.y).mean() > 0.9
    with pytest.raises(UserError, match=r"data\.side=8"):
        DigitsCanvas(side=8)
