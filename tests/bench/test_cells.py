"""From a suite to its cells."""

import shlex
from pathlib import Path

import pytest
import yaml

from dgmbench.bench.cells import Cell, check_one_process, choose, make_cells
from dgmbench.bench.suite import read_suite
from dgmbench.errors import UserError

OWN = Path(__file__).parent / "own"


def cells_of(tmp_path: Path, blocks: list[dict], *extra: str, **top: object) -> list[Cell]:
    (tmp_path / "suite").mkdir(exist_ok=True)
    (tmp_path / "suite" / "mine.yaml").write_text(yaml.safe_dump({"title": "t", "cells": blocks, **top}))
    folders = [tmp_path, OWN]
    return make_cells(read_suite("mine", folders), Path("/out"), overrides=extra, config_dirs=folders)


def test_models_times_data_times_seeds_in_order(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path,
        [{"models": ["vae", "made"], "data": ["digits_binary", "digits"], "seeds": [0, 1], "budget": "3ba"}],
        overrides=["protocol=demo"],
    )
    assert [cell.id for cell in cells] == [
        f"{model}-{data}-s{seed}"
        for model in ("vae", "made")
        for data in ("digits_binary", "digits")
        for seed in (0, 1)
    ]
    assert cells[0].overrides == [
        "model=vae", "data=digits_binary", "seed=0", "protocol=demo", "trainer.budget=3ba",
    ]  # fmt: skip
    assert cells[0].family == "vae"
    words = shlex.split(cells[0].command)
    assert words[:2] == ["dgm", "train"]
    assert words[-1] == "paths.outputs=/out"


def test_the_same_cell_appears_once_and_others_of_its_name_get_a_number(tmp_path: Path) -> None:
    blocks: list[dict] = [{"models": ["made"]}, {"models": ["made"], "data": ["digits_binary"]}]
    blocks += [{"models": ["made"], "budget": "3ba"}]
    cells = cells_of(tmp_path, blocks)
    assert [cell.id for cell in cells] == ["made-digits_binary-s0", "made-digits_binary-s0-2"]
    assert cells[1].overrides[-1] == "trainer.budget=3ba"


def test_what_is_not_built_is_there_once_with_its_reason(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path,
        [{"family": "gan", "models": ["never"], "seeds": [0, 1]}, {"models": ["made"], "data": ["never_data"]}],
    )
    assert [(cell.id, cell.status) for cell in cells] == [
        ("never-default-s0", "not built"),
        ("made-never_data-s0", "not built"),
    ]
    assert cells[0].family == "gan"
    assert cells[0].reason == "there is no model=never yet"
    assert cells[1].reason == "there is no data=never_data yet"


def test_settings_of_the_command_line_win(tmp_path: Path) -> None:
    block = {"models": ["made"], "seeds": [0], "budget": "3ba", "overrides": ["optimizer.lr=1"]}
    cells = cells_of(tmp_path, [block], "seed=5,6", "data=digits", "trainer.budget=9ba")
    assert [cell.id for cell in cells] == ["made-digits-s5", "made-digits-s6"]
    assert cells[0].overrides == ["model=made", "data=digits", "seed=5", "trainer.budget=9ba", "optimizer.lr=1"]
    with pytest.raises(UserError, match="seed=x"):
        cells_of(tmp_path, [block], "seed=x")


def test_an_experiment_carries_its_paper_and_says_when_it_was_changed(tmp_path: Path) -> None:
    block = {"experiments": ["gauss1809_made_digits"], "seeds": [3]}
    (cell,) = cells_of(tmp_path, [block])
    assert cell.id == "made-digits_binary-s3-gauss1809_made_digits"
    assert cell.experiment == "gauss1809_made_digits"
    assert cell.paper is not None
    assert cell.paper["value"] == -25.0
    assert cell.paper["differs"] is None
    (cell,) = cells_of(tmp_path, [block], "trainer.budget=1ba")
    assert cell.paper is not None
    assert "trainer.budget=1ba" in cell.paper["differs"]
    assert "trainer.budget=1ba" in cell.overrides
    assert "trainer.budget=2ba" not in cell.overrides


