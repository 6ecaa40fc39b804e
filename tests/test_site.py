"""The documentation site: a page for every model, links and anchors that lead somewhere, and nothing from outside."""

import html.parser
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from dgmbench.config.cards import Card, read_cards

from .bench.report.conftest import Bench, metric

ROOT = Path(__file__).resolve().parent.parent
CARDS = read_cards()


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"dgmbench_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SITE, NOTEBOOK = script("site"), script("notebook")


class Page(html.parser.HTMLParser):
    """What a page loads, where it leads, and its anchors."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given.get("href", ""))
        elif given.get("src"):
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, its curve and its picture, beside a published value."""
    from PIL import Image

    bench = Bench(tmp_path_factory.mktemp("results") / "own")
    run = bench.run("iwae", metrics={"elbo": metric(-90.5), "iw_bound_k50": metric(-88.5), "log_z_gap": metric(1.0)})
    rows = [f'{{"kind": "valid", "images": {100 * i}, "seconds": {i}.0, "elbo": {-100 + i}}}\n' for i in range(5)]
    (run / "metrics.jsonl").write_text("".join(rows))
    (run / "samples").mkdir()
    Image.new("L", (16, 16), 128).save(run / "samples" / "best-n64-s0.png")
    paper = {"value": -89.0, "unit": "nats", "metric": "iw_bound_k50", "table": "1", "tolerance": 1.0, "source": "B"}
    bench.cell("iwae", run=run.name, status="done", paper=paper, command="dgm train model=iwae paths.outputs=/x")
    bench.cell("vae", status="failed", reason="it fell over")
    return bench.folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, results: Path) -> Path:
    folder = tmp_path_factory.mktemp("site")
    SITE.write_sources(folder / "sources", folder / "site", results)
    return folder / "sources" / "pages"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, results: Path) -> Path:
    pytest.importorskip("material", reason="no mkdocs-material: pip install 'dgmbench[docs]'")
    return SITE.build(tmp_path_factory.mktemp("built") / "site", results).parent


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_a_models_page_says_what_it_is(card: Card, sources: Path) -> None:
    page = (sources / "models" / f"{card.name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {card.name}\n")
    assert f"dgm train model={card.name}\n" in page
    assert card.likelihood in page
    assert card.paper is None or f"[{card.paper.title}]({card.paper.link})" in page
    how = page.partition("## How it works\n\n")[2]
    assert re.search(r"^    \S", how, re.MULTILINE), "no formula"
    family = (sources / f"{card.family}.md").read_text(encoding="utf-8")
    found = re.search(rf"\.\./{card.family}\.md(#[\w-]+)?\)", page)
    assert found
    assert found[1] or not re.search(rf"^##.*\b{card.name}\b", family, re.MULTILINE), "its section is not linked"
    assert f"({card.name}.md)" in (sources / "models" / "index.md").read_text(encoding="utf-8")


def test_most_pages_lead_to_a_section_of_their_familys_mathematics() -> None:
    assert sum(SITE.section_of(card) != "" for card in CARDS.values()) > 0.9 * len(CARDS)
    assert SITE.section_of(CARDS["iwae"]) == "#iwae"
    assert SITE.section_of(CARDS["mmd_vae"]) == "#infovae-mmd_vae"


def test_results_stand_on_their_models_page_alone(sources: Path) -> None:
    page = (sources / "models" / "iwae.md").read_text(encoding="utf-8")
    result = page.partition("## Results on digits_binary\n")[2].partition("## How it works")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.splitlines() if line[:2] == "| "]
    assert set("".join(rows.pop(1))) == {"-", ":"}
    assert rows == [
        ["metric", "ours", "published", "difference", "unit", "kind", "protocol"],
        ["iw_bound_k50", "-88.50 (1)", "-89.0", "+0.50", "nats", "lower bound", "`aaaa0001`"],
        ["elbo", "-90.50 (1)", "", "", "nats", "lower bound", "`aaaa0001`"],
    ]
    assert "- `aaaa0001`: split test, checkpoint best, k 50" in result
    assert "    dgm train model=iwae\n" in result
    for name in re.findall(r"\]\((results/\S+)\)", result):
        assert (sources / "models" / name).stat().st_size > 0
    assert len(re.findall(r"\]\(results/", result)) == 2
    assert "## Results" not in (sources / "models" / "vae.md").read_text(encoding="utf-8")


def test_the_pages_are_made_and_not_kept() -> None:
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if kept.returncode:
        pytest.skip("this is no checkout of git")
    assert not [name for name in kept.stdout.splitlines() if re.match(r"build/|site/|docs/models/|mkdocs\.yml", name)]


def test_a_docstring_means_itself() -> None:
    text = "Of ``x_t`` and a_i * b_j | c < d.\n\n    p(x) = a * b_i | c\n\nSee https://arxiv.org/abs/a_b_c."
    first, formula, last = SITE.as_markdown(text).split("\n\n")
    assert first == r"Of `x_t` and a\_i \* b\_j \| c \< d."
    assert formula == "    p(x) = a * b_i | c"
    assert last == "See https://arxiv.org/abs/a_b_c."


def test_every_link_and_anchor_of_the_site_leads_somewhere_and_nothing_is_loaded_from_outside(site: Path) -> None:
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    assert {file.stem for file in pages if file.parent.name == "models"} == {*CARDS, "index"}
    broken, outside = [], []
    for file, page in pages.items():
        for address in (*page.loads, *page.links):
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if address in page.loads:
                    outside.append((file.name, address))
                continue
            path, anchor = urldefrag(unquote(address))
            target = (file.parent / path).resolve() if path not in ("", ".") else file
            known = pages.get(target)
            if not target.is_file() or (anchor and known and anchor not in known.anchors):
                broken.append((file.name, address))
    assert not broken
    assert not outside
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*['\"]?https?:[^)]*", styles)


def test_links_that_lead_out_are_to_papers_and_sources(site: Path) -> None:
    hosts = {urlsplit(link).netloc for file in site.rglob("*.html") for link in Page(file).links} - {""}
    assert "arxiv.org" in hosts
    assert not hosts & {
        "squidfunk.github.io",
        "fonts.googleapis.com",
        "fonts.gstatic.com",
        "unpkg.com",
        "cdn.jsdelivr.net",
    }


def test_the_notebook_is_whole_small_and_stored_with_what_it_drew() -> None:
    content = NOTEBOOK.FILE.read_bytes()
    cells = json.loads(content)["cells"]
    assert len(content) < 300_000
    assert ["".join(cell["source"]) for cell in cells] == [dedent(text).strip() for text in NOTEBOOK.CELLS]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert str(ROOT.parent) not in content.decode()
    assert "/tmp" not in content.decode()
    page = SITE.notebook_page()
    assert page.count("data:image/png;base64,") == 2
    assert "](guides.md)" in page


def test_the_notebook_still_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient", reason="no nbclient: pip install 'dgmbench[docs]'")
    import nbformat

    monkeypatch.setenv("DGM_OUTPUTS", "")  # set back afterwards
    stored = nbformat.read(NOTEBOOK.FILE, as_version=4)
    for cell in stored.cells:
        cell["source"] = cell["source"].replace("budget=60ep", "budget=2ep").replace("protocol=demo", "protocol=glance")
        cell["outputs"] = []
    done = NOTEBOOK.executed(stored)
    assert sum(len(cell.get("outputs", [])) for cell in done.cells) >= 4
