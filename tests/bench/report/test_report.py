"""What a report says: read back from its files with parsers, never compared as text."""

import base64
import csv
import fcntl
import gzip
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dgmbench.bench.report import index, write_report, write_report_with_notes
from dgmbench.bench.report.curves import POINTS, read_curves
from dgmbench.bench.report.index import INDEX
from dgmbench.bench.report.ledger import read_ledger
from dgmbench.bench.report.numbers import group_cells, metric_order, rounded
from dgmbench.bench.report.pictures import find_picture, picture_uri, picture_uris
from dgmbench.bench.report.settings import settings_key
from dgmbench.command.main import main
from dgmbench.errors import UserError


class Elements(html.parser.HTMLParser):
    """All elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") or "" if tag == "script" else ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def page_of(folder: Path) -> tuple[Elements, dict[str, Any]]:
    page = Elements((folder / "report.html").read_text(encoding="utf-8"))
    return page, json.loads(page.scripts["payload"])


def markdown_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the main table."""
    return [row for row in all_markdown_rows(folder) if OURS in row]


def all_markdown_rows(folder: Path) -> list[dict[str, str]]:
    rows, titles = [], None
    for line in (folder / "report.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            titles = None
            continue
        texts = [text.strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]]
        if titles is None:
            titles = texts
        elif not set(texts[0]) <= set("-:"):
            assert len(texts) == len(titles), line
            rows.append(dict(zip(titles, texts, strict=True)))
    return rows


OURS = "ours: mean ± sd (seeds)"


def test_columns_begin_with_what_says_most_and_end_with_other_checkpoints(
    bench: Any, number: Callable[..., dict[str, Any]]
) -> None:
    names = ["energy_distance", "fd_classifier", "elbo@final", "iw_bound_k10_bits_per_dim", "iw_bound_k10", "elbo"]
    for model, some in (("vae", names), ("gan", names[:2]), ("wgan", names[:2])):
        run = bench.run(model, metrics={name: number(1.0) for name in some})
        bench.cell(model, run=run.name, status="done")
    found = metric_order(group_cells(read_ledger(bench.folder)))
    assert found == [
        "iw_bound_k10", "elbo", "energy_distance", "fd_classifier", "iw_bound_k10_bits_per_dim", "elbo@final"
    ]  # fmt: skip
    write_report(bench.folder)
    assert page_of(bench.folder)[1]["metricNames"] == found


def test_the_overview_has_a_line_for_each_model_the_best_first(bench: Any, number: Callable) -> None:
    def lower(value: float) -> dict[str, Any]:
        return number(value) | {"direction": "lower", "kind": "estimate"}

    exact = number(-21.5) | {"kind": "exact"}
    for model, metrics in {
        "gan": {"fd_classifier": lower(3.0), "fd_classifier_inf": lower(2.0), "prediction_mse@valid": lower(1.0)},
        "better_gan": {"fd_classifier": lower(0.5), "classification_error": lower(0.1)},
        "vae": {
            "elbo": number(-22.5),
            "iw_bound_k10": number(-22.0),
            "iw_bound_k50": number(-21.8),
            "mig": number(0.2),
        },
        "flow": {"log_likelihood": exact, "log_likelihood@final": number(-9.0), "fd_classifier": lower(1.0)},
        "broken": {"elbo": number(0.0) | {"value": None}},
    }.items():
        for seed in range(2):
            bench.cell(model, run=bench.run(model, seed=seed, metrics=metrics).name, status="done", seed=seed)
    bench.cell("planned")
    write_report(bench.folder)
    rows = [row for row in all_markdown_rows(bench.folder) if OURS not in row]
    assert [row["model"] for row in rows] == ["flow", "vae", "better_gan", "gan", "broken", "planned"]
    assert [row["likelihood (nats)"] for row in rows[:4]] == ["-21.50 ± 0.00 (2)", "-21.80 ± 0.00 (2)", "", ""]
    assert rows[1]["which, kind"] == "iw_bound_k50, lower bound"
    assert rows[0]["which, kind"] == "log_likelihood, exact"
    assert rows[4]["likelihood (nats)"] == "2 of 2 values are not finite, so there is no mean"
    assert "fd_classifier_inf" not in rows[0]
    assert [row["beside"].split(" ")[0] for row in rows[:4]] == ["", "mig", "classification_error", ""]
    assert rows[0]["examples seen"] == "75500"


