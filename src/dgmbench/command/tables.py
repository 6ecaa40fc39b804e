"""What verbs print: tables of numbers, configurations, and complaints."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dgmbench.command.streams import trouble_with
from dgmbench.errors import harmless


def print_config(completed: dict[str, Any]) -> int:
    """A complete configuration as YAML."""
    import yaml

    print(yaml.safe_dump(completed, sort_keys=False), end="")
    return 0


def print_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    """The ``metrics`` of a ``result.json`` as a table."""
    rows = []
    for name, metric in sorted(metrics.items()):
        error = "" if metric["se"] is None else f" +- {metric['se']:.2g}"
        value = "not finite" if metric["value"] is None else f"{metric['value']:.6g}{error}"
        rows.append((name, value, metric["unit"], metric["kind"], metric["protocol_id"], metric.get("note") or ""))
    print_table(("metric", "value", "unit", "kind", "protocol", ""), rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 200) -> None:
    """Rows of text under headings; verdicts in colour. What is wider than ``width`` is folded, never cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    styles = {"passed": "green", "FAILED": "bold red", "undecided": "yellow"}
    for row in rows:
        table.add_row(*(Text(harmless(cell), style=styles.get(cell, "")) for cell in row))
    console = Console(width=width)  # where that is more than the terminal has, the terminal wraps
    console.print(table)


def complain(sentence: str) -> None:
    """Say it on stderr."""
    with suppress(OSError):  # a terminal may be gone, a file full
        print(f"dgm: {harmless(sentence)}", file=sys.stderr)
    trouble_with(sys.stderr)
