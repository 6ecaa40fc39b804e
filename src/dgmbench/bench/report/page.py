"""The page: one HTML file that holds its data, style and program, and asks nothing of the network.

The numbers travel as compact JSON and become rows of tables only where they are looked at, so that ten thousand cells
still open. Values from runs reach the page as text nodes, never as markup. Configurations and tracebacks, which repeat
themselves, are packed with gzip.
"""

import base64
import gzip
import json
import time
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dgmbench import __version__
from dgmbench.bench.report.curves import read_curves
from dgmbench.bench.report.ledger import HAS_NUMBERS, STATUSES, Cell, Ledger, read_traceback
from dgmbench.bench.report.numbers import Group, Row, metric_order, signed
from dgmbench.bench.report.overview import overview, sample_measures
from dgmbench.bench.report.pictures import CACHE, find_picture, picture_uris, what_is_shown
from dgmbench.bench.report.survey import SAID, columns_of, in_its_order
from dgmbench.bench.report.tables import model_label
from dgmbench.config.bounded import read_bytes
from dgmbench.config.cards import FAMILIES, family_title
from dgmbench.runs.metric_names import under_protocol
from dgmbench.runs.record import file_hash

TEMPLATES = Path(__file__).parent / "templates"
MAX_CURVES = 400
MAX_PICTURES = 500
CURVE_BYTES = 5_000_000
MOST_HASHED = 2**25
"""Bytes of a log that is compared with its hash before its curve is shown."""
PICTURE_BYTES = 9_000_000
TEXT_BYTES = 60_000_000
"""Configurations and tracebacks before packing, which makes them about fifty times smaller."""
_COST = (
    "parameters", "images", "train_seconds", "train_images_per_second", "sample_seconds_per_image", "peak_memory_mib",
    "device", "evaluate_seconds", "evaluate_peak_memory_mib",
)  # fmt: skip


def to_html(ledger: Ledger, groups: Sequence[Group]) -> str:
    """The whole page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    counts = {status: sum(cell.status == status for cell in ledger.cells) for status in STATUSES}
    notes = list(ledger.notes)
    data = _payload(ledger, groups, notes)
    return environment.get_template("report.html.j2").render(
        title=ledger.title,
        survey=ledger.survey,
        in_survey=bool(data["survey"]),
        made=time.strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        counts={status: count for status, count in counts.items() if count},
        cells=len(ledger.cells),
        notes=notes,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        program=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        data=script_json(data),
        texts=_packed(ledger, notes),
    )


def script_json(value: object) -> str:
    """JSON that can stand inside a ``<script>`` element whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written


class _Table:
    """Distinct values by number, so that what repeats is stored once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Hashable, int] = {}

    def number(self, value: Any, key: Hashable = None) -> int:
        key = value if key is None else key
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


def _payload(ledger: Ledger, groups: Sequence[Group], notes: list[str]) -> dict[str, Any]:
    measures, versions, papers = _Table(), _Table(), _Table()
    listed: list[dict[str, Any]] = []
    values: dict[int, list[list[Any]]] = {}
    for group in groups:
        rows = []
        for row in group.rows:
            measure = row.measure
            name = measures.number(
                [measure.metric, measure.kind, measure.unit, measure.direction, measure.protocol_id, measure.letter],
                measure,
            )
            rows.append(_row(row, name, papers))
            for number, value in row.values:
                metric = under_protocol(ledger.cells[number].metrics, measure.metric, measure.protocol_id)
                shown = "not finite" if value != value else _safe(value)
                entry = [name, shown, _safe(metric.get("se")), metric.get("n")]
                values.setdefault(number, []).append(entry + ([metric["note"]] if metric.get("note") else []))
        listing: dict[str, Any] = {"cells": group.cells, "label": model_label(group), "rows": rows}
        listed.append(listing | ({"why": group.why} if group.why else {}))
    cells = []
    for number, cell in enumerate(ledger.cells):
        packages = versions.number(cell.versions, tuple(sorted((k, str(v)) for k, v in cell.versions.items())))
        cells.append(
            [
                cell.id, cell.model, cell.family, cell.data, cell.seed, cell.status, cell.reason, cell.run,
                cell.command, _safe(cell.seconds), [_safe(cell.cost.get(name)) for name in _COST], packages,
                cell.finished, values.get(number, []),
            ]
        )  # fmt: skip
    return {
        "folder": ledger.folder.name,
        "families": FAMILIES | {cell.family: family_title(cell.family) for cell in ledger.cells if cell.family},
        "statuses": STATUSES,
        "hasNumbers": HAS_NUMBERS,
        "costNames": _COST,
        "protocols": ledger.protocols,
        "metricNames": metric_order(groups),
        "measures": measures.values,
        "versions": versions.values,
        "papers": papers.values,
        "cells": cells,
        "groups": listed,
        **_overview(ledger, groups),
        "pictures": _pictures(ledger, groups, notes),
        "curves": _curves(ledger, groups, notes),
    }


def _overview(ledger: Ledger, groups: Sequence[Group]) -> dict[str, Any]:
    """Lines ``[group, likelihood, task, {measure: row}, images, seconds]``, rows by their number in their group; for a
    suite of the survey ``[line, where, part, name, {column: words}]`` in the survey's order.
    """
    lines, of_survey = overview(ledger, groups), in_its_order(ledger, groups)
    numbers = {id(group): number for number, group in enumerate(groups)}
    places = {id(line.group): number for number, line in enumerate(lines)}
    rows = {id(row): number for group in groups for number, row in enumerate(group.rows)}
    return {
        "sampleMeasures": sample_measures(lines),
        "said": {key: SAID[key] for key in columns_of(of_survey)},
        "survey": [
            [places[id(line.group)], about.where, about.part, about.name, about.said] for about, line in of_survey
        ],
        "overview": [
            [
                numbers[id(line.group)],
                *(None if row is None else rows[id(row)] for row in (line.likelihood, line.task)),
                {name: rows[id(row)] for name, row in line.samples.items()},
                _safe(line.images),
                _safe(line.seconds),
            ]
            for line in lines
        ],
    }


def _row(row: Row, measure: int, papers: _Table) -> dict[str, Any]:
    entry: dict[str, Any] = {"m": measure, "v": _safe(row.mean), "t": row.text}
    entry |= {"s": _safe(row.sd)} if row.sd is not None else {}
    entry |= {"e": _safe(row.se)} if row.se is not None else {}
    entry |= {"w": row.why} if row.why else {}
    entry |= {"a": row.warning} if row.warning else {}
    if row.published is not None:
        found = row.published
        shown = "" if found.difference is None else signed(found.difference, row.sd or row.se)
        paper = papers.number(dict(found.paper), repr(sorted(found.paper.items(), key=str)))
        entry["p"] = [paper, found.text, found.difference, shown, found.within, found.same_protocol, found.why]
    return entry


def _safe(value: Any) -> Any:
    """Numbers shortened to what a page can show; what is not finite becomes a word."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value
    return str(value) if value != value or value in (float("inf"), float("-inf")) else float(f"{value:.6g}")


