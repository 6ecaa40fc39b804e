"""The same numbers as CSV for programs, Markdown to paste, and LaTeX (booktabs) to print."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

from dgmbench.bench.report.ledger import HAS_NUMBERS, Ledger
from dgmbench.bench.report.numbers import Group, Row, finite_or_nan, rounded, signed
from dgmbench.bench.report.overview import Line, overview, sample_measures
from dgmbench.bench.report.survey import SAID, Entry, by_part, columns_of, in_its_order
from dgmbench.runs.metric_names import without_protocol

CSV_COLUMNS = (
    "model", "family", "data", "seed", "metric", "value", "kind", "unit", "se", "n", "protocol_id", "paper", "status",
    "reason",
)  # fmt: skip
COLUMNS = (
    "model", "metric", "published", "ours: mean ± sd (seeds)", "difference", "same protocol?", "kind", "unit",
    "protocol", "note",
)  # fmt: skip

MARK = "†"
"""Beside a number that its run warns of; the warning is in the last column."""


def to_csv(ledger: Ledger) -> str:
    """One row a cell and metric; a cell without numbers has one row with its status and reason."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for cell in ledger.cells:
        paper = cell.paper or {}
        reason = cell.reason or ("" if cell.status in HAS_NUMBERS else cell.explanation)
        names = list(cell.metrics)
        if not names or (paper and paper.get("metric") not in cell.metrics):
            names.append(str(paper.get("metric") or ""))
        for name in names:
            metric = cell.metrics.get(name, {})
            published = paper.get("value", "") if name == paper.get("metric") else ""
            reasons = [reason]
            if metric and not math.isfinite(finite_or_nan(metric["value"])):
                metric = {**metric, "value": None}
                reasons.append("the value is not finite")
            reasons.append(metric.get("note") or "")
            numbers = [metric.get(key) for key in ("value", "kind", "unit", "se", "n", "protocol_id")]
            row: list[object] = [cell.model, cell.family, cell.data, cell.seed, without_protocol(name), *numbers]
            row += [published, cell.status]
            row.append("; ".join(text for text in reasons if text))
            writer.writerow([_plain(value) for value in row])
    return file.getvalue()