def test_all_four_files_and_the_path(rich_bench: Any) -> None:
    assert write_report(rich_bench.folder) == rich_bench.folder / "report.html"
    written = {path.name for path in rich_bench.folder.glob("report.*")}
    assert written == {"report.html", "report.md", "report.tex", "report.csv", INDEX}
    assert not list(rich_bench.folder.glob(".*.tmp"))


def test_mean_and_spread_over_seeds_beside_the_published_value(rich_bench: Any) -> None:
    write_report(rich_bench.folder)
    (row,) = [row for row in markdown_rows(rich_bench.folder) if (row["model"], row["metric"]) == ("vae", "elbo")]
    assert row[OURS] == "-91.0 ± 1.0 (3)"
    assert row["published"] == "-91.5"
    assert row["difference"] == "+0.5 (within tolerance)"
    assert row["same protocol?"] == "yes"
    assert row["kind"] == "lower bound"


@pytest.mark.parametrize(
    ("paper", "difference", "same", "note"),
    [
        ({"protocol": {"split": "test", "k": 5000}}, "+1.50 (outside tolerance)", "no", "k: published 5000, ours 50"),
        ({"protocol": {"k": 50}, "differs": "fewer epochs"}, "+1.50 (outside tolerance)", "no", "fewer epochs"),
        ({"protocol": "5,000 samples", "differs": "fewer epochs"}, "+1.50 (outside tolerance)", "no", "fewer epochs"),
        ({"protocol": "5,000 samples", "differs": None}, "+1.50 (outside tolerance)", "as stated", "5,000 samples"),
        ({"protocol": None, "tolerance": None}, "+1.50", "not stated", ""),
        ({"unit": "bits/dim"}, "", "not stated", "the published value is in bits/dim, ours in nats"),
        ({"value": None}, "", "not stated", "no published value"),
        ({"metric": "fid"}, "", "", "the finished runs have no metric 'fid'"),
    ],
)
def test_published_values(bench: Any, number: Callable, paper: dict, difference: str, same: str, note: str) -> None:
    run = bench.run(metrics={"elbo": number(-90.0)})
    base = {"value": -91.5, "unit": "nats", "metric": "elbo", "tolerance": 1.0}
    bench.cell("vae", run=run.name, status="done", paper={**base, **paper})
    write_report(bench.folder)
    (row,) = [row for row in markdown_rows(bench.folder) if row["metric"] == paper.get("metric", "elbo")]
    assert (row["difference"], row["same protocol?"]) == (difference, same)
    assert note in row["note"]


def test_protocols_are_never_mixed_silently(bench: Any, number: Callable) -> None:
    bench.run(seed=0, metrics={"elbo": number(-90.0)})
    bench.run(seed=1, metrics={"elbo": number(-92.0)})
    bench.run(seed=2, metrics={"elbo": number(-50.0, "aaaa0002")})
    _, notes = write_report_with_notes(bench.folder)
    (note,) = notes
    assert "elbo on digits_binary was measured under 2 protocols" in note
    assert "A = aaaa0001 (2 cells), B = aaaa0002 (1 cells); they differ in k" in note
    rows = {row["protocol"]: row[OURS] for row in markdown_rows(bench.folder)}
    assert rows == {"aaaa0001 (A)": "-91.0 ± 1.4 (2)", "aaaa0002 (B)": "-50.00 (1)"}
    _, data = page_of(bench.folder)
    assert {(m[4], m[5]) for m in data["measures"]} == {("aaaa0001", "A"), ("aaaa0002", "B")}


def test_a_run_measured_under_two_protocols_has_both_numbers(bench: Any, number: Callable) -> None:
    for seed, value in enumerate((-90.0, -92.0)):
        late, early = number(value, "aaaa0001"), number(value + 40, "aaaa0002", note="beware")
        bench.run(seed=seed, metrics={"elbo": late, "elbo#aaaa0002": early})
    _, (note,) = write_report_with_notes(bench.folder)
    assert "elbo on digits_binary was measured under 2 protocols" in note
    rows = {row["protocol"]: row[OURS] for row in markdown_rows(bench.folder)}
    assert rows == {"aaaa0001 (A)": "-91.0 ± 1.4 (2)", "aaaa0002 (B)": "-51.0 ± 1.4 (2) †"}
    _, data = page_of(bench.folder)
    assert data["metricNames"] == ["elbo"]
    shown = {(data["measures"][entry[0]][4], entry[1]) for cell in data["cells"] for entry in cell[-1]}
    assert shown == {("aaaa0001", -90), ("aaaa0001", -92), ("aaaa0002", -50), ("aaaa0002", -52)}
    with (bench.folder / "report.csv").open() as file:
        written = {(row["metric"], row["protocol_id"], row["value"]) for row in csv.DictReader(file)}
    assert ("elbo", "aaaa0002", "-50.0") in written


