"""``dgm report DIR``: what a bench folder holds, as HTML to look at, Markdown, LaTeX and CSV."""

from pathlib import Path

from dgmbench.bench.report.index import write_file
from dgmbench.bench.report.ledger import read_ledger
from dgmbench.bench.report.numbers import group_cells
from dgmbench.bench.report.page import to_html
from dgmbench.bench.report.tables import to_csv, to_latex, to_markdown, to_survey_csv

__all__ = ["write_report", "write_report_with_notes"]


def write_report(folder: Path) -> Path:
    """Write ``report.html``, ``.md``, ``.tex`` and ``.csv`` into a folder of runs; returns the HTML's path."""
    return write_report_with_notes(folder)[0]


def write_report_with_notes(folder: Path) -> tuple[Path, list[str]]:
    """``write_report`` that also says what a reader must know: protocols that were kept apart, damaged results."""
    ledger = read_ledger(folder)
    groups = group_cells(ledger)
    page = folder / "report.html"
    write_file(folder / "report.csv", to_csv(ledger))
    if ledger.survey:
        write_file(folder / "report.survey.csv", to_survey_csv(ledger, groups))
    write_file(folder / "report.md", to_markdown(ledger, groups))
    write_file(folder / "report.tex", to_latex(ledger, groups))
    write_file(page, to_html(ledger, groups))
    return page, ledger.notes
