"""A suite of the survey: its rows in its order, what it says of them beside what was measured."""

import csv
import re
from collections.abc import Callable
from typing import Any

import pytest

from dgmbench.bench.report import write_report
from dgmbench.bench.report.survey import FILE, SAID, entry, rows_of_tables
from dgmbench.bench.suite import read_suite
from dgmbench.config.bounded import load_yaml
from dgmbench.config.cards import read_cards

TABLES = load_yaml(FILE.read_bytes(), FILE)["tables"]
ROWS = [(table, name, row) for table, content in TABLES.items() for name, row in content["rows"].items()]


def test_the_tables_are_whole_and_belong_to_the_suites_that_name_them() -> None:
    assert {table: len(content["rows"]) for table, content in TABLES.items()} == {1: 24, 2: 24, 3: 25}
    for table in TABLES:
        planned = {model for block in read_suite(f"table{table}").blocks for model in block.models}
        assert set(TABLES[table]["rows"]) <= planned
    assert len(rows_of_tables()) == len(ROWS)  # no model stands in two tables


@pytest.mark.parametrize(("table", "model", "row"), ROWS, ids=[model for _, model, _ in ROWS])
def test_a_row_says_what_its_table_has_columns_for(table: int, model: str, row: dict[str, str]) -> None:
    columns = {1: {"changes", "aim"}, 2: {"aim"}, 3: {"pictures", "largest"}}[table] | {"name", "method"}
    assert set(row) == (
        columns if model != "srgan" else {"name", "method"}
    )  # of whose pictures the survey says nothing
    assert all(text and text == text.strip() for text in row.values())
    assert row.get("changes", "data") in ("training", "activation", "structure", "data")
    assert re.fullmatch(r"(\d+)×\1", row.get("largest", "1×1"))


def test_what_no_table_lists_is_told_by_its_card() -> None:
    cards = read_cards()
    listed, told = entry("iwae", cards["iwae"]), entry("vq_vae", cards["vq_vae"])
    assert (listed.where, listed.name, listed.said["likelihood"]) == ("table 2, row 9", "IWAE", "lower bound")
    assert (told.where, told.said["method"]) == ("section 3", cards["vq_vae"].summary)
    assert entry("glow", cards["glow"]).part == "Section 5"
    nobody = entry("my_own", None)
    assert (nobody.part, nobody.said) == ("Beyond the survey", {})
    order = sorted(cards, key=lambda name: entry(name, cards[name]).order)
    assert order.index("pgbm") < order.index("cdbm") < order.index("rbm") < order.index("cvae") < order.index("vae")
    assert order.index("stylegan") < order.index("gan") < order.index("nice") < order.index("glow") < order.index("gsn")


@pytest.fixture
def survey(bench: Any, number: Callable) -> Any:
    """Four models whose order by name, by number and by the survey differ."""
    bench.survey = "3, table 2"
    for model, family, value in (("vae", "vae", -80.0), ("iwae", "vae", -90.0), ("cvae", "vae", -100.0)):
        run = bench.run(model, metrics={"elbo": number(value), "energy_distance": number(0.5, kind="estimate")})
        bench.cell(model, run=run.name, status="done", family=family)
    bench.cell("adgm", status="failed", reason="it had 100% of β")
    return bench


def test_markdown_latex_and_csv_have_the_surveys_order(survey: Any) -> None:
    write_report(survey.folder)
    text = (survey.folder / "report.md").read_text()
    table, beside = text.partition("## Table 2: Important variational autoencoders")[2].split("##")[:2]
    names = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| table 2")]
    assert names == ["CVAE (cvae)", "ADGM (adgm)", "IWAE (iwae)"]
    iwae = next(line for line in table.splitlines() if "IWAE" in line)
    for part in (
        "table 2, row 9",
        "lower bound",
        "a posterior nearer to the true one",
        "-90.00 (1)",
        "elbo, lower bound",
    ):
        assert part in iwae
    assert "its pictures" not in table  # that column is the third table's
    assert "it had 100% of β" in table
    assert beside.startswith(" Section 3, beside table 2")
    assert "| section 3 | vae |" in beside
    latex = (survey.folder / "report.tex").read_text()
    first = latex.partition(r"\caption{Table 2: Important variational autoencoders}")[2].partition(r"\end{longtable}")[
        0
    ]
    assert r"100\% of $\beta$" in first
    heads, *rows = (line for line in first.splitlines() if line.endswith(r"\\") and "&" in line)
    assert len(rows) == 3
    assert {line.count(" & ") for line in (heads, *rows)} == {heads.count(" & ")}
    columns = re.search(r"begin\{longtable\}\{(.*)\}$", latex, re.MULTILINE)
    assert columns
    assert len(re.sub(r">\{.*?\}p\{3cm\}", "p", columns[1])) == heads.count(" & ") + 1
    with (survey.folder / "report.survey.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["model"] for row in found] == ["cvae", "adgm", "iwae", "vae"]
    assert set(SAID) <= set(found[0])
    assert (found[2]["table"], found[2]["row"], found[2]["value"], found[2]["energy_distance"]) == (
        "2",
        "9",
        "-90.0",
        "0.5",
    )
    assert (found[1]["value"], found[1]["status"]) == ("", "failed")
    assert (found[3]["table"], found[3]["section"]) == ("", "3")


def test_any_other_suite_has_none_of_it(survey: Any) -> None:
    cells = survey.folder / "cells.json"
    assert '"survey": "3, table 2"' in cells.read_text()
    cells.write_text(cells.read_text().replace('"survey": "3, table 2"', '"survey": null'))
    page = write_report(survey.folder).read_text()
    assert "As in the survey" not in page
    assert '"survey":[]' in page
    assert not (survey.folder / "report.survey.csv").exists()
    assert "in the survey" not in (survey.folder / "report.md").read_text()
