"""Learning curves, thinned while they are read."""

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POINTS = 200
_AXES = ("images", "seconds")
_OTHER = ("kind", "batches", "epoch", "stage")


def read_curves(file: Path, points: int = POINTS) -> dict[str, dict[str, list[float | None]]]:
    """``{"train": {"images": [...], "seconds": [...], NAME: [...]}, "valid": {...}}``, at most ``points`` rows each.

    Only the rows that are kept are parsed, so that a log of any length costs about the same.
    """
    try:
        if not file.is_file():  # a pipe would wait for ever
            return {}
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            rows = {"train": list(_spread(content, points)), "valid": list(_matching(content, b'{"kind": "valid"'))}
    except (OSError, ValueError):  # no such file, or an empty one
        return {}
    rows["valid"] = _thinned(rows["valid"], points)
    return {kind: _columns(found) for kind, found in rows.items() if found}


def _spread(content: mmap.mmap, points: int) -> Iterator[dict[str, Any]]:
    """Training rows at evenly spaced places of the file, the last one included."""
    starts = {0} | {content.find(b"\n", len(content) * i // points) + 1 for i in range(1, points - 1)}
    starts.add(content.rfind(b'{"kind": "train"'))
    for start in sorted(starts):
        row = _row(content, start) if 0 <= start < len(content) else None
        if row is not None and row.get("kind") == "train":
            yield row


def _matching(content: mmap.mmap, head: bytes) -> Iterator[dict[str, Any]]:
    start = content.find(head)
    while start >= 0:
        row = _row(content, start)
        if row is not None:
            yield row
        start = content.find(head, start + 1)


def _row(content: mmap.mmap, start: int) -> dict[str, Any] | None:
    end = content.find(b"\n", start)
    try:
        row = json.loads(content[start:end]) if end >= 0 else None  # a kill while writing leaves a torn last line
    except ValueError:
        return None
    return row if isinstance(row, dict) and "images" in row else None


def _thinned(rows: list[dict[str, Any]], points: int) -> list[dict[str, Any]]:
    if len(rows) <= points:
        return rows
    return [rows[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    names = list(dict.fromkeys([*_AXES, *(name for row in rows for name in row if name not in _OTHER)]))
    return {name: [_short(row.get(name)) for row in rows] for name in names}


def _short(value: object) -> float | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, float) or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.5g}")