def _in_turn(ledger: Ledger, groups: Iterable[Group]) -> list[int]:
    """The cells that have run, the first seed of every group before the second of any."""
    ran = [[number for number in group.cells if ledger.cells[number].run] for group in groups]
    ran = [sorted(numbers, key=lambda n: ledger.cells[n].status not in HAS_NUMBERS) for numbers in ran]
    longest = max(map(len, ran), default=0)
    return [numbers[turn] for turn in range(longest) for numbers in ran if turn < len(numbers)]


def _pictures(ledger: Ledger, groups: Sequence[Group], notes: list[str]) -> list[list[Any]]:
    """One grid of samples for every group: ``[cell, what it shows, data URI]``."""
    found: list[tuple[int, Path]] = []
    left_out = 0
    for group in groups:
        for number in group.cells:
            cell = ledger.cells[number]
            file = find_picture(ledger.folder / cell.run) if cell.run else None
            if file is not None and len(found) == MAX_PICTURES:
                left_out += 1
                break
            if file is not None:
                found.append((number, file))
                break
    if left_out:
        notes.append(
            f"Samples are shown of {MAX_PICTURES} models and data sets; {left_out} more lie in the run folders."
        )
    limit = PICTURE_BYTES // max(1, len(found))
    pictures = []
    uris = picture_uris([file for _, file in found], limit, ledger.folder / CACHE)
    for (number, file), uri in zip(found, uris, strict=True):
        if uri is None:
            notes.append(f"{ledger.cells[number].run}/samples/{file.name} is damaged and is not shown.")
        else:
            pictures.append([number, what_is_shown(file), uri])
    return pictures


def _curves(ledger: Ledger, groups: Sequence[Group], notes: list[str]) -> list[list[Any]]:
    """``[cell, curves]`` for as many cells as fit, the first seed of every group first."""
    turn = _in_turn(ledger, groups)
    curves: list[list[Any]] = []
    size = 0
    for position, number in enumerate(turn):
        if len(curves) == MAX_CURVES or size > CURVE_BYTES:
            left = len(turn) - position
            notes.append(f"Learning curves are shown of {len(curves)} runs; those of {left} more lie in their folders.")
            break
        cell = ledger.cells[number]
        log = ledger.folder / cell.run / "metrics.jsonl"
        found = read_curves(log)
        if (
            found
            and cell.log_hash is not None
            and log.stat().st_size <= MOST_HASHED
            and file_hash(log) != cell.log_hash
        ):
            notes.append(f"{cell.run}/metrics.jsonl has been changed since the run was made; its curve is not shown.")
            continue
        if found:
            curves.append([number, found])
            size += 8 * sum(len(column) for columns in found.values() for column in columns.values())
    return curves


def _packed(ledger: Ledger, notes: list[str]) -> str:
    """``{number of the cell: [config.yaml, traceback]}`` as base64 of gzip of JSON."""
    texts: dict[str, list[str | None]] = {}
    size = 0
    for number, cell in enumerate(ledger.cells):
        if not cell.run:
            continue
        if size > TEXT_BYTES:
            notes.append("Some configurations were too many for this page; they lie in the run folders.")
            break
        found = _texts(ledger.folder / cell.run, cell)
        if found != [None, None]:
            texts[str(number)] = found
            size += sum(len(text or "") for text in found)
    packed = gzip.compress(json.dumps(texts).encode(), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode()


def _texts(run: Path, cell: Cell) -> list[str | None]:
    try:
        config = read_bytes(run / "config.yaml").decode("utf-8", errors="replace")
    except OSError:
        config = None
    return [config, None if cell.status in HAS_NUMBERS else read_traceback(run)]
