"""Suites and experiments: what their YAML may say, and what is said about the rest."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dgmbench.bench.suite import expand_experiments, merge, read_experiment, read_suite, value_of
from dgmbench.config import complete, compose, options
from dgmbench.errors import UserError

OWN = Path(__file__).parent / "own"
BLOCK = {"models": ["made"]}


def suite_error(folder: Path, content: Any) -> str:
    (folder / "suite").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / "suite" / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_suite("mine", [folder])
    assert str(folder / "suite" / "mine.yaml") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cells": [BLOCK]}, ["title is missing"]),
        ({"title": 3, "cells": [BLOCK]}, ["title=3", "text"]),
        ({"title": "t"}, ["cells must be a list"]),
        ({"title": "t", "cells": []}, ["cells must be a list"]),
        ({"title": "t", "cels": [BLOCK]}, ["did you mean cells"]),
        ({"title": "t", "survey": 5, "cells": [BLOCK]}, ["survey=5"]),
        ({"title": "t", "cells": ["made"]}, ["cells[0]", "must be a block"]),
        ({"title": "t", "cells": [BLOCK, {"modles": ["vae"]}]}, ["cells[1].modles", "did you mean models"]),
        ({"title": "t", "cells": [{"seeds": [0]}]}, ["cells[0]", "either models or experiments"]),
        ({"title": "t", "cells": [{"models": ["made"], "experiments": ["x"]}]}, ["either models or experiments"]),
        ({"title": "t", "cells": [{"experiments": ["x"], "data": ["digits"]}]}, ["cells[0].data"]),
        ({"title": "t", "cells": [{**BLOCK, "seeds": 3}]}, ["cells[0].seeds=3", "[0, 1, 2]"]),
        ({"title": "t", "cells": [{**BLOCK, "seeds": [True]}]}, ["cells[0].seeds"]),
        ({"title": "t", "cells": [{**BLOCK, "budget": "3"}]}, ["cells[0].budget=3 has no unit"]),
        ({"title": "t", "cells": [{**BLOCK, "overrides": "protocol=demo"}]}, ["cells[0].overrides", "list"]),
        ({"title": "t", "cells": [{**BLOCK, "overrides": ["protocol"]}]}, ["cells[0].overrides"]),
        ({"title": "t", "cells": [{**BLOCK, "family": "vea"}]}, ["cells[0].family", "did you mean vae"]),
        ({"title": "t", "cells": [{"models": [3]}]}, ["cells[0].models=[3]"]),
        ({"title": "t", "cells": [{"suites": ["mine"]}]}, ["part of itself (mine > mine)"]),
        ({"title": "t", "cells": [{"suites": ["demo"], "models": ["made"]}]}, ["cells[0].models", "no key"]),
        ("title: [", ["not valid YAML"]),
        ("- a", ["must be a mapping"]),
    ],
)
def test_a_malformed_suite_names_file_and_key(content: Any, words: list[str], tmp_path: Path) -> None:
    message = suite_error(tmp_path, content)
    assert all(word in message for word in words), message


def test_a_suite_of_suites_has_all_their_blocks_with_its_own_settings_on_top(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    blocks = [{"suites": ["table2", "section7"], "seeds": [5], "budget": "3ba", "overrides": ["protocol=glance"]}]
    (tmp_path / "suite" / "mine.yaml").write_text(yaml.safe_dump({"title": "t", "cells": [*blocks, BLOCK]}))
    found = read_suite("mine", [tmp_path]).blocks
    parts = [*read_suite("table2").blocks, *read_suite("section7").blocks]
    assert [block.models for block in found] == [*(block.models for block in parts), ("made",)]
    assert [block.family for block in found[:-1]] == [block.family for block in parts]
    for block, part in zip(found, parts, strict=False):
        settings = merge([*block.shared, *block.overrides])
        assert {"trainer.budget=3ba", "protocol=glance"} <= set(settings)
        assert set(part.shared) <= set(settings)
        assert block.seeds == (5,)
    assert found[-1].seeds == (0,)


def test_the_survey_is_one_suite() -> None:
    models = [model for block in read_suite("survey").blocks for model in block.models]
    parts = [read_suite(name).blocks for name in ("table1", "table2", "table3", "section5", "section6", "section7")]
    assert models == [model for blocks in parts for block in blocks for model in block.models]
    assert len(models) == len(set(models)) == 136
    assert {block.seeds for block in read_suite("survey").blocks} == {(0,)}


def test_an_unknown_suite_or_experiment_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no suite 'dmo'; did you mean demo"):
        read_suite("dmo")
    with pytest.raises(UserError, match="no experiment 'burda2016_vae'; did you mean burda2016_vae_mnist"):
        read_experiment("burda2016_vae")


def test_every_shipped_suite_reads() -> None:
    assert {"demo", "table1", "table2", "table3", "section5", "section6", "section7"} <= set(options("suite"))
    for name in options("suite"):
        suite = read_suite(name)
        assert suite.title
        for block in suite.blocks:
            for experiment in block.experiments:
                read_experiment(experiment)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_its_metric_is_measured_that_way(name: str) -> None:
    completed = complete(compose("train", expand_experiments([f"experiment={name}"])))
    paper = read_experiment(name).paper
    assert completed["names"]["model"] in name
    if paper["metric"].startswith("iw_bound_k"):
        assert completed["protocol"]["k"] == int(paper["metric"].removeprefix("iw_bound_k"))


def test_settings_beside_an_experiment_win_wherever_they_stand() -> None:
    words = ["trainer.budget=3ba", "experiment=gauss1809_made_digits", "seed=4"]
    for order in (words, words[::-1]):
        found = expand_experiments(order, [OWN])
        assert value_of(found, "trainer.budget") == "3ba"
        assert value_of(found, "seed") == "4"
        assert value_of(found, "model") == "made"
    assert expand_experiments(["model=vae", "model=made"]) == ["model=vae", "model=made"]


def test_merge_keeps_the_last_value_at_the_first_place() -> None:
    assert merge(["a=1", "b=2", "+a=3", "model/estimator=cd", "model.estimator=pcd"]) == [
        "+a=3",
        "b=2",
        "model.estimator=pcd",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"paper": None}, "paper is missing"),
        ({"overrides": ["data=digits"]}, "must choose a model"),
        ({"papr": {}}, "did you mean paper"),
    ],
)
def test_a_malformed_experiment_names_file_and_key(change: dict, words: str, tmp_path: Path) -> None:
    content = yaml.safe_load((OWN / "experiment" / "gauss1809_made_digits.yaml").read_text()) | change
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(UserError, match=words) as caught:
        read_experiment("mine", [tmp_path])
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("value", "high"), ("unit", 3), ("metric", None), ("valeu", 1)])
def test_a_malformed_paper_names_its_key(key: str, value: Any, tmp_path: Path) -> None:
    content = yaml.safe_load((OWN / "experiment" / "gauss1809_made_digits.yaml").read_text())
    content["paper"][key] = value
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"paper\.{key}"):
        read_experiment("mine", [tmp_path])
