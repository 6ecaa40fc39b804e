"""Digits on a canvas: the same digits, at the places that their labels say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import load
from dgmbench.data.digits import enlarge
from dgmbench.data.digits_canvas import DigitsCanvas, DigitsCanvasOccluded, DigitsCanvasSizes, resized
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


def test_resized_digits_are_the_enlarged_ones_and_small_ones_are_means() -> None:
    x = np.random.default_rng(0).integers(17, size=(5, 8, 8)).astype(np.uint8)
    assert np.array_equal(resized(x, 32), enlarge(x[:, None])[:, 0])
    assert np.array_equal(resized(x, 8), np.round(255 * x.astype(float) / 16 + 1e-9).astype(np.uint8))
    assert np.array_equal(resized(np.full((1, 8, 8), 16, np.uint8), 5), np.full((1, 5, 5), 255))
    # at half the size a pixel is 1/8, 3/8, 3/8, 1/8 of four of each row and column
    weight = np.array([1, 3, 3, 1]) / 8
    inner = np.einsum("nij,i,j->n", x[:, 1:5, 3:7].astype(float), weight, weight)
    assert np.abs(resized(x, 4)[:, 1, 2] - 255 * inner / 16).max() <= 0.5 + 1e-9


def test_every_digit_is_there_in_every_size_where_its_label_says(config: Config, tmp_path: Path) -> None:
    data, digits = load(config("digits_canvas_sizes", noise=0), tmp_path), load(config("digits"), tmp_path)
    assert data.spec.shape == (1, 32, 32)
    sizes = [size for _, size in data.spec.factors or ()]
    assert sizes == [10, 17, 28, 28]
    for split, part in data.splits.items():
        own = digits.splits[split]
        n = len(own.y)
        digit, size, row, column = np.unravel_index(part.y, sizes)
        assert np.array_equal(digit, np.tile(own.y, 2))
        assert size.tolist() == [5] * n + [16] * n
        for k in range(0, 2 * n, 7):
            (i, j, s), expected = (row[k], column[k], size[k]), np.zeros((32, 32), np.uint8)
            expected[i : i + s, j : j + s] = resized(own.x[k % n], s)[0]
            assert np.array_equal(part.x[k, 0], expected)


def test_the_canvas_has_the_noise_that_it_should(config: Config, tmp_path: Path) -> None:
    noisy, plain = (load(config("digits_canvas_sizes", noise=noise), tmp_path).splits["test"].x for noise in (60, 0))
    added = noisy[plain == 0].astype(float)
    assert abs(added.mean() - 60 * (2 / np.pi) ** 0.5) < 4 * 60 * 0.6 / added.size**0.5 + 0.02
    assert (noisy >= plain).all()


def test_what_is_hidden_is_behind_the_tile_and_nothing_else_changes(config: Config, tmp_path: Path) -> None:
    data, digits = load(config("digits_canvas_occluded"), tmp_path), load(config("digits"), tmp_path)
    for split, part in data.splits.items():
        x, given = part.x.astype(int), part.given.astype(int)
        alone, mask, hidden = x[:, 0], x[:, 1] == 255, x[:, 2] == 255
        picture, visible = given[:, 0], given[:, 1] == 255
        assert set(np.unique(np.concatenate([x[:, 1:], given[:, 1:]], 1))) == {0, 255}
        assert np.array_equal(mask, alone > 0)
        assert np.array_equal(hidden, mask & ~visible)
        assert not (visible & ~mask).any()
        assert np.array_equal(picture[visible], alone[visible])
        front = (picture > 0) & ~visible
        assert (hidden <= front).all()
        assert (front.sum((1, 2)) == 100).all(), "the tile is there whole, and nothing else but the digit"
        share = hidden.sum((1, 2)) / mask.sum((1, 2))
        assert share.min() >= 0.1
        assert share.max() <= 2 / 3
        assert (given[:, 2] == 0).all()
        assert np.array_equal(part.y, digits.splits[split].y)
        # the object is the digit of the same number, enlarged
        large = resized(digits.splits[split].x[:, 0], 20)
        assert np.array_equal(np.sort(alone.reshape(len(x), -1), 1)[:, -1], large.reshape(len(x), -1).max(1))
        assert np.array_equal(mask.sum((1, 2)), (large >= 128).sum((1, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DigitsCanvasSizes(sizes=[3, 16]), r"data\.sizes=\[3, 16\]"),
        (lambda: DigitsCanvasSizes(sizes=[]), "different numbers"),
        (lambda: DigitsCanvasSizes(sizes=[8, 8]), "different numbers"),
        (lambda: DigitsCanvasSizes(sizes=[8, 31]), "side - 2, which is 30"),
        (lambda: DigitsCanvasSizes(noise=300), r"data\.noise=300"),
        (lambda: DigitsCanvasSizes(side=200), r"data\.side=200"),
        (lambda: DigitsCanvasOccluded(tile=9), "half as wide"),
        (lambda: DigitsCanvasOccluded(tile=7, object_side=10), r"data\.tile=7"),
        (lambda: DigitsCanvasOccluded(object_side=40), r"data\.object_side=40"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
