"""A suite's folder, and ``dgm bench`` in this process, so that all tests share one fork server."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dgmbench.command import main as cli

OWN = Path(__file__).parent / "own"


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def dgm_bench(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run ``dgm bench WORDS`` with the suites of this folder; its outputs go below ``tmp_path``."""

    def run(*words: str) -> Done:
        capfd.readouterr()
        code = cli.main(["bench", "--config-dir", str(OWN), *words, f"paths.outputs={tmp_path}"])
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture
def stored_cells(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """The cells in a suite's ``cells.json``."""

    def read(suite: str) -> list[dict[str, Any]]:
        return json.loads((tmp_path / "bench" / suite / "cells.json").read_text())["cells"]

    return read
