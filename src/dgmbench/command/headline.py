"""What a run has found, in five to eight rows that fit a terminal of 80 columns; 'dgm show' has the rest."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dgmbench.bench.report.numbers import HEADLINES, rounded
from dgmbench.bench.report.statements import CODES, SAMPLES, TASKS, first_of_each, is_aside, statements
from dgmbench.command.tables import print_table
from dgmbench.errors import harmless, say
from dgmbench.runs.metric_names import EARLIER, is_called

Metrics = Mapping[str, Mapping[str, Any]]

FEWEST, MOST, WIDTH = 5, 8, 80


def print_headline(result: Mapping[str, Any], run: str) -> None:
    """The table, what is remarkable of its numbers, and where the others are."""
    metrics: Metrics = result["metrics"]
    names = chosen(metrics, (result.get("objective") or {}).get("name"))
    final = {name: metrics[f"{name}@final"] for name in names if f"{name}@final" in metrics}
    apart = any(each["value"] != metrics[name]["value"] for name, each in final.items())
    remarks = list(dict.fromkeys(text for name in names if (text := metrics[name].get("note"))))
    rows = []
    for name in names:
        metric = metrics[name]
        mark = f" [{remarks.index(metric['note']) + 1}]" if metric.get("note") else ""
        last = [_value(final[name], error=False) if name in final else ""] if apart else []
        rows.append((name + mark, _value(metric, error=True), *last, _about(metric)))
    columns = ("metric", *(("best weights", "final") if apart else ("value",)), "unit, kind")
    print_table(columns, rows, width=WIDTH)
    for number, remark in enumerate(remarks, start=1):
        about = f"[{number}] {harmless(remark)}"
        print(textwrap.fill(about, WIDTH, initial_indent="  ", subsequent_indent="      "))
    rest = len(metrics) - len(names) - (len(final) if apart else 0)
    if rest:
        say(f"  {rest} more numbers: dgm show run={run}")


def chosen(metrics: Metrics, objective: object = None) -> list[str]:
    """The names of the numbers that say most, at most MOST: the objective that a model names itself, its statements
    about likelihood, the strongest one in another unit, its tasks, its samples, its codes.
    """
    names = [name for name in metrics if EARLIER not in name and "@" not in name]
    if not names:  # no number of the test split
        first = next(iter(metrics), "").partition("@")[2]
        names = [name for name in metrics if EARLIER not in name and name.partition("@")[2] == first]
    found: dict[str, None] = {}
    for name in _ranked(names, objective):
        if len(found) < MOST:
            found[name] = None
    for name in sorted(names):
        if len(found) < FEWEST and not is_aside(name.partition("@")[0]):
            found[name] = None
    return list(found)


def _ranked(names: list[str], objective: object) -> Iterator[str]:
    bare = {name.partition("@")[0]: name for name in names}
    if objective in bare and not any(is_called(str(objective), known) for known in HEADLINES):
        yield bare[str(objective)]
    said = statements(bare)
    for name in said[:2]:
        yield bare[name]
        yield from _of(bare, [name.replace("_ais", "_reverse_ais")])  # one side alone flatters
    if said:
        units = [f"{said[0]}_{unit}" for unit in ("bits_per_dim", "per_step", "perplexity")]
        yield from list(_of(bare, units))[:1]
    yield from list(_of(bare, TASKS))[:2]
    yield from _of(bare, SAMPLES)
    yield from list(_of(bare, CODES))[:2]


def _of(bare: Mapping[str, str], patterns: Iterable[str]) -> Iterator[str]:
    return (bare[name] for name in first_of_each(bare, patterns))


def _value(metric: Mapping[str, Any], *, error: bool) -> str:
    if metric["value"] is None:
        return "not finite"
    value = rounded(metric["value"], metric["se"])
    return f"{value} +- {metric['se']:.2g}" if error and metric["se"] is not None else value


def _about(metric: Mapping[str, Any]) -> str:
    """Unit and kind; that a number is an estimate goes without saying, that it is exact or a bound does not."""
    unit = "" if metric["unit"] == "1" else metric["unit"]
    kind = "" if metric["kind"] == "estimate" else metric["kind"]
    return ", ".join(filter(None, (unit, kind)))
