"""Build the documentation site: the pages of ``docs/``, and one of each model from its card, docstring and results.

    python scripts/site.py                                 # into build/site
    python scripts/site.py --results outputs/bench/demo    # with samples, curves and numbers of a folder of runs

Needs ``pip install 'dgmbench[docs]'``. Nothing is fetched, neither now nor when the pages are looked at: they can be
opened from the disk. Formulas stay the text that they are in docstrings.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import dgmbench
from dgmbench.bench.report.curves import read_curves
from dgmbench.bench.report.ledger import Ledger, read_ledger
from dgmbench.bench.report.numbers import Group, group_cells, signed
from dgmbench.bench.report.pictures import find_picture, what_is_shown
from dgmbench.bench.report.statements import is_aside, statements
from dgmbench.bench.report.survey import SAID, entry
from dgmbench.bench.suite import read_experiment, value_of
from dgmbench.config.cards import Card, by_family, family_title, read_cards
from dgmbench.config.files import options

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ("guides", "command_line", "data", "adding_a_model", "benchmark", "report", "protocols", "hardware")
GUIDES_MORE = ("reliability", "testing")
REFERENCE = ("metrics", "verify", "building_blocks", "side_by_side")
MOST_NUMBERS = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--results", type=Path, help="a folder of runs, such as outputs/bench/survey")
    arguments = parser.parse_args()
    page = build(arguments.output.absolute(), arguments.results)
    print(page)


def build(output: Path, results: Path | None = None) -> Path:
    """Write the sources beside the site and let mkdocs make pages of them; returns the first page."""
    sources = output.with_name(f"{output.name}-sources")
    shutil.rmtree(sources, ignore_errors=True)
    config = write_sources(sources, output, results)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean", "-f", str(config)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = ": pip install 'dgmbench[docs]'" if "No module named mkdocs" in done.stderr else ""
        sys.exit(f"The site could not be built{hint}.\n{done.stderr.strip()}")
    return output / "index.html"


def write_sources(sources: Path, output: Path, results: Path | None = None) -> Path:
    """All pages as Markdown, and the configuration for mkdocs; returns its path."""
    pages = sources / "pages"
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.ipynb"))
    for name, target in (("README.md", "index.md"), ("CHANGELOG.md", "changelog.md")):
        (pages / target).write_text(within_site((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    cards, found = read_cards(), Results.of(results, pages)
    (pages / "models").mkdir()
    for name, card in cards.items():
        (pages / "models" / f"{name}.md").write_text(model_page(card, found), encoding="utf-8")
    (pages / "models" / "index.md").write_text(index_page(cards), encoding="utf-8")
    (pages / "site.css").write_text(STYLE, encoding="utf-8")
    if notebook := notebook_page():
        (pages / "first_run.md").write_text(notebook, encoding="utf-8")
    config = sources / "mkdocs.yml"
    settings = site_settings(pages, output, cards, notebook=bool(notebook))
    config.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return config


STYLE = """\
:root { --md-text-font: system-ui, sans-serif; --md-code-font: ui-monospace, monospace; }
.md-typeset table:not([class]) { font-size: .68rem; }
.md-typeset .samples img { image-rendering: pixelated; width: min(100%, 22rem); }
.md-typeset pre > code { white-space: pre; }
.md-typeset table:not([class]) th:empty { padding: 0; border: 0; }
"""


def site_settings(pages: Path, output: Path, cards: dict[str, Card], *, notebook: bool) -> dict[str, Any]:
    families = [family for family in by_family(cards) if (pages / f"{family}.md").is_file()]
    models = [
        {family_title(family): [{card.name: f"models/{card.name}.md"} for card in group]}
        for family, group in by_family(cards).items()
    ]
    guides = [f"{name}.md" for name in (*GUIDES, *GUIDES_MORE)]
    return {
        "site_name": "dgmbench",
        "docs_dir": str(pages),
        "site_dir": str(output),
        "use_directory_urls": False,
        "theme": {
            "name": "material",
            "font": False,
            "features": [*(f"navigation.{name}" for name in ("tabs", "indexes", "prune", "top")), "content.code.copy"],
            "palette": [
                {"media": "(prefers-color-scheme: light)", "scheme": "default", "primary": "indigo"},
                {"media": "(prefers-color-scheme: dark)", "scheme": "slate", "primary": "indigo"},
            ],
        },
        "extra": {"generator": False},
        "extra_css": ["site.css"],
        "plugins": ["search"],
        "markdown_extensions": [
            *("tables", "attr_list", "md_in_html", "pymdownx.superfences", "pymdownx.magiclink"),
            {"toc": {"permalink": True}},
        ],
        "validation": {"nav": {"omitted_files": "warn"}, "links": {"anchors": "warn"}},
        "nav": [
            {"Home": "index.md"},
            {"Guides": [*guides, *(["first_run.md"] if notebook else [])]},
            {"Models": ["models/index.md", *models]},
            {"Mathematics": [f"{family}.md" for family in families]},
            {"Reference": [*(f"{name}.md" for name in REFERENCE), "changelog.md"]},
        ],
    }  # fmt: skip


def within_site(text: str) -> str:
    """Links of a page at the root of the repository as they are inside the site."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)(?![^)]*\.(?:md|png)[#)])[^)]*\)", r"\1", text)  # no page: LICENSE, ...


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    text = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


