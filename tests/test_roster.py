"""Every model that claims to work has what a model needs: card, class, docstring, tests; and agrees with the roster."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from dgmbench.config.cards import Card, read_cards
from dgmbench.config.targets import locate
from dgmbench.models.contract import Model

ROOT = Path(__file__).resolve().parent.parent
CARDS = read_cards()
ROSTER = ROOT.parent / "shared" / "roster.yaml"
# the same in pairs, of other sizes or lengths, or half hidden: sets of their own, because of what else they give
PAIRS = {
    "shapes": ("shapes_poses", "shapes_frontal", "shapes_turned"),
    "digits_canvas": ("digits_canvas_sizes", "digits_canvas_occluded"),
    "bouncing_balls": ("bouncing_balls_short",),
}


def target(card: Card) -> type[Model]:
    found = locate(card.settings["_target_"], card.name)
    assert isinstance(found, type)
    assert issubclass(found, Model)
    return found


@pytest.mark.parametrize("name", CARDS)
def test_card_class_docstring_and_tests(name: str) -> None:
    card = CARDS[name]
    assert card.paper is not None
    assert card.paper.link.startswith("https://")
    assert card.tiny
    assert len(card.summary) < 90
    config = (ROOT / "configs" / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    assert len(config.splitlines()) <= 20
    cls = target(card)
    module = inspect.getmodule(cls)
    assert module is not None
    assert module.__name__.startswith(f"dgmbench.models.{card.family}.")
    text = f"{module.__doc__ or ''}\n{cls.__doc__ or ''}"
    assert re.search(r"https?://|arXiv|doi", text), "the docstring names no paper"
    assert re.search(r"log |E\[|min|max|\bsum", text), "the docstring has no formula"
    stem = module.__name__.rpartition(".")[2]
    tests = ROOT / "tests" / "models" / card.family
    assert (tests / f"test_{stem}.py").is_file() or (tests / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", CARDS)
def test_arguments_of_the_paper_live_in_the_signature_only(name: str) -> None:
    card = CARDS[name]
    parameters = inspect.signature(target(card)).parameters
    for key, value in card.settings.items():
        if key == "_target_" or not isinstance(value, bool | int | float | str):
            continue
        assert key in parameters
        assert parameters[key].default != value, f"{name}.yaml repeats the default {key}={value}"


@pytest.mark.parametrize("name", CARDS)
def test_no_model_has_an_attribute_that_makes_lightning_swap_weights(name: str) -> None:
    source = inspect.getsource(target(CARDS[name]))
    assert not re.search(r"self\.(saved_models|layer)\b", source)


@pytest.mark.skipif(not ROSTER.is_file(), reason="the roster is not part of the project")
def test_the_roster_agrees() -> None:
    rows = {}
    content = yaml.safe_load(ROSTER.read_text(encoding="utf-8"))
    for family in {card.family for card in CARDS.values()} & set(content):
        rows |= {row["name"]: {**row, "family": family} for row in content[family]}
    for name, card in CARDS.items():
        assert (name in rows) == bool(card.survey), "the survey's rows say where they stand in it, and no others"
        if not card.survey:
            continue
        row = rows[name]
        assert row["family"] == card.family
        assert card.data == row["data"] or card.data in PAIRS.get(row["data"], ())
        if "via" in row:
            assert target(card) is target(CARDS[row["via"]]), f"{name} must be a setting of {row['via']}"
