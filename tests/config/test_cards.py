"""Cards: every shipped one is valid, and a wrong one says what is wrong with it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dgmbench.bench.suite import read_suite
from dgmbench.command import listing
from dgmbench.config import complete, compose, config_dir, options
from dgmbench.config.cards import by_family, model_table_markdown, read_cards, read_data_cards
from dgmbench.errors import UserError

MODELS = options("model")


def test_every_model_has_a_card_and_every_default_data_set_exists() -> None:
    cards, data = read_cards(), read_data_cards()
    assert list(cards) == MODELS
    for card in cards.values():
        assert card.data in data
        assert len(card.summary) < 90
        assert data[card.data].source in ("embedded", "generated"), "a default data set needs no download"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_composes_with_the_data_of_its_card(name: str) -> None:
    completed = complete(compose("train", [f"model={name}"]))
    card = read_cards()[name]
    assert completed["names"]["model"] == name
    assert completed["names"]["data"] == card.data
    assert completed["model"]["_target_"].startswith(f"dgmbench.models.{card.family}.")
    assert complete(completed) == completed, "completing twice changes nothing"
    file = config_dir() / "model" / f"{name}.yaml"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 20


@pytest.mark.parametrize("name", options("data"))
def test_every_data_set_composes(name: str, tmp_path: Path) -> None:
    own = [f"data.path={tmp_path}"] if name in ("images", "npz", "csv") else []
    completed = complete(compose("train", ["model=vae", f"data={name}", *own]))
    assert completed["names"]["data"] == name


def test_cards_are_read_without_torch_and_hydra() -> None:
    code = (
        "import sys; from dgmbench.config.cards import read_cards, read_data_cards; read_cards(); read_data_cards();"
        "sys.exit(bool({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cards_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(__file__).parent.parent / "my_configs"
    paper = read_cards([own])["gaussian"].paper
    assert paper is not None
    assert paper.year == 1809
    monkeypatch.setenv("DGM_CONFIG_DIR", str(own))
    assert "gaussian" in read_cards()
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_cards(["nowhere"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "vea"}, "family=vea must be one of boltzmann"),
        ({"likelihood": "good"}, "likelihood=good must be one of exact"),
        ({"kinds": ["binry"]}, "kinds=binry must be one of"),
        ({"kinds": "binary"}, "kinds=binary must be a list"),
        ({"tiny": {"kind": "binry", "shape": [2]}}, "tiny.kind=binry must be one of"),
        ({"summary": None}, "summary=None must be text"),
        ({"paper": {"authors": "A"}}, r"lacks 'year'.*lacks 'title'.*lacks 'link'.*3 things are wrong"),
        (
            {"paper": {"authors": "A", "yaer": 2014, "title": "T", "link": "L", "year": "2014"}},
            "did you mean year.*year=2014 must be a whole",
        ),
        (
            {"family": "vea", "likelihood": "good", "kinds": ["binry"], "summry": "s"},
            "summry.*vea.*good.*binry.*4 things",
        ),
        ({"famly": "vae"}, "did you mean family"),
    ],
)
def test_wrong_cards(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = yaml.safe_load((config_dir() / "model" / "vae.yaml").read_text(encoding="utf-8"))
    content["card"] |= change
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_cards([tmp_path])
    assert "mine.yaml" in str(caught.value)


def test_a_file_of_ones_own_stands_before_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    content = yaml.safe_load((config_dir() / "model" / "vae.yaml").read_text(encoding="utf-8"))
    content["card"]["summary"] = "mine"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vae.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert read_cards([tmp_path])["vae"].summary == "mine"
    assert read_cards()["vae"].summary != "mine"


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    content = yaml.safe_load((config_dir() / "model" / "vae.yaml").read_text(encoding="utf-8"))
    content["card"]["family"] = "score_based"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    cards = read_cards([tmp_path])
    assert cards["mine"].family == "score_based"
    assert list(by_family(cards))[-1] == "score_based"
    assert "| **Score based** | | | | |\n| `mine` |" in model_table_markdown(cards)
    assert "Score based" in listing.listing("model", [tmp_path])
    assert "Score based" in listing.listing("model=mine", [tmp_path])
    (tmp_path / "suite").mkdir()
    suite = {"title": "t", "cells": [{"models": ["mine", "to_come"], "family": "score_based"}]}
    (tmp_path / "suite" / "own.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")
    assert read_suite("own", [tmp_path]).blocks[0].family == "score_based"


def test_a_missing_card_and_broken_yaml(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "mine.yaml"
    for text, message in (("_target_: a.B", "has no card"), ("a: [1", "not valid YAML"), ("- 1", "must be a mapping")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_cards([tmp_path])


def test_the_table_has_every_model_once() -> None:
    table = model_table_markdown()
    rows = [line.split("|")[1].strip() for line in table.splitlines()]
    assert [row.strip("`") for row in rows if row.startswith("`")] == [
        card.name for group in by_family(read_cards()).values() for card in group
    ]


def test_the_readme_table_script(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "readme_table.py"
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- models:begin -->\nold\n<!-- models:end -->\nafter\n", encoding="utf-8")

    def run(action: str) -> int:
        command = [sys.executable, str(script), action, "--readme", str(readme)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert run("--check") == 1
    assert run("--write") == 0
    assert run("--check") == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- models:begin -->\n| model |")
    assert text.endswith("|\n<!-- models:end -->\nafter\n")