# ---------------------------------------------------------------------- a model's page


def index_page(cards: dict[str, Card]) -> str:
    parts = ["# Models", f"All {len(cards)} models, by family; each name leads to its page."]
    for family, group in by_family(cards).items():
        rows = ["| model | what it is | likelihood |", "|---|---|---|"]
        rows += [f"| [{card.name}]({card.name}.md) | {card.summary} | {card.likelihood} |" for card in group]
        parts += [f"## {family_title(family)}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def model_page(card: Card, results: "Results") -> str:
    source = (
        Path(dgmbench.__file__).parent.joinpath(*str(card.settings["_target_"]).split(".")[1:-1]).with_suffix(".py")
    )
    tree = ast.parse(source.read_text(encoding="utf-8"))
    parts = [
        f"# {card.name}",
        f"{card.summary[0].upper()}{card.summary[1:]}.",
        _facts(card),
        "## Command",
        _command(card),
    ]
    parts += results.of_model(card.name)
    parts += ["## How it works", as_markdown(ast.get_docstring(tree) or "")]
    if published := list(_published(card.name)):
        heads = ["| experiment | published | table | protocol |", "|---|---:|---|---|"]
        parts += ["## Published numbers", "\n".join([*heads, *published])]
    if blocks := list(_blocks(tree)):
        parts += ["## Building blocks", "\n".join(f"- {block}" for block in blocks)]
    shown = source.relative_to(Path(dgmbench.__file__).parent)
    where = f"`src/dgmbench/{shown}`, `configs/model/{card.name}.yaml`"
    parts.append(f"Code: {where}. Proofs on a small instance: `dgm verify model={card.name}`.")
    return "\n\n".join(parts) + "\n"


def _facts(card: Card) -> str:
    about, rows = entry(card.name, card), []
    if card.paper:
        paper = card.paper
        rows.append(("paper", f"{paper.authors} {paper.year}, [{paper.title}]({paper.link})"))
    rows.append(("family", f"[{family_title(card.family)}](../{card.family}.md{section_of(card)})"))
    if about.section:
        said = "; ".join(
            f"{SAID[key]}: {text}" for key, text in about.said.items() if key != "likelihood" and about.table
        )
        rows.append(("in the survey", f"{about.where} ({about.name}){f': {said}' if said else ''}"))
    rows.append(
        ("data", ", ".join(card.kinds) + (" pictures" if card.image else "") + (", with labels" if card.labels else ""))
    )
    rows += [("likelihood", card.likelihood), ("tried on", f"`{card.data}` unless told otherwise")]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text.replace('|', '&#124;')} |" for name, text in rows)])


def section_of(card: Card) -> str:
    """``#anchor`` of the section of the family's page about a model: its own heading, else the first that names it."""
    page = ROOT / "docs" / f"{card.family}.md"
    if not page.is_file():
        return ""
    sections = re.split(
        r"^##+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), flags=re.M
    )
    pairs = list(zip(sections[1::2], sections[2::2], strict=True))
    named = [head for head, _ in pairs if card.name in re.split(r"[^\w]+", head.replace("`", ""))]
    named += [head for head, text in pairs if re.search(rf"`{card.name}`|model={card.name}\b", text)]
    return f"#{slug(named[0])}" if named else ""


def _command(card: Card) -> str:
    words = ("train model={}", "train model={} --help   # its settings", "verify model={}")
    return "\n".join(f"    dgm {each.format(card.name)}" for each in words)


def as_markdown(docstring: str) -> str:
    """A module's docstring as Markdown: formulas are its indented blocks already, code has single backticks."""
    text = re.sub(r"``([^`]+)``", r"`\1`", docstring)
    return "\n".join(line if line.startswith("    ") else _plain(line) for line in text.splitlines())


def _plain(line: str) -> str:
    """Signs of Markdown outside of code that mean themselves in a docstring."""
    return "".join(
        part if i % 2 else re.sub(r"([*_|<\[\]~])", r"\\\1", part)
        for i, part in enumerate(re.split(r"(`[^`]*`|https?://\S+)", line))
    )


