"""Digits over backgrounds: all of the digit is on, and elsewhere there is what was asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import DataSpec, load
from dgmbench.data.digits_background import DigitsBackground, stripes
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
NOWHERE = Path("/nonexistent")


@pytest.mark.parametrize("background", ["noise", "stripes"])
def test_the_mask_is_the_picture_of_digits_binary(config: Config, background: str) -> None:
    found, mask = (
        load(config("digits_background", background=background), NOWHERE),
        load(config("digits_binary"), NOWHERE),
    )
    assert found.spec == DataSpec((1, 8, 8), "binary", num_classes=10)
    for split in ("train", "valid", "test"):
        x, digit = np.asarray(found.splits[split].x), np.asarray(mask.splits[split].x)
        assert (x >= digit).all()
        assert (np.asarray(found.splits[split].y) == np.asarray(mask.splits[split].y)).all()
        share, n = x[digit == 0].mean(), int((digit == 0).sum())
        width = (0.3 * 0.7 / n) ** 0.5 * (1 if background == "noise" else 8)  # stripes are drawn once a picture
        assert abs(share - 0.3) < 4 * width


def test_noise_is_independent_of_the_digit_and_of_other_pictures() -> None:
    parts = DigitsBackground(density=0.5).read(NOWHERE).parts
    other = DigitsBackground(density=0.5, draw=1).read(NOWHERE).parts
    x, y = (np.asarray(p["train"].x, float).reshape(-1, 64) for p in (parts, other))
    corner = x[:, [0, 7, 56, 63]]  # where hardly any digit is
    assert np.abs(np.corrcoef(corner.T) - np.eye(4)).max() < 4 / len(x) ** 0.5
    assert (x[:, 0] == y[:, 0]).mean() == pytest.approx(0.5, abs=4 * 0.5 / len(x) ** 0.5)


def test_stripes_are_straight_and_parallel() -> None:
    """Of each picture, some direction explains all pixels: they are a function of the place along it."""
    down, across = np.mgrid[:8, :8]
    for picture in stripes(20, 0.4, np.random.RandomState(0))[:, 0]:
        fits = []
        for angle in np.linspace(0, np.pi, 180, endpoint=False):
            order = np.argsort((down * np.sin(angle) + across * np.cos(angle)).ravel(), kind="stable")
            fits.append(int((np.diff(picture.ravel()[order].astype(int)) != 0).sum()))
        assert min(fits) <= 10  # as many edges as stripes can have over 8 pixels, and rounding of the angle
        assert max(fits) > 15


@pytest.mark.parametrize(
    ("options", "message"), [({"background": "sky"}, "noise or stripes"), ({"density": 1.5}, "from 0 to 1")]
)
def test_what_cannot_be_drawn_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DigitsBackground(**options)
