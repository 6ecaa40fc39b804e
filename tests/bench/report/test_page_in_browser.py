"""The page in a real browser, clicked through: skipped where there is no Chromium."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgmbench.bench.report import write_report

from ...processes import MINUTES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

TOOLS = """
const $ = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = (selector) => all(selector).map((node) => node.textContent);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const choose = async (id, value) => {
  $(id).value = value;
  $(id).dispatchEvent(new Event(id === "#find" ? "input" : "change"));
  await wait(80);
};
"""


def drive(folder: Path, tmp_path: Path, script: str, *flags: str) -> dict[str, Any]:
    """Open a copy of the page that clicks through itself; returns what the script found."""
    assert CHROMIUM is not None
    text = write_report(folder).read_text(encoding="utf-8")
    driver = (
        f"<script>(async () => {{ {TOOLS} let found; try {{ found = await (async () => {{ {script} }})(); }}"
        " catch (error) { found = { error: String(error.stack) }; }"
        ' const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);'
        " document.body.append(out); })();</script></body>"
    )
    copy = tmp_path / "driven.html"
    copy.write_text(text.replace("</body>", driver), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
        "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000",
        "--window-size=1280,900", *flags, "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stderr[-2000:]
    found = json.loads(match.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert "error" not in found, found["error"]
    return found


def test_sort_filter_open_and_theme(rich_bench: Any, tmp_path: Path) -> None:
    cells = rich_bench.folder / "cells.json"
    cells.write_text(cells.read_text().replace('"survey": ""', '"survey": "3, table 2"'))
    found = drive(
        rich_bench.folder,
        tmp_path,
        """
        const found = { title: document.title, images: all("img").length };
        found.ready = document.documentElement.dataset.ready;
        const models = () => texts("#results-table tbody th");
        const heads = () => texts("#results-table thead button");
        const sort = (name) => all("#results-table thead button")[heads().indexOf(name)].click();
        found.overview = all("#results-table tbody tr").map((row) => [...row.children].map((cell) => cell.textContent));
        found.overviewHeads = heads();
        $("[data-view=survey]").click();
        found.survey = all("#results-table tbody tr").map((row) => [...row.children].map((cell) => cell.textContent));
        found.captions = texts("#gallery figcaption span");
        $("[data-view=wide]").click();
        found.heads = heads();
        found.models = models();
        sort("elbo (A)");
        found.sorted = all("#results-table thead th")[heads().indexOf("elbo (A)")].getAttribute("aria-sort");
        found.first = models()[0];
        sort("model");
        found.alphabetical = models();
        sort("model");
        found.reversed = models();
        found.focused = document.activeElement.textContent;
        await choose("#metric", "elbo");
        found.metric = heads();
        await choose("#metric", "");
        await choose("#family", "gan");
        found.gan = models();
        $("#filters [type=reset]").click(); await wait(80);
        await choose("#find", "GiB");
        found.find = models();
        found.empty = texts("#results-table td").pop();
        $("#filters [type=reset]").click(); await wait(80);
        found.again = models().length;
        found.undefined = texts("#results-table td .empty");
        all("#results-table td .cell").find((b) => b.textContent.startsWith("−91.0")).click();
        found.number = $("dialog").open && $("#detail-body").textContent;
        $("#close").click();
        found.closed = !$("dialog").open;
        all("#cells-table tbody th .cell").find((b) => b.textContent.startsWith("lvae")).click();
        for (let i = 0; i < 40 && texts("dialog pre").length < 3; i++) await wait(50);
        found.blocks = texts("dialog pre");
        $("#close").click();
        $("[data-view=long]").click();
        found.published = texts("#results-table thead button");
        found.curves = all("#curve-chart path").length;
        $("[data-axis=seconds]").click();
        found.axis = texts("#curve-chart text").join(" ");
        found.dots = all("#cost-chart circle").length;
        found.theme = [document.documentElement.dataset.theme];
        $("#theme").click();
        found.theme.push(document.documentElement.dataset.theme, $("#theme").getAttribute("aria-pressed"));
        return found;
        """,
    )
    assert found["ready"] == "true"
    assert found["title"] == "A suite of one's own · dgm report"  # the failed run's text did not run
    assert found["images"] == 1
    assert found["overviewHeads"][:4] == ["model", "likelihood", "learned from", "energy_distance"]
    first, second = found["overview"][:2]  # the higher likelihood stands first, with what it is
    assert first[:2] == ["iwaedigits_binary", "−89.00 (1)elbo · lower bound · protocol B"]
    assert second[0] == "vaedigits_binary"
    assert second[1:3] == ["−91.0 ± 1.0 (3)elbo · lower bound · protocol A", "75,5002.5 s"]  # its budget beside it
    assert second[3] == "0.01 ± 0.00 (3)"
    assert [row[1] for row in found["overview"][2:]].count("") == 0  # what has no numbers says why
    assert found["survey"][0][:2] == [
        "IWAEtable 2, row 9 · digits_binary",
        "tighter bound that leans less on the encodera posterior nearer to the true one",
    ]
    assert [row[0] for row in found["survey"]][1].startswith("LVAEtable 2, row 19")
    assert found["survey"][0][3] == first[1]
    assert found["captions"] == ["digits_binary: samples, best weights"]
    assert {"elbo (A)", "elbo (B)", "energy_distance"} <= set(found["heads"])
    assert len(found["models"]) == found["again"] == 7
    assert found["sorted"] == "descending"  # higher is better
    assert found["first"] == "vae"
    assert found["alphabetical"] == sorted(found["models"])
    assert found["reversed"] == sorted(found["models"], reverse=True)
    assert found["focused"] == "model"
    assert [head for head in found["metric"] if head not in ("model", "data", "status", "reason")] == [
        "elbo (A)",
        "elbo (B)",
    ]
    assert found["gan"] == ["gan"]
    assert found["find"] == ["big_vae"]
    assert found["empty"] == "ran out of memory: 9 GiB needed, 4 GiB allowed"
    assert {"oom", "failed", "planned", "skipped", "not built", "not measured"} <= set(found["undefined"])
    for text in ("lower bound", "aaaa0001", "standard deviation over seeds", "A & B 2014", "within", "0.25", "359"):
        assert text in found["number"], text
    assert found["closed"]
    command, traceback, config = found["blocks"]
    assert command == "dgm train model=lvae seed=0"
    assert "</script><img" in traceback
    assert config.startswith("model:")
    assert {"published", "difference", "same protocol?"} <= set(found["published"])
    assert found["curves"] == 2
    assert "seconds of training" in found["axis"]
    assert found["dots"] >= 1
    assert found["theme"] == ["light", "dark", "true"]


def test_a_phone_scrolls_tables_not_the_page(rich_bench: Any, tmp_path: Path) -> None:
    found = drive(
        rich_bench.folder,
        tmp_path,
        """
        document.documentElement.style.width = "390px"; // a headless window has a least width
        await choose("#find", "");
        const inner = ".table, dialog, svg, .skip, .said, script, .scroll";
        const outside = all("body *").filter((n) => !n.closest(inner) && n.getBoundingClientRect().right > 391);
        const box = $("#results-table");
        return { outside: outside.map((n) => n.tagName + n.className), inside: box.scrollWidth > box.clientWidth };
        """,
        "--window-size=500,844",
    )
    assert found == {"outside": [], "inside": True}


def test_a_long_table_draws_only_what_is_looked_at(bench: Any, tmp_path: Path) -> None:
    for seed in range(3000):
        bench.cells.append(
            {"id": f"vae-digits-s{seed}", "model": "vae", "data": "digits", "seed": seed, "family": "vae",
             "status": "planned", "overrides": [], "command": "dgm train"}
        )  # fmt: skip
    bench.cell("last", data="toy2d")
    found = drive(
        bench.folder,
        tmp_path,
        """
        const box = $("#cells-table"), rows = () => texts("#cells-table tbody th").filter(Boolean);
        const found = { drawn: rows().length, first: rows()[0] };
        found.all = $("#cells-table table").getAttribute("aria-rowcount");
        box.scrollTop = box.scrollHeight; box.dispatchEvent(new Event("scroll")); await wait(50);
        found.last = rows().pop();
        all("#cells-table thead button")[4].click(); all("#cells-table thead button")[4].click();
        found.highest = rows()[0];
        found.top = box.scrollTop;
        return found;
        """,
    )
    assert found == {
        "drawn": 60, "first": "vae-digits-s0", "all": "3002", "last": "last-toy2d-s0", "highest": "vae-digits-s2999",
        "top": 0,
    }  # fmt: skip


def test_warnings_and_values_that_are_not_finite(bench: Any, number: Callable, tmp_path: Path) -> None:
    bench.run("vae", metrics={"elbo": number(-90.0, note="wide <b>bracket</b>"), "fd": number(1.0) | {"value": None}})
    found = drive(
        bench.folder,
        tmp_path,
        """
        $("[data-view=wide]").click();
        const buttons = all("#results-table tbody td .cell");
        const warned = buttons.find((node) => node.textContent.includes("⚠"));
        const found = { signs: texts("#results-table .mark").length, title: warned.querySelector(".mark").title };
        warned.click();
        found.dialog = $("#detail-body").textContent;
        $("#close").click();
        all("#results-table tbody td .cell").find((node) => node.textContent === "–").click();
        found.empty = $("#detail-body").textContent;
        return found;
        """,
    )
    assert found["signs"] == 1
    assert found["title"] == "wide <b>bracket</b>"
    assert found["dialog"].startswith("⚠ wide <b>bracket</b>")
    assert found["empty"].startswith("the value is not finite")
    assert "not finite" in found["empty"].partition("Each seed")[2]
