"""Small data sets, and the way to a ready net."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.config import compose, resolve
from dgmbench.data import DataSet, DataSpec, Split, load
from dgmbench.evaluation.features import classifier, reference
from dgmbench.evaluation.features.build import build_net
from dgmbench.evaluation.features.net import FeatureNet


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another has kept in memory."""
    monkeypatch.setattr(classifier, "_memory", {})
    monkeypatch.setattr(reference, "_told", set())
    reference._memory.clear()


@pytest.fixture(scope="session")
def digits() -> Callable[..., DataSet]:
    def read(name: str = "digits") -> DataSet:
        return load(resolve(compose("train", ["model=made", f"data={name}"]))["data"], Path())

    return read


@pytest.fixture(scope="session")
def stripes() -> Callable[..., DataSet]:
    """Binary 4 x 4 images, rows of class 0 and columns of class 1, with a few of the pixels turned."""

    def make(n: int = 300, *, labels: bool = True, content_hash: str | None = None, seed: int = 0) -> DataSet:
        random = np.random.RandomState(seed)
        y = random.randint(0, 2, n)
        lines = np.tile((random.rand(n, 4) < 0.5)[:, :, None], (1, 1, 4))
        x = np.where(y[:, None, None] == 0, lines, lines.transpose(0, 2, 1)) ^ (random.rand(n, 4, 4) < 0.02)
        split = Split(x.astype(np.uint8)[:, None], y.astype(np.int64) if labels else None)
        spec = DataSpec((1, 4, 4), "binary", num_classes=2 if labels else None)
        splits = {"train": split, "valid": split, "test": split}
        return DataSet("stripes", spec, splits, content_hash or f"{int(labels)}" * 64)

    return make


@pytest.fixture(scope="session")
def build() -> Callable[..., FeatureNet]:
    def ready(node: Any, data: DataSet, folder: Path | None = None) -> FeatureNet:
        return build_net(node, data, folder=folder, device=torch.device("cpu"))

    return ready