def test_settings_are_not_taken_for_seeds(bench: Any, number: Callable) -> None:
    bench.run(seed=0, metrics={"elbo": number(-90.0)})
    bench.run(seed=1, metrics={"elbo": number(-92.0)})
    bench.run(seed=0, metrics={"elbo": number(-80.0)}, tag="ffff0000", latent=8)
    write_report(bench.folder)
    rows = {row["model"]: row[OURS] for row in markdown_rows(bench.folder)}
    assert rows == {"vae model.latent=50": "-91.0 ± 1.4 (2)", "vae model.latent=8": "-80.00 (1)"}


def test_settings_key_forgets_the_machine_and_nothing_else() -> None:
    text = "model:\n  latent: 5\n  card:\n    family: vae\n"
    text += "hardware:\n  threads: 1\n  precision: '32'\nseed: 0\npaths:\n  outputs: a\n"
    for old, new in (
        ("seed: 0", "seed: 7"),
        ("outputs: a", "outputs: b"),
        ("threads: 1", "threads: 2"),
        ("vae", "gan"),
    ):
        assert settings_key(text.replace(old, new)) == settings_key(text)
    for old, new in (("latent: 5", "latent: 6"), ("'32'", "bf16")):
        assert settings_key(text.replace(old, new)) != settings_key(text)


def test_every_empty_cell_is_explained(rich_bench: Any) -> None:
    write_report(rich_bench.folder)
    notes = {row["model"]: row["note"] for row in markdown_rows(rich_bench.folder) if not row[OURS]}
    assert "RunFailed" in notes["lvae"]
    assert notes["gan"] == "the pair is not defined: gan takes images, toy2d has none"
    assert notes["vqvae2"] == "this model of the survey has no configuration yet"
    assert notes["bvae"] == "not started"
    assert notes["big\\_vae" if "big\\_vae" in notes else "big_vae"] == "ran out of memory: 9 GiB needed, 4 GiB allowed"
    _, data = page_of(rich_bench.folder)
    assert all(group["rows"] or group["why"] for group in data["groups"])


def test_the_csv_has_a_row_for_each_cell_and_metric(rich_bench: Any) -> None:
    write_report(rich_bench.folder)
    with open(rich_bench.folder / "report.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "family", "data", "seed", "metric", "value", "kind", "unit", "se", "n",
                             "protocol_id", "paper", "status", "reason"]  # fmt: skip
    assert len(rows) == 3 * 2 + 1 + 5
    first = rows[0]
    assert (first["value"], first["se"], first["n"], first["paper"], first["status"]) == (
        "-90.0", "0.25", "359", "-91.5", "done")  # fmt: skip
    assert rows[1]["paper"] == ""
    (failed,) = [row for row in rows if row["model"] == "lvae"]
    assert failed["status"] == "failed"
    assert failed["value"] == ""
    assert "</script>" in failed["reason"]


def test_markdown_and_latex_escape_what_runs_say(rich_bench: Any) -> None:
    write_report(rich_bench.folder)
    (row,) = [row for row in markdown_rows(rich_bench.folder) if row["model"] == "lvae"]
    assert "&lt;/script&gt;&lt;img" in row["note"]
    assert "\\| \\\\bad" in row["note"]
    tex = (rich_bench.folder / "report.tex").read_text(encoding="utf-8")
    body = "\n".join(line for line in tex.splitlines() if not line.startswith("%"))
    assert r"\textless{}/script\textgreater{}" in body
    assert r"\& 100\% of \$x\_1\$ \textbar{} \textbackslash{}bad" in body
    for sign in "%#_":
        assert not re.search(rf"(?<!\\){sign}", body), sign
    for table in re.findall(r"\\endhead\n(.*?)\\bottomrule", body, re.S):
        for line in table.splitlines():
            if line != r"\addlinespace":
                assert len(re.findall(r"(?<!\\)&", line)) == 9, line
    assert body.count(r"\toprule") == body.count(r"\bottomrule") == body.count(r"\begin{longtable}") == 2
    assert body.count("{") == body.count("}")


