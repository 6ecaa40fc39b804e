"""Patches are pieces of the photographs, no pixel in two splits; whitened ones are uncorrelated, of variance 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from dgmbench.data import DataSpec, load
from dgmbench.data.natural_patches import NaturalPatches, grey
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
NOWHERE = Path("/nonexistent")


def test_patches_are_pieces_of_the_photographs_that_no_two_splits_share() -> None:
    photographs = np.stack(load_sample_images().images)
    decoded = NaturalPatches(size=9, channels=3, per_region=20).read(NOWHERE)
    assert decoded.spec == DataSpec((3, 9, 9), "discrete", levels=256)
    covered = {}
    for split, part in decoded.parts.items():
        covered[split] = np.zeros(photographs.shape[:3], bool)
        assert len(np.unique(part.index)) == len(part.x)
        for x, place in zip(np.asarray(part.x), part.index, strict=True):
            k, row, column = np.unravel_index(place, photographs.shape[:3])
            assert (x == photographs[k, row : row + 9, column : column + 9].transpose(2, 0, 1)).all()
            covered[split][k, row : row + 9, column : column + 9] = True
    assert not (covered["train"] & covered["test"] | covered["valid"] & (covered["train"] | covered["test"])).any()
    assert {split: len(part.x) for split, part in decoded.parts.items()} == {"train": 1340, "valid": 200, "test": 380}


def test_grey_is_the_luma_to_the_nearest_level() -> None:
    colours = np.random.RandomState(0).randint(256, size=(1000, 3)).astype(np.uint8)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey(colours)[:, 0] - luma).max() <= 0.5 + 1e-9
    one, three = (NaturalPatches(per_region=5, channels=c).read(NOWHERE).parts["test"] for c in (1, 3))
    assert (np.asarray(one.x)[:, 0] == grey(np.moveaxis(np.asarray(three.x), 1, -1))[..., 0]).all()


def test_whitened_components_are_uncorrelated_and_the_leading_ones(config: Config) -> None:
    raw = load(config("natural_patches", size=6, per_region=40), NOWHERE)
    white = load(config("natural_patches_white", size=6, per_region=40, components=10), NOWHERE)
    assert white.spec == DataSpec((10,), "real")
    v = np.asarray(white.splits["train"].x, np.float64)
    np.testing.assert_allclose(v.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(v.T, bias=True), np.eye(10), atol=1e-4)
    x = np.asarray(raw.splits["train"].x, np.float64).reshape(len(v), -1)
    x -= x.mean(0)
    explained = x - v @ np.linalg.lstsq(v, x, rcond=None)[0]
    best = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    assert np.square(explained).sum(1).mean() == pytest.approx(best[10:].sum(), rel=0.02)  # noise adds 1/12 each
    assert abs(np.asarray(white.splits["test"].x).mean()) > 1e-4  # by the training rows' moments, not their own


def test_another_draw_cuts_elsewhere_and_the_split_stays(config: Config) -> None:
    first, same, other = (load(config("natural_patches", draw=draw), NOWHERE) for draw in (0, 0, 1))
    assert first.content_hash == same.content_hash != other.content_hash
    assert first.meta["remarks"] == other.meta["remarks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 72}, "from 2 to 71"),
        ({"channels": 2}, "1 .grey. or 3"),
        ({"size": 71, "per_region": 11}, "from 1 to 10, the places of a 71x71 patch"),
        ({"components": 257}, "from 0 .*to 256"),
    ],
)
def test_what_cannot_be_cut_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NaturalPatches(**options)