def _plain(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe before it."""
    if isinstance(value, str):
        text = " ".join(value.split())  # what breaks a line ends a row for some programs
        return f"'{text}" if text[:1] in ("=", "+", "-", "@") and text else text
    return "" if value is None else value


def model_label(group: Group) -> str:
    """A model's name with its experiment and what sets its settings apart."""
    return " ".join(part for part in (group.first.model, group.first.experiment, group.first.variant) if part)


def _by_data(groups: Iterable[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.first.data, []).append(group)
    return dict(sorted(found.items()))


def _lines(group: Group) -> list[tuple[str, ...]]:
    label = model_label(group)
    if not group.rows:
        return [(label, "", "", "", "", "", "", "", "", group.why or "finished without any metric")]
    lines: list[tuple[str, ...]] = []
    for row in group.rows:
        published = row.published
        texts = (published.text, _difference(row), published.same_protocol) if published else ("", "", "")
        notes = [published.why if published else row.why, group.why if row.values else ""]
        ours = row.text
        if row.warning:
            ours = f"{ours} {MARK}".strip()
            notes.insert(0, f"{MARK} {row.warning}")
        measure = row.measure
        protocol = f"{measure.protocol_id} ({measure.letter})" if measure.letter else measure.protocol_id
        note = "; ".join(dict.fromkeys(note for note in notes if note))
        lines.append((label, measure.metric, texts[0], ours, *texts[1:], measure.kind, measure.unit, protocol, note))
    return lines


def _difference(row: Row) -> str:
    published = row.published
    if published is None or published.difference is None:
        return ""
    verdict = {True: " (within tolerance)", False: " (outside tolerance)", None: ""}[published.within]
    return signed(published.difference, row.sd or row.se) + verdict


def to_markdown(ledger: Ledger, groups: Sequence[Group]) -> str:
    """A suite of the survey in its order; for each data set an overview, one line a model, and the main table."""
    parts = [f"# {_markdown(ledger.title)}"]
    if ledger.survey:
        parts.append(f"Survey: {_markdown(ledger.survey)}.")
    if ledger.notes:
        parts.append("\n".join(f"- **Note:** {_markdown(note)}" for note in ledger.notes))
    for part, found in by_part(in_its_order(ledger, groups)).items():
        titles, rows = _of_the_survey(found)
        parts += [f"## {_markdown(part)}", _markdown_table(titles, rows, _numeric(titles))]
    for data, members in _by_data(groups).items():
        parts += [f"## {_markdown(data)}", _markdown_overview(ledger, members), "Every number:"]
        parts.append(_markdown_table(COLUMNS, [line for group in members for line in _lines(group)], range(2, 5)))
    return "\n\n".join(parts) + "\n"


def _markdown_overview(ledger: Ledger, members: Sequence[Group]) -> str:
    lines = overview(ledger, members)
    titles, rows = _measured(lines)
    rows = [(model_label(line.group), *row) for line, row in zip(lines, rows, strict=True)]
    return _markdown_table(("model", *titles), rows, _numeric(("model", *titles)))


_WORDS = ("model", "which, kind", "beside", "in the survey", "data", "reason", *SAID.values())


def _numeric(titles: Sequence[str]) -> list[int]:
    return [i for i, title in enumerate(titles) if title not in _WORDS]


def _measured(lines: Sequence[Line]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Titles and a row for each line: its likelihood, its samples, what it does beside, and what it was given."""
    samples = sample_measures(lines)
    titles = ["likelihood (nats)", "which, kind", *samples, "beside", "examples seen", "seconds"]
    rows = []
    for line in lines:
        said = line.likelihood
        values = [_with_letter(line.samples[name]) if name in line.samples else "" for name in samples]
        beside = "" if line.task is None else f"{line.task.measure.metric} {_with_letter(line.task)}"
        cost = ["" if value is None else rounded(value) for value in (line.images, line.seconds)]
        about = ["", ""] if said is None else [_with_letter(said), f"{said.measure.metric}, {said.measure.kind}"]
        rows.append((*about, *values, beside, *cost))
    return titles, rows


def _of_the_survey(found: Sequence[tuple[Entry, Line]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Titles and rows of one part of the survey: what it says, then what was measured; empty columns are left out."""
    keys, (titles, measured) = columns_of(found), _measured([line for _, line in found])
    titles = ["in the survey", "model", *(SAID[key] for key in keys), "data", *titles, "reason"]
    rows = []
    for (about, line), values in zip(found, measured, strict=True):
        label = model_label(line.group)
        name = label if about.name == about.model else f"{about.name} ({label})"
        said = [about.said.get(key, "") for key in keys]
        rows.append((about.where, name, *said, line.group.first.data, *values, line.group.why))
    kept = [i for i, title in enumerate(titles) if title in ("model", "data") or any(row[i] for row in rows)]
    return [titles[i] for i in kept], [tuple(row[i] for i in kept) for row in rows]


def to_survey_csv(ledger: Ledger, groups: Sequence[Group]) -> str:
    """One row a model in the survey's order: what the survey says, and the numbers that the overview shows."""
    found = in_its_order(ledger, groups)
    samples = sample_measures([line for _, line in found])
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    measured = ("metric", "value", "kind", "unit", "seeds", "protocol_id", *samples, "images", "train_seconds")
    writer.writerow(("section", "table", "row", "name", "model", *SAID, "data", *measured, "status", "reason"))
    for about, line in found:
        said, group = line.likelihood, line.group
        values: list[object] = [about.section, about.table, about.row or None, about.name, model_label(group)]
        values += [*(about.said.get(key, "") for key in SAID), group.first.data]
        if said is None:
            values += [""] * 6
        else:
            measure = said.measure
            values += [measure.metric, said.mean, measure.kind, measure.unit, len(said.values), measure.protocol_id]
        values += [line.samples[name].mean if name in line.samples else "" for name in samples]
        values += [line.images, line.seconds, group.first.status, group.why]
        writer.writerow([_plain(value) for value in values])
    return file.getvalue()


def _with_letter(row: Row) -> str:
    """A value that says which of several protocols it is of, and whether its run warns of it."""
    letter = f" protocol {row.measure.letter}" if row.measure.letter else ""
    return f"{row.text or row.why}{letter}{f' {MARK}' if row.warning else ''}"


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int]) -> str:
    """Titles and rows; the columns of these numbers stand to the right."""
    right = set(numbers)
    lines = ["| " + " | ".join(_markdown(text) for text in row) + " |" for row in (titles, *rows)]
    lines.insert(1, "|" + "|".join("---:" if i in right else "---" for i in range(len(titles))) + "|")
    return "\n".join(lines)


def _markdown(text: str) -> str:
    text = re.sub(r"([\\`*\[\]|~#])", r"\\\1", " ".join(str(text).split()))
    text = re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "†": r"\textdagger{}", "²": r"\textsuperscript{2}",
    "×": r"$\times$", "β": r"$\beta$",
}  # fmt: skip
_LATEX_TABLE = str.maketrans(_LATEX)


