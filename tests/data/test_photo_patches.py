"""Patches of the two photographs: where they were cut, and that no pixel of one split is in another."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from dgmbench.data.photo_patches import PhotoPatches
from dgmbench.errors import UserError


@pytest.mark.parametrize("size", [32, 20])
def test_patches_are_where_they_should_be(size: int) -> None:
    decoded = PhotoPatches(size=size).read(Path())
    china, flower = load_sample_images().images
    parts = [decoded.parts[split] for split in ("train", "valid", "test")]
    train, valid, test = (np.asarray(part.x)[np.argsort(part.index)] for part in parts)  # row by row
    assert all((np.sort(part.index) == np.arange(len(part.x))).all() for part in parts)
    assert abs(np.corrcoef(parts[0].index, np.arange(len(train)))[0, 1]) < 0.15
    assert train.dtype == np.uint8
    assert decoded.spec.shape == train.shape[1:] == (3, size, size)
    across = (512 - size) // (size // 2) + 1
    assert len(train) == across * ((427 - size) // (size // 2) + 1)
    row, column = divmod(len(train) // 2, across)
    top, left = row * (size // 2), column * (size // 2)
    patch = china[top : top + size, left : left + size].transpose(2, 0, 1)
    assert (train[len(train) // 2] == patch).all()
    assert (valid[1] == china[:size, 512 + size : 512 + 2 * size].transpose(2, 0, 1)).all()
    assert (test[640 // size] == flower[size : 2 * size, :size].transpose(2, 0, 1)).all()
    assert len(valid) == (427 // size) * (128 // size)
    assert len(test) == (427 // size) * (640 // size)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.size=500"):
        PhotoPatches(size=500)
