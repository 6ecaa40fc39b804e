"""The rooms of the house: each uses the ones below it and none above; no file is too long to be read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dgmbench

PACKAGE = Path(dgmbench.__file__).parent
ROOMS = ["command", "bench", "runs", "verify", "evaluation", "training", "models", "nn", "data", "config"]
GROUND = ["errors", "versions", "source", "system"]
MOST_LINES = 400
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """The modules of the package that a file imports, anywhere in it, also for type checkers only."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(dotted: str) -> str | None:
    """``config`` of ``dgmbench.config.files.options``; None for what belongs to no room."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "dgmbench" and len(parts) > 1 and parts[1] in (*ROOMS, *GROUND) else None


def test_every_file_is_in_a_room() -> None:
    loose = {file.stem for file in PACKAGE.glob("*.py")}
    assert loose == {"__init__", "__main__", *GROUND}
    assert {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("name", [*ROOMS, *GROUND])
def test_imports_go_down(name: str) -> None:
    order = [*ROOMS, *GROUND]
    files = [PACKAGE / f"{name}.py"] if name in GROUND else sorted((PACKAGE / name).rglob("*.py"))
    climbing = {
        f"{file.relative_to(PACKAGE)} imports {dotted}"
        for file in files
        for dotted in imports(file)
        if (other := room(dotted)) is not None and order.index(other) < order.index(name)
    }
    assert not climbing


def test_the_test_sees_a_climb(tmp_path: Path) -> None:
    file = tmp_path / "low.py"
    file.write_text("def f():\n    from dgmbench.command.main import main\n\n\nimport dgmbench.bench.suite\n")
    assert sorted(map(str, map(room, imports(file)))) == ["bench", "command"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_is_too_long(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines: split it by what it is about"