def _blocks(tree: ast.Module) -> Iterator[str]:
    """What a model takes from ``dgmbench.nn``, with the section that describes it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dgmbench.nn."):
            name = str(node.module).removeprefix("dgmbench.nn.")
            names = ", ".join(f"`{alias.name}`" for alias in node.names)
            yield f"{names} of [{name}](../building_blocks.md#{slug(name)})"


def _published(model: str) -> Iterator[str]:
    for name in options("experiment"):
        found = read_experiment(name)
        if value_of(found.overrides, "model") == model:
            paper = found.paper
            cells = (
                f"`{name}`",
                f"{paper['value']:g} {paper['unit']}",
                f"{paper['source']}, {paper['table']}",
                paper["protocol"],
            )
            yield "| " + " | ".join(str(cell).replace("|", "&#124;") for cell in cells) + " |"


# ---------------------------------------------------------------------- results


@dataclass
class Results:
    """A folder of runs, and where their pictures go."""

    ledger: Ledger | None
    groups: Sequence[Group]
    pages: Path

    @classmethod
    def of(cls, folder: Path | None, pages: Path) -> "Results":
        ledger = None if folder is None else read_ledger(folder)
        return cls(ledger, [] if ledger is None else group_cells(ledger), pages)

    def of_model(self, name: str) -> Iterator[str]:
        for group in self.groups:
            if self.ledger is None or group.first.model != name or not any(row.values for row in group.rows):
                continue
            cell = next(self.ledger.cells[number] for number in group.cells if self.ledger.cells[number].run)
            run = self.ledger.folder / cell.run
            yield f"## Results on {group.first.data}"
            if cell.command:
                yield f"    {cell.command.partition(' paths.outputs=')[0]}"
            folder = self.pages / "models" / "results"
            folder.mkdir(exist_ok=True)
            if picture := find_picture(run):
                shutil.copy(picture, folder / f"{run.name}.png")
                shown = what_is_shown(picture)
                image = f"![{shown}](results/{run.name}.png)"
                yield f'<div class="samples" markdown>\n{image}\n</div>\n\n*{shown}*'
            if draw_curve(run / "metrics.jsonl", folder / f"{run.name}-curve.svg"):
                yield f"![validation over the images seen](results/{run.name}-curve.svg)"
            yield self._numbers(group)

    def _numbers(self, group: Group) -> str:
        """What says most: likelihood first, then samples and codes; without asides and other checkpoints."""
        said = [row for row in group.rows if row.values and "@" not in row.measure.metric]
        rows = [row for row in said if not is_aside(row.measure.metric)]
        first = statements([row.measure.metric for row in rows])
        rows.sort(key=lambda row: first.index(row.measure.metric) if row.measure.metric in first else len(first))
        beside = any(row.published for row in rows)
        titles = ["metric", "ours", *(["published", "difference"] if beside else []), "unit", "kind", "protocol"]
        lines = [titles, ["---", "---:", *(["---:", "---:"] if beside else []), "---", "---", "---"]]
        for row in rows[:MOST_NUMBERS]:
            measure, cells = row.measure, [row.measure.metric, row.text or row.why]
            if beside:
                found = row.published
                difference = None if found is None else found.difference
                cells += [
                    found.text if found else "",
                    "" if difference is None else signed(difference, row.sd or row.se),
                ]
            lines.append([*cells, measure.unit, measure.kind, f"`{measure.protocol_id}`"])
        table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
        named = sorted(
            {row.measure.protocol_id for row in rows[:MOST_NUMBERS]} & set(self.ledger.protocols if self.ledger else ())
        )
        stated = "\n".join(f"- `{name}`: {self._protocol(name)}" for name in named)
        return f"{table}\n\nProtocols:\n\n{stated}" if stated else table

    def _protocol(self, name: str) -> str:
        stated = self.ledger.protocols[name] if self.ledger else {}
        short = {key: str(value) for key, value in stated.items() if isinstance(value, str | int | float)}
        return ", ".join(f"{key} {value}" for key, value in short.items() if len(value) < 40)


def draw_curve(log: Path, file: Path) -> bool:
    """The validation objective over the images seen, as a small picture; None of less than two points."""
    valid = read_curves(log).get("valid", {})
    name = next((key for key in valid if key not in ("images", "seconds")), None)
    if name is None or len(valid[name]) < 2:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.4), layout="constrained")
    axes = figure.add_subplot()
    points = [(x, y) for x, y in zip(valid["images"], valid[name], strict=True) if x is not None and y is not None]
    axes.plot(*zip(*points, strict=True), color="#3f51b5", linewidth=1.6)
    axes.set(xlabel="images seen", title=f"{name}, validation")
    axes.grid(alpha=0.25)
    figure.savefig(file, metadata={"Date": None})
    return True


# ---------------------------------------------------------------------- the notebook


def notebook_page() -> str:
    """The executed notebook as a page, its pictures within; empty if there is none."""
    import json

    file = ROOT / "docs" / "notebooks" / "first_run.ipynb"
    if not file.is_file():
        return ""
    parts = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(within_site(re.sub(r"\]\(\.\./", "](", text)))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="what the cell drew" src="data:image/png;base64,{png}">')
            elif words := "".join(output.get("text") or data.get("text/plain") or "").rstrip():
                parts.append(f"```text\n{words}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
