"""The worked example of docs/data.md works, and its table names every set."""

import hashlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dgmbench.data import load

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "data.md").read_text()


def block(language: str, containing: str) -> str:
    (found,) = [b for b in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if containing in b]
    return found


def test_the_reader_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "letters").mkdir()
    table = np.random.RandomState(0).randint(2, size=(100, 129))
    np.save(tmp_path / "letters" / "letters.npy", table)
    checksum = hashlib.sha256((tmp_path / "letters" / "letters.npy").read_bytes()).hexdigest()
    module: Any = types.ModuleType("my_package.letters")
    exec(block("python", "class Letters").replace("<64 digits>", checksum), module.__dict__)
    monkeypatch.setitem(sys.modules, "my_package", types.ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.letters", module)
    data = load(yaml.safe_load(block("yaml", "name: letters")), tmp_path)
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 80, "valid": 10, "test": 10}
    assert isinstance(data.splits["train"].x, np.memmap)


def test_the_table_names_every_set() -> None:
    table = PAGE.split("## The sets")[1].split("##")[0]
    for path in (CHECKOUT / "configs" / "data").glob("*.yaml"):
        assert f"`{path.stem}`" in table
        card = yaml.safe_load(path.read_text())["card"]
        assert card["summary"]
        assert card["source"] in ("embedded", "generated", "download", "user")
        assert len(card["summary"]) < 90
