"""The README's worked example is a real one: its code and its commands run as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dgmbench.command import main as cli
from dgmbench.config.cards import model_table_markdown

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Adding a model")[2].partition("## Adding data")[0]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert found
    return found[1]


def test_the_example_has_at_most_forty_lines() -> None:
    lines = [line for language in ("python", "yaml") for line in block(language).splitlines() if line.strip()]
    assert len(lines) <= 40


def test_the_example_verifies_and_trains(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "my_models"
    (own / "model").mkdir(parents=True)
    (own / "mixture.py").write_text(block("python"), encoding="utf-8")
    (own / "model" / "mixture.yaml").write_text(block("yaml"), encoding="utf-8")
    commands = re.findall(r"^    dgm (.+)$", SECTION, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["verify", "train"]
    for command in commands:
        quick = ["trainer.budget=15ep", "protocol=quick", f"paths.outputs={tmp_path}"] if "train" in command else []
        done = subprocess.run(
            [sys.executable, "-m", "dgmbench", *command.split(), *quick],
            cwd=tmp_path, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "log_likelihood" in done.stdout
    assert Path(done.stdout.splitlines()[-1]).is_dir()


def test_the_plain_python_example_runs() -> None:
    code = README.partition("Models are plain modules")[2]
    found = re.search(r"```python\n(.*?)```", code, re.DOTALL)
    assert found
    names: dict = {}
    exec(found[1], names)
    assert names["x"].shape == (16, 1, 8, 8)
    assert names["nats"].shape == (16,)


def test_the_table_of_models_is_up_to_date() -> None:
    assert model_table_markdown() in README


def test_the_pages_that_are_linked_exist() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("verb", ["train", "evaluate", "sample", "verify", "list", "rerun"])
def test_every_verb_of_the_readme_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"dgm {verb}" in README or verb == "rerun"
    with pytest.raises(SystemExit) as done:
        cli.main([verb, "--help"])
    assert done.value.code == 0
    assert f"  dgm {verb}" in capsys.readouterr().out
