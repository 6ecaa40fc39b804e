"""The lists of one-line mutants fit the code as it stands; none is tried, ``python scripts/mutants.py`` does that."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from dgmbench.config.cards import read_cards

ROOT = Path(__file__).parents[1]
SPINE = ("bench", "config", "data", "evaluation", "nn", "runs", "training", "verify")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # where a dataclass looks for its own module
    spec.loader.exec_module(module)
    return module


def test_every_mutant_applies_once_and_names_tests(script: ModuleType) -> None:
    mutants = script.read()
    assert len(mutants) >= 100
    assert [f"{mutant}: {why}" for mutant in mutants if (why := mutant.wrong())] == []
    twice = Counter((mutant.file, mutant.old, mutant.new) for mutant in mutants)
    assert [key for key, count in twice.items() if count > 1] == []


def test_entries_have_the_four_keys(script: ModuleType) -> None:
    for file in script.LISTS.glob("*.yaml"):
        for entry in yaml.safe_load(file.read_text(encoding="utf-8")):
            assert set(entry) == {"file", "old", "new", "tests"}, f"{file.name}: {entry}"


def test_every_model_and_every_room_is_there(script: ModuleType) -> None:
    counts = Counter(mutant.file for mutant in script.read())
    targets = {yaml.safe_load((ROOT / f"configs/model/{name}.yaml").read_text())["_target_"] for name in read_cards()}
    files = {f"src/{target.rpartition('.')[0].replace('.', '/')}.py" for target in targets}
    assert {file: counts[file] for file in files if counts[file] < 2} == {}
    assert [room for room in SPINE if not any(f"src/dgmbench/{room}/" in file for file in counts)] == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"old": "no such line"}, "stands 0 times"),
        ({"old": "return"}, "times in it, not once"),
        ({"new": "def ("}, "cannot be read"),
        ({"file": "src/dgmbench/nothing.py"}, "no such file"),
        ({"tests": ("tests/test_mutants.py::test_nothing",)}, "no such tests"),
        ({"tests": ()}, "none are named"),
    ],
)
def test_what_does_not_apply_says_why(script: ModuleType, change: dict[str, object], why: str) -> None:
    sound = {"part": "spine", "file": "src/dgmbench/training/schedule.py", "old": "return (update + 1) / self.warmup"}
    sound |= {"new": "return update / self.warmup", "tests": ("tests/test_mutants.py",)}
    assert script.Mutant(**sound).wrong() is None
    assert why in script.Mutant(**sound | change).wrong()


def test_a_mutant_lives_in_a_copy(script: ModuleType) -> None:
    mutant = next(mutant for mutant in script.read() if mutant.file.startswith("src/"))
    before = (ROOT / mutant.file).read_text(encoding="utf-8")
    with script.copy_of_source(mutant) as folder:
        assert (folder / mutant.file).read_text(encoding="utf-8") == before.replace(mutant.old, mutant.new) != before
        copied = folder / "configs" / "train.yaml"
        assert copied.samefile(ROOT / "configs" / "train.yaml") is False
    assert (ROOT / mutant.file).read_text(encoding="utf-8") == before