def test_an_experiment_stands_above_the_suites_settings(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, [{"experiments": ["gauss1809_made_digits"]}], overrides=["trainer.budget=50ba"])
    assert "trainer.budget=2ba" in cell.overrides


def differs(cell: Cell) -> str | None:
    assert cell.paper is not None
    return cell.paper["differs"]


def test_settings_of_the_suite_make_an_experiment_differ(tmp_path: Path) -> None:
    block = {"experiments": ["gauss1809_made_digits"]}
    (cell,) = cells_of(tmp_path, [block], overrides=["optimizer.lr=1", "trainer.budget=50ba"])
    assert differs(cell) == "settings were changed: optimizer.lr=1"
    (cell,) = cells_of(tmp_path, [{**block, "budget": "2ba"}], overrides=["protocol=quick"])
    assert differs(cell) is None, "the experiment says the same"


def test_settings_that_cannot_change_a_number_make_no_difference(tmp_path: Path) -> None:
    block = {"experiments": ["gauss1809_made_digits"], "overrides": ["hardware.threads=1", "trainer.samples=9ep"]}
    words = ["paths.data=/here", "hardware=gpu", "+hardware.compile=true", "logger=none", "logger.name=x"]
    words += ["trainer.progress=false", "trainer.checkpoint=9s", "executor.slots=2"]
    (cell,) = cells_of(tmp_path, [block], *words)
    assert differs(cell) is None
    assert "paths.data=/here" in cell.overrides
    (cell,) = cells_of(tmp_path, [block], "hardware.precision=bf16", "protocol.k=3", *words)
    assert differs(cell) == "settings were changed: hardware.precision=bf16 protocol.k=3"


def test_settings_of_the_command_line_are_for_the_chosen_models(tmp_path: Path) -> None:
    folders = [tmp_path, OWN]
    cells_of(tmp_path, [{"models": ["made", "vae"]}])
    found = make_cells(
        read_suite("mine", folders),
        Path("/out"),
        overrides=["seed=5", "protocol.k=5"],
        models="vae",
        config_dirs=folders,
    )
    assert [cell.id for cell in found] == ["made-digits_binary-s0", "vae-digits_binary-s5"]
    assert ["protocol.k=5" in cell.overrides for cell in found] == [False, True]


def test_data_of_the_command_line_may_be_several_and_must_exist(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, [{"models": ["made"]}], "data=digits,digits_binary")
    assert [cell.id for cell in cells] == ["made-digits-s0", "made-digits_binary-s0"]
    for words in ("data=digit", "data=digits_binary,digit"):
        with pytest.raises(UserError, match="no data 'digit'; did you mean digits"):
            cells_of(tmp_path, [{"models": ["made"]}], words)


@pytest.mark.parametrize(
    "text", ["hardware.devices=2", "hardware.devices=all", "+hardware.nodes=2", "hardware=multi_gpu"]
)
def test_several_processes_a_cell_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a benchmark runs each cell in one"):
        check_one_process(cells_of(tmp_path, [{"models": ["made"]}], text), [OWN])
    with pytest.raises(UserError, match="a benchmark runs each cell in one"):
        check_one_process(cells_of(tmp_path, [{"models": ["made"]}], overrides=[text]), [OWN])
    check_one_process(cells_of(tmp_path, [{"models": ["made"]}], "hardware=multi_gpu", "hardware.devices=1"), [OWN])


def test_choosing_models(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, [{"models": ["made", "vae", "gan"]}])
    assert [cell.model for cell in choose(cells, "gan,made")] == ["made", "gan"]
    with pytest.raises(UserError, match="did you mean made"):
        choose(cells, "mad")
