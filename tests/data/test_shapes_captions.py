"""Shapes with captions: every caption says the factors of its picture, and any picture's factors can be read off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import load
from dgmbench.data.shapes_captions import COLOURS, FACTORS, SIDE, WORDS, covered, read_off, render, sprites
from dgmbench.data.text import decode_tokens, one_caption
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def factors_of(y: np.ndarray) -> np.ndarray:
    return np.stack(np.unravel_index(y, tuple(FACTORS.values())), 1)


def test_captions_say_the_factors_of_their_pictures_and_the_renderer_reads_them_off(
    config: Config, tmp_path: Path
) -> None:
    data = load({**config("shapes_captions"), "train": 300, "valid": 20, "test": 60}, tmp_path)
    assert data.spec.given is not None
    wordings = set()
    for part in data.splits.values():
        assert part.y is not None
        assert part.given is not None
        factors = factors_of(part.y)
        assert np.array_equal(read_off(part.x), factors)
        assert np.array_equal(data.factors_of(part.x), factors)
        for text, row in zip(decode_tokens(part.given, data.spec.given), factors, strict=True):
            for (name, values), value in zip(WORDS.items(), row, strict=True):
                said = [k for k, words in enumerate(values) if any(f" {word} " in f" {text} " for word in words)]
                assert said == [value], (text, name)
            wordings.add(" ".join(word for word in text.split() if word in {"there", "a", "it", "and"}))
    assert len(wordings) == 4


def test_no_two_sprites_are_alike_and_all_lie_inside_the_picture() -> None:
    every = sprites().reshape(-1, SIDE * SIDE)
    assert len(np.unique(every, axis=0)) == len(every)
    frames = every.reshape(-1, SIDE, SIDE)
    assert max(frames[:, 0].max(), frames[:, -1].max(), frames[:, :, 0].max(), frames[:, :, -1].max()) == 0
    areas = sprites().sum((4, 5))
    assert (areas[:, 1] > 2 * areas[:, 0]).all()  # large and small


def test_shapes_have_the_area_that_they_should() -> None:
    points = (np.arange(400) + 0.5) / 200 - 1
    u, v = np.meshgrid(points, points)
    found = [4 * covered(shape, v, u).mean() for shape in range(4)]
    # the triangle's side at height v is 2 (v + 1) / 1.8, up to v = 0.8; the cross has two bars of 2 by 0.66
    assert found == pytest.approx([np.pi, 1.8**2, 1.8**2 / 1.8, 2 * 2 * 0.66 - 0.66**2], abs=0.03)


def test_colours_are_read_off_whatever_their_shade() -> None:
    random = np.random.RandomState(0)
    factors = np.stack([np.zeros(50, int), np.arange(50) % len(COLOURS), np.ones(50, int), np.zeros(50, int)], 1)
    x = render(factors, random)
    dim = np.rint(x * 0.6).astype(np.uint8)
    assert np.array_equal(read_off(dim), factors)
    noisy = np.clip(x + random.normal(0, 20, x.shape), 0, 255).astype(np.uint8)
    assert np.array_equal(read_off(noisy), factors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "has no words"),
        ("a small red elephant", "elephant"),
        ("a " * 16, "has 16 words, and there is room for 15"),
    ],
)
def test_captions_that_are_none(text: str, message: str, config: Config, tmp_path: Path) -> None:
    data = load({**config("shapes_captions"), "train": 2, "valid": 2, "test": 2}, tmp_path)
    assert data.spec.given is not None
    with pytest.raises(UserError, match=message):
        one_caption(text, data.spec.given)
    tokens = one_caption("A small RED circle", data.spec.given)
    assert decode_tokens(tokens, data.spec.given) == ["a small red circle"]
