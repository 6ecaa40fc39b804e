"""README, CHANGELOG and docs stay true: what they type composes, what they import exists, and nothing is left out."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgmbench.bench.suite import expand_experiments
from dgmbench.command.going_on import ALLOWED
from dgmbench.command.main import VERBS
from dgmbench.config import complete, compose, options, rewrite
from dgmbench.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def commands() -> Iterator[tuple[str, str]]:
    """The lines of code in all pages that call ``dgm``, without their comments."""
    for page in PAGES:
        for line in re.findall(r"^ {4}dgm (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            for part in re.split(r"\s#\s.*$|&&\s*dgm ", line):
                if part.strip():
                    yield page.name, part.strip()


COMMANDS = sorted(set(commands()))


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_what_is_typed_is_a_verb_and_composes(page: str, command: str, tmp_path: Path) -> None:
    verb, *words = shlex.split(command)
    assert verb in VERBS
    if verb != "train" or "-m" in words or "--config-dir" in words:
        return
    if words[0].startswith("run="):  # composed by the run's own configuration
        keys = {override.partition("=")[0] for override in rewrite(words[1:])}
        assert keys <= set(ALLOWED)
        return
    for word in ("images", "npz", "csv"):
        if f"data={word}" in words:
            words = [w for w in words if not w.startswith("data.path=")] + [f"data.path={tmp_path}"]
    complete(compose("train", expand_experiments(words, [])))


def test_the_check_of_commands_sees_a_wrong_one() -> None:
    assert len(COMMANDS) > 50
    with pytest.raises(UserError, match="hiden"):
        complete(compose("train", ["model=rbm", "model.hiden=3"]))


def test_what_is_imported_exists() -> None:
    found = 0
    for page in PAGES:
        for module, names in re.findall(r"^from (dgmbench[\w.]*) import (.+)$", page.read_text(), re.MULTILINE):
            for name in names.split(","):
                assert hasattr(importlib.import_module(module), name.strip()), f"{page.name}: {module}.{name}"
                found += 1
    assert found > 10


@pytest.mark.parametrize("group", ["model", "data"])
def test_the_changelog_and_the_pages_name_everything(group: str) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in options(group):
        assert f"`{name}`" in text, f"no page says what {name} is"
        if group == "model":
            assert f"`{name}`" in CHANGELOG, f"the changelog does not say that {name} was added"


def test_every_page_is_linked_from_the_readme_or_a_page_that_is() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", page.read_text(encoding="utf-8"))
        todo += [(page.parent / link).resolve() for link in links]
    assert reached >= set(PAGES)


def test_the_page_of_building_blocks_is_up_to_date() -> None:
    script = ROOT / "scripts" / "building_blocks.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True, capture_output=True)


def test_the_tests_that_hold_what_reliability_promises_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    file, found = "", 0
    for path, name in re.findall(r"`([\w/]*?(?:\.py)?)::(test_\w+)`", page):
        file = path or file
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
        found += 1
    assert found > 40