def test_the_page_is_one_file_that_no_run_can_break(rich_bench: Any) -> None:
    write_report(rich_bench.folder)
    page, data = page_of(rich_bench.folder)
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert "link" not in tags
    for tag, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert not (attributes.get(name) or "#").startswith(("http", "//")), (tag, attributes)
    policy = next(a["content"] for _, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert any(attributes.get("name") == "viewport" for _, attributes in page.found)
    failed = next(cell for cell in data["cells"] if cell[1] == "lvae")
    assert "</script>" in failed[6]
    texts = json.loads(gzip.decompress(base64.b64decode(page.scripts["texts"])))
    config, traceback = texts[str(data["cells"].index(failed))]
    assert config.startswith("model:")
    assert traceback.startswith("Traceback")


def test_the_page_holds_commands_protocols_curves_and_pictures(rich_bench: Any) -> None:
    write_report(rich_bench.folder)
    _, data = page_of(rich_bench.folder)
    assert data["cells"][0][8] == "dgm train model=vae seed=0"
    assert data["protocols"]["aaaa0002"]["k"] == 5000
    assert {measure[4] for measure in data["measures"]} <= set(data["protocols"])
    ((cell, curves),) = data["curves"]
    assert cell == 0
    assert len(curves["train"]["images"]) <= POINTS
    assert curves["train"]["images"][0] == 100
    assert curves["train"]["images"][-1] == 100_000
    assert curves["valid"] == {"images": [50_000], "seconds": [50.0], "elbo": [-95.0]}
    ((cell, name, uri),) = data["pictures"]
    assert (cell, name) == (0, "samples, best weights")
    assert uri.startswith("data:image/png;base64,")


def test_a_damaged_result_is_named_and_the_report_goes_on(bench: Any, number: Callable) -> None:
    good = bench.run(seed=0, metrics={"elbo": number(-90.0)})
    for seed, content in enumerate(("{", "[]", "{}", '{"metrics": 3}'), 1):
        (bench.run(seed=seed) / "result.json").write_text(content)
    stringly = bench.run(seed=5, metrics={"elbo": number(-90.0) | {"value": "low"}})
    _, notes = write_report_with_notes(bench.folder)
    assert len(notes) == 5
    assert any(stringly.name in note and "'low'" in note for note in notes)
    (row,) = [row for row in markdown_rows(bench.folder) if row[OURS]]
    assert row[OURS] == "-90.00 (1)"
    assert "1 of 6 seeds its result cannot be read" in row["note"]
    assert good.name not in " ".join(notes)


def test_a_value_that_is_not_finite_stays_visible(bench: Any, number: Callable) -> None:
    bench.run(seed=0, metrics={"elbo": number(math.inf)})
    bench.run(seed=1, metrics={"elbo": number(-90.0)})
    write_report(bench.folder)
    (row,) = markdown_rows(bench.folder)
    assert row[OURS] == ""
    assert "1 of 2 values are not finite" in row["note"]
    _, data = page_of(bench.folder)  # strict JSON: NaN and Infinity would not be read by a browser
    assert data["cells"][0][13][0][1] == "inf"
    assert "Infinity" not in Elements((bench.folder / "report.html").read_text()).scripts["payload"]


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "report.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_null_is_a_value_that_is_not_finite(bench: Any, number: Callable) -> None:
    null = number(0.0) | {"value": None, "se": None, "note": None}
    bench.run(seed=0, metrics={"elbo": null, "mse": number(0.5)})
    bench.run(seed=1, metrics={"elbo": number(-90.0), "mse": number(0.5)})
    paper = {"value": None, "unit": "nats", "metric": "elbo"}
    bench.cell("gan", run=bench.run("gan", metrics={"elbo": null}).name, status="done", paper=paper)
    for seed in range(2):
        bench.cell("vae", seed=seed, run=f"vae-digits_binary-s{seed}-0123abcd", status="done")
    _, notes = write_report_with_notes(bench.folder)
    assert notes == []
    rows = {(row["model"], row["metric"]): row for row in markdown_rows(bench.folder)}
    assert rows["vae", "elbo"][OURS] == rows["gan", "elbo"][OURS] == ""
    assert "1 of 2 values are not finite, so there is no mean" in rows["vae", "elbo"]["note"]
    assert "the value is not finite" in rows["gan", "elbo"]["note"]
    assert rows["vae", "mse"][OURS].startswith("0.5")
    assert "1 of 2 values are not finite" in (bench.folder / "report.tex").read_text()
    found = {(row["model"], row["seed"], row["metric"]): row for row in csv_rows(bench.folder)}
    first = found["vae", "0", "elbo"]
    assert (first["value"], first["status"], first["reason"]) == ("", "done", "the value is not finite")
    assert found["vae", "1", "elbo"]["reason"] == ""
    _, data = page_of(bench.folder)
    assert data["cells"][0][13][0][1] == "not finite"
    assert data["groups"][0]["rows"][0]["v"] is None


def test_the_warning_of_a_number_stays_with_it(bench: Any, number: Callable) -> None:
    warned = number(-90.0, note="wide bracket: gap 3.2 nats & <b>")
    bench.run("vae", metrics={"ais": warned, "elbo": number(-91.0)})
    bench.run("rbm", seed=0, metrics={"ais": warned})
    bench.run("rbm", seed=1, metrics={"ais": number(-92.0, note=None)})
    write_report(bench.folder)
    rows = {(row["model"], row["metric"]): row for row in markdown_rows(bench.folder)}
    assert rows["vae", "ais"][OURS] == "-90.00 (1) †"
    assert rows["vae", "ais"]["note"].startswith("† wide bracket: gap 3.2 nats")
    assert rows["vae", "elbo"][OURS] == "-91.00 (1)"
    assert rows["rbm", "ais"][OURS] == "-91.0 ± 1.4 (2) †"
    assert rows["rbm", "ais"]["note"].startswith("† seed 0: wide bracket")
    assert r"-91.0 $\pm$ 1.4 (2) \textdagger{}" in (bench.folder / "report.tex").read_text().replace("$-$", "-")
    reasons = {(row["model"], row["seed"], row["metric"]): row["reason"] for row in csv_rows(bench.folder)}
    assert reasons["vae", "0", "ais"] == warned["note"]
    assert reasons["vae", "0", "elbo"] == reasons["rbm", "1", "ais"] == ""
    _, data = page_of(bench.folder)
    assert [row.get("a") for group in data["groups"] for row in group["rows"]] == [
        f"seed 0: {warned['note']}", warned["note"], None]  # fmt: skip
    assert [value[4:] for cell in data["cells"] for value in cell[13]] == [[warned["note"]], [], [warned["note"]], []]


def test_what_the_hash_leaves_out_splits_no_mean(bench: Any, number: Callable) -> None:
    import yaml

    from dgmbench.config import config_hash

    base = {
        "model": {"latent": 5, "sizes": [1, 2], "card": {"kinds": ["binary"]}},
        "data": {"name": "own", "path": "a", "download": True, "verify": True, "card": {"kind": "binary"}},
        "trainer": {"budget": "5ep", "progress": True, "checkpoint": "60s", "samples": ["1ep", "2ep"], "ema": 0.0},
        "hardware": {"accelerator": "cpu", "precision": "32", "devices": 2, "nodes": 1},
        "logger": {"name": "jsonl"},
        "protocol": {"name": "demo", "k": 50, "splits": ["test"]},
        "seed": 0,
        "paths": {"outputs": "a"},
        "names": {"model": "own"},
    }

    def changed(place: str, value: Any) -> dict[str, Any]:
        found = json.loads(json.dumps(base))
        block, _, name = place.partition(".")
        found[block] = value if not name else {**found[block], name: value}
        return found

    key = lambda config: settings_key(yaml.safe_dump(config, sort_keys=False))
    for place, value in (
        ("trainer.progress", False), ("trainer.checkpoint", "1ep"), ("trainer.samples", ["3ep"]), ("data.path", "b"),
        ("data.download", False), ("data.verify", False), ("logger.name", "wandb"), ("protocol.k", 5000),
        ("protocol.splits", ["valid", "test"]), ("hardware.accelerator", "gpu"), ("paths.outputs", "b"),
        ("names.model", "other"), ("model.card", {"kinds": ["grey", "binary"]}),
        ("hardware", {"precision": "32", "devices": 1, "nodes": 2}),
    ):  # fmt: skip
        assert config_hash(changed(place, value), "") == config_hash(base, ""), place
        assert key(changed(place, value)) == key(base), place
    for place, value in (
        ("trainer.ema", 0.9), ("trainer.budget", "6ep"), ("model.sizes", [1, 3]), ("hardware.devices", 4),
        ("hardware.precision", "bf16"), ("data.name", "other"),
    ):  # fmt: skip
        assert config_hash(changed(place, value), "") != config_hash(base, ""), place
        assert key(changed(place, value)) != key(base), place
    assert key(changed("seed", 3)) == key(base)

    for seed in range(2):
        run = bench.run(seed=seed, metrics={"elbo": number(-90.0 - seed)})
        config = changed("trainer.progress", bool(seed)) | {"seed": seed}
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_report(bench.folder)
    (row,) = markdown_rows(bench.folder)
    assert row["model"] == "vae"
    assert row[OURS].endswith("(2)")


def test_running_is_believed_while_somebody_runs(bench: Any) -> None:
    """Who has the lock of the run or of the bench; the number of a process may have gone to another one."""
    host = os.uname().nodename
    bench.cell("vae", status="running")
    for seed, status in enumerate(
        ({"pid": os.getpid(), "host": host}, {"pid": 2**22 + 1, "host": host}, {"pid": 1, "host": "elsewhere"})
    ):
        run = bench.run("iwae", seed=seed)
        if seed == 1:
            held = open(run / ".lock", "w")  # noqa: SIM115
            fcntl.flock(held, fcntl.LOCK_EX)
        (run / "status.json").write_text(json.dumps({"status": "running", **status}))
        bench.cell("iwae", seed=seed, run=run.name, status="running")
    states = lambda: [cell.status for cell in read_ledger(bench.folder).cells]
    assert states() == ["interrupted", "interrupted", "running", "interrupted"]
    with open(bench.folder / ".lock", "w") as lock:
        assert states() == ["interrupted", "interrupted", "running", "interrupted"]
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states() == ["running"] * 4
    assert states() == ["interrupted", "interrupted", "running", "interrupted"]
    held.close()
    assert states() == ["interrupted"] * 4


def test_runs_without_a_suite_with_their_states(bench: Any, number: Callable) -> None:
    below = bench.folder / "sweep"
    bench.run(seed=0, metrics={"elbo": number(-90.0)}).rename(bench.folder / "done")
    below.mkdir()
    for name, status in (
        ("killed", {"status": "running", "pid": 2**22 + 1}),
        ("stopped", {"status": "interrupted"}),
        ("alive", {"status": "running", "pid": 2**22 + 1}),
        ("failed", {"status": "failed", "reason": "RunFailed: nan"}),
    ):
        path = bench.run(seed=1).rename(below / name)
        (path / "status.json").write_text(json.dumps({"host": os.uname().nodename, **status}))
    with open(below / "alive" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_report(bench.folder)
    with open(bench.folder / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "running", "failed", "interrupted", "interrupted"]
    assert rows[2]["reason"] == "RunFailed: nan"
    _, data = page_of(bench.folder)
    assert data["cells"][1][0] == "sweep/alive"
    assert data["cells"][0][8] == f"dgm rerun {bench.folder / 'done'}"


def test_a_result_is_believed_over_the_state_that_the_suite_remembers(bench: Any, number: Callable) -> None:
    bench.cell("vae", run=bench.run(metrics={"elbo": number(-90.0)}).name, status="running")
    bench.cell("iwae", run="iwae-digits_binary-s0-00000000", status="done")
    cells = read_ledger(bench.folder).cells
    assert [cell.status for cell in cells] == ["done", "damaged"]
    assert "is missing" in cells[1].reason


def test_a_changed_source_makes_a_cell_stale(bench: Any, number: Callable) -> None:
    run = bench.run(metrics={"elbo": number(-90.0)})
    config, result = run / "config.yaml", run / "result.json"
    config.write_text(config.read_text().replace("own.vae.Model", "dgmbench.models.vae.vae.Vae"))
    result.write_text(result.read_text().replace('"versions": {', '"versions": {"model_source": "0000000000000000", '))
    (cell,) = read_ledger(bench.folder).cells
    assert cell.status == "stale"
    assert cell.metrics
    from dgmbench.models.vae.vae import Vae
    from dgmbench.runs.rerun import source_hash

    result.write_text(result.read_text().replace("0000000000000000", source_hash(Vae)))
    (cell,) = read_ledger(bench.folder).cells
    assert cell.status == "done"


def test_the_index_is_used_kept_fresh_and_rebuilt(
    bench: Any, number: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [bench.run(seed=seed, metrics={"elbo": number(-90.0 - seed)}) for seed in range(3)]
    values = lambda: [cell.metrics["elbo"]["value"] for cell in read_ledger(bench.folder).cells]
    assert values() == [-90.0, -91.0, -92.0]
    opened: list[str] = []
    read = index.read_bytes
    monkeypatch.setattr(index, "read_bytes", lambda path: (opened.append(str(path)), read(path))[1])
    assert values() == [-90.0, -91.0, -92.0]
    assert not any(path.endswith("result.json") for path in opened)
    result = runs[1] / "result.json"
    result.write_text(result.read_text().replace("-91.0", "-81.25"))
    assert values() == [-90.0, -81.25, -92.0]
    assert [path for path in opened if path.endswith("result.json")] == [str(result)]
    for damage in ("{", '{"version": 0}'):
        (bench.folder / INDEX).write_text(damage)
        assert values() == [-90.0, -81.25, -92.0]
    (bench.folder / INDEX).unlink()
    assert values() == [-90.0, -81.25, -92.0]


def test_damaged_cells_json_falls_back_to_the_runs(bench: Any, number: Callable) -> None:
    bench.run(metrics={"elbo": number(-90.0)})
    (bench.folder / "cells.json").write_text("[")
    _, notes = write_report_with_notes(bench.folder)
    assert "cells.json is damaged" in notes[0]
    assert markdown_rows(bench.folder)[0][OURS] == "-90.00 (1)"


def test_bad_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, sentence in ((tmp_path / "none", "does not exist"), (tmp_path, "nothing to report")):
        with pytest.raises(UserError, match=sentence):
            write_report(folder)
        assert main(["report", str(folder)]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["report"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_verb_prints_the_page_last_and_imports_no_torch(bench: Any, number: Callable) -> None:
    bench.run(seed=0, metrics={"elbo": number(-90.0)})
    bench.run(seed=1, metrics={"elbo": number(-90.0, "aaaa0002")})
    code = (
        "import sys\nfrom dgmbench.command.main import main\n"
        f"assert main(['report', {str(bench.folder)!r}]) == 0\n"
        "sys.exit(bool({'torch', 'hydra', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(bench.folder / "report.html")
    assert "measured under 2 protocols" in done.stderr


def test_curves_of_any_length_are_thinned(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_curves(file) == {}
    file.write_text("")
    assert read_curves(file) == {}
    rows = [{"kind": "train", "images": i, "seconds": i / 2, "loss": float(i)} for i in range(150)]
    rows += [{"kind": "valid", "images": i, "seconds": i / 2, "elbo": -float(i)} for i in range(999)]
    rows += [{"kind": "valid", "images": 1000, "seconds": 500.0, "elbo": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    curves = read_curves(file)
    assert curves["train"]["images"][-1] == 149
    assert len(curves["valid"]["images"]) == POINTS
    assert curves["valid"]["elbo"][-1] is None
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in rows[:150]))
    assert read_curves(few)["train"]["images"] == list(range(150))


def test_pictures_are_made_small_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    for name in ("000000000000.png", "000000025200.png"):
        Image.new("L", (8, 8)).save(samples / name)
    assert find_picture(tmp_path) == samples / "000000025200.png"
    noise = Image.frombytes("RGB", (600, 600), os.urandom(600 * 600 * 3))
    noise.save(samples / "best-n64-s0.png")
    large = find_picture(tmp_path)
    for other in ("best-n64-s0-reconstructions", "best-n64-s0-y3", "best-n9-s0-t0.5", "zebra", "final-n64-s0"):
        Image.new("L", (8, 8)).save(samples / f"{other}.png")
    assert find_picture(tmp_path) == large  # plain samples of the weights that the numbers are of
    assert large == samples / "best-n64-s0.png"
    for limit in (100_000, 20_000):
        uri = picture_uri(large, limit)
        assert uri is not None
        assert uri.startswith("data:image/jpeg;base64,")
        assert len(uri) <= limit * 1.1
    cache = tmp_path / "report.pictures.json"
    (made,) = picture_uris([large], 100_000, cache)
    assert made is not None
    cache.write_text(cache.read_text().replace(made, "data:image/jpeg;base64,known"))
    assert picture_uris([large], 100_000, cache) == ["data:image/jpeg;base64,known"]
    cache.write_text("{")
    assert picture_uris([large], 100_000, cache) == [made]
    os.utime(large, ns=(1, 1))
    assert picture_uris([large, samples / "none.png"], 100_000, cache) == [made, None]
    assert list(json.loads(cache.read_text()).values()) == [made]
    large.write_bytes(large.read_bytes()[:1000])
    assert picture_uri(large, 100) is None
    large.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    monkeypatch.setattr("subprocess.check_call", lambda *words, **more: pytest.fail("a program is started"))
    assert picture_uri(large, 100_000) is None


def test_numbers_show_the_digits_that_their_spread_allows() -> None:
    assert rounded(-18.52466, 0.2257) == "-18.52"
    assert rounded(127.928, 12.0) == "128"
    assert rounded(0.0135016) == "0.0135"
    assert rounded(1e-9) == "1.000e-09"
    assert rounded(0.0, 0.0) == "0"
    assert rounded(math.nan) == "nan"


def test_simulated_cells_are_all_there(tmp_path: Path) -> None:
    folder = tmp_path / "simulated"
    script = Path(__file__).parents[3] / "scripts" / "simulate_ledger.py"
    command = [sys.executable, str(script), str(folder), "--cells", "280"]
    subprocess.run(command, check=True, capture_output=True)
    page = write_report(folder)
    assert page.stat().st_size < 20e6
    ledger = read_ledger(folder)
    groups = group_cells(ledger)
    assert sum(len(group.cells) for group in groups) == len(ledger.cells) == 280
    values = sum(row.n for group in groups for row in group.rows)
    assert values == sum(len(cell.metrics) for cell in ledger.cells)


def test_a_copied_run_is_no_further_seed(bench: Any, number: Callable) -> None:
    """Once, with a note: beside itself, deeper down, and as a second cell of a suite; another seed counts."""
    first = bench.run("vae", metrics={"elbo": number(-6.3)})
    shutil.copytree(first, bench.folder / "a-copy")
    shutil.copytree(first, bench.folder / "deeper" / first.name)
    bench.run("vae", seed=1, metrics={"elbo": number(-6.5)})
    _, notes = write_report_with_notes(bench.folder)
    (row,) = markdown_rows(bench.folder)
    assert row[OURS] == "-6.40 ± 0.14 (2)"
    copies = [note for note in notes if "is a copy of the run" in note]
    assert copies == [f"{name} is a copy of the run {first.name}, which counts once."
                      for name in ("a-copy", f"deeper/{first.name}")]  # fmt: skip
    bench.cell("vae", run="a-copy", status="done")
    bench.cell("vae", run=first.name, status="done")
    _, notes = write_report_with_notes(bench.folder)
    (row,) = markdown_rows(bench.folder)
    assert row[OURS] == "-6.30 (1)"
    assert notes == [f"a-copy is a copy of the run {first.name}, which counts once."]


def test_a_cell_does_not_take_the_numbers_of_another_seed(bench: Any, number: Callable) -> None:
    run = bench.run("vae", metrics={"elbo": number(-6.3)})
    bench.cell("vae", run=run.name, status="done")
    bench.cell("vae", seed=1, run=run.name, status="done")
    _, notes = write_report_with_notes(bench.folder)
    (row,) = [row for row in markdown_rows(bench.folder) if row[OURS]]
    assert row[OURS] == "-6.30 (1)"
    assert notes == [f"{run.name}: its run folder {run.name} holds numbers of seed=0"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+cmd", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_of_the_csv_is_a_formula(text: str, bench: Any, number: Callable) -> None:
    run = bench.run("vae", metrics={"elbo": number(-6.3, unit=text, note=text)})
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "family": text, "data": text}))
    bench.run("gan", metrics={"elbo": number(-6.3)})
    write_report(bench.folder)
    with open(bench.folder / "report.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert {rows["vae"][key] for key in ("family", "data", "unit")} == {f"'{text.strip()}"}
    assert rows["vae"]["reason"] == f"'{text.strip()}"
    assert rows["vae"]["value"] == rows["gan"]["value"] == "-6.3"  # a number stays one


@pytest.mark.parametrize("sign", "[*")
def test_no_row_of_the_latex_table_begins_with_an_argument(sign: str, bench: Any, number: Callable) -> None:
    run = bench.run("vae", metrics={"elbo": number(-6.3)})
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "model": f"{sign}1cm]"}))
    write_report(bench.folder)
    tex = (bench.folder / "report.tex").read_text(encoding="utf-8")
    assert f"\n{{{sign}}}1cm] & " in tex
