"""Motion capture: the published file in windows, split in time, without what does not move."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from dgmbench.data import load
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def test_the_published_file(config: Config, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "motion_capture").symlink_to(shared / "data" / "motion_capture")
    data = load(config("motion_capture"), tmp_path)
    sizes = {split: part.x.shape for split, part in data.splits.items()}
    assert sizes == {"train": (60, 40, 49), "valid": (4, 40, 49), "test": (12, 40, 49)}
    original = loadmat(shared / "data" / "motion_capture" / "motion.mat")["Motion"].ravel()
    moves = np.concatenate(original).std(0) > 1e-3
    assert np.allclose(data.splits["train"].x[0], original[0][:160:4, moves])
    assert np.allclose(data.splits["train"].x[1], original[0][1:161:4, moves])
    start = int(0.8 * 3128)
    assert np.allclose(data.splits["test"].x[0], original[2][start : start + 160 : 4, moves])


def test_files_and_settings_are_looked_at(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "motion_capture"
    with pytest.raises(UserError, match=r"motion\.mat"):
        load(config("motion_capture"), tmp_path)
    folder.mkdir()
    walk = np.random.RandomState(0).randn(800, 49)
    cell = np.empty((1, 1), object)
    cell[0, 0] = walk
    savemat(folder / "motion.mat", {"Motion": cell})
    with pytest.raises(UserError, match="altered"):
        load(config("motion_capture"), tmp_path)
    cfg = {**config("motion_capture"), "verify": False, "length": 40}
    with pytest.raises(UserError, match="fewer than two windows"):
        load(cfg, tmp_path)
    assert len(load({**cfg, "skip": 1}, tmp_path).splits["test"].x) == 4
    savemat(folder / "motion.mat", {"Other": cell})
    with pytest.raises(UserError, match="no Motion"):
        load(cfg, tmp_path)
