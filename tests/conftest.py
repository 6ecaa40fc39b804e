"""Shared set-up: shapes are checked at run time, one thread a process, and a data root of its own."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

jaxtyping.install_import_hook(["dgmbench.models", "dgmbench.nn"], "beartype.beartype")

import torch  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _data_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DGM_DATA_DIR"] = str(tmp_path_factory.mktemp("data_root"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def train_run(tmp_path: Path) -> Callable[..., Any]:
    """Run ``dgm train`` with these overrides in this process; returns its Outcome."""
    from dgmbench.config import compose
    from dgmbench.training.run import train

    def run(*overrides: str) -> Any:
        quiet = ["trainer.progress=false", f"paths.outputs={tmp_path}", "protocol=quick"]
        return train(compose("train", [*quiet, *overrides]))

    return run