def _latex(text: str) -> str:
    """Escape a text; what stays beyond ASCII is left to LaTeX's UTF-8."""
    found = " ".join(text.split()).translate(_LATEX_TABLE)
    found = found if found.isprintable() else "".join(sign for sign in found if sign.isprintable())
    found = re.sub(r"(?<![\w-])-(?=[\d.])", "$-$", found)
    # after the end of a row, a bracket would be a length, and a star forbid a break
    return re.sub(r"^[\[*]", lambda sign: f"{{{sign[0]}}}", found)


def _latex_survey(ledger: Ledger, groups: Sequence[Group]) -> Iterable[str]:
    """A suite of the survey: one ``longtable`` for each of its parts, wide enough to want a page turned on its side."""
    for part, found in by_part(in_its_order(ledger, groups)).items():
        titles, rows = _of_the_survey(found)
        numbers, wide = _numeric(titles), (SAID["aim"], SAID["method"], "reason")
        columns = (
            r">{\raggedright\arraybackslash}p{3cm}" if title in wide else "r" if i in numbers else "l"
            for i, title in enumerate(titles)
        )
        lines = [
            rf"\begin{{longtable}}{{{''.join(columns)}}}",
            rf"\caption{{{_latex(part)}}}\\",
            r"\toprule",
            *(" & ".join(_latex(text) for text in titles) + r" \\", r"\midrule", r"\endhead"),
            *(" & ".join(_latex(text) for text in row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{longtable}",
        ]
        yield "\n".join(lines)


def to_latex(ledger: Ledger, groups: Sequence[Group]) -> str:
    """The main table as one ``longtable`` a data set, after the survey's parts.

    It needs the packages booktabs, longtable, array and textcomp.
    """
    head = [
        "% \\usepackage{booktabs,longtable,textcomp,array}  \\usepackage[T1]{fontenc}",
        f"% {' '.join(ledger.title.split())}",
        *(f"% note: {' '.join(note.split())}" for note in ledger.notes),
    ]
    parts = ["\n".join(head), *_latex_survey(ledger, groups)]
    titles = " & ".join(_latex(title) for title in COLUMNS) + r" \\"
    for data, members in _by_data(groups).items():
        lines = [
            r"\begin{longtable}{llrrrllll>{\raggedright\arraybackslash}p{4cm}}",
            rf"\caption{{{_latex(ledger.title)}: {_latex(data)}}}\\",
            r"\toprule",
            titles,
            r"\midrule",
            r"\endhead",
        ]
        previous = None
        for group in members:
            if previous is not None and group.first.family != previous:
                lines.append(r"\addlinespace")
            previous = group.first.family
            lines += [" & ".join(_latex(text) for text in line) + r" \\" for line in _lines(group)]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{longtable}"]))
    return "\n\n".join(parts) + "\n"
