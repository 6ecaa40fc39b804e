"""What a suite has found, as text: published beside measured values, headline metrics, and why cells are empty."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dgmbench.bench.cells import Cell
from dgmbench.bench.report.numbers import HEADLINES, same_protocol
from dgmbench.bench.suite import Folders, value_of
from dgmbench.config.files import read_settings
from dgmbench.runs.metric_names import bound_samples, is_called

Result = Mapping[str, Any]


def headline(result: Result, k: int | None = None) -> str | None:
    """The name of the metric that says most about a model; of several bounds, that of the protocol's ``k``."""
    metrics = result["metrics"]
    own = (result.get("objective") or {}).get("name")
    if isinstance(own, str) and own in metrics and not any(is_called(own, known) for known in HEADLINES):
        return own  # what the model names itself
    for wanted in HEADLINES:
        names = [name for name in metrics if is_called(name, wanted)]
        if names:
            return next((name for name in names if k and bound_samples(name) == k), max(names, key=_samples))
    return next(iter(metrics), None)


def _samples(name: str) -> int:
    return bound_samples(name) or 0


def protocol_k(cell: Cell, config_dirs: Folders = ()) -> int | None:
    """The number of importance samples that the cell's protocol asks for, told from its settings and files."""
    found = value_of(cell.overrides, "protocol.k")
    name: str | None = value_of(cell.overrides, "protocol") or "default"
    config_dirs, seen = list(config_dirs), set()
    while found is None and name is not None and name not in seen:
        seen.add(name)
        content = read_settings("protocol", name, config_dirs)
        found = content.get("k")
        bases = [base for base in content.get("defaults", ()) if isinstance(base, str) and base != "_self_"]
        name = bases[0] if bases else None
    return int(found) if found is not None and str(found).isdigit() else None


def groups(cells: Iterable[Cell]) -> dict[tuple[str, ...], list[Cell]]:
    """The cells that differ by the seed only."""
    found: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        rest = tuple(text for text in cell.overrides if not text.startswith("seed="))
        found.setdefault((cell.experiment or "", *rest), []).append(cell)
    return found


def published_rows(cells: Sequence[Cell], result_of: Callable[[Cell], Result | None]) -> list[tuple[str, ...]]:
    """Published | ours | difference | same protocol?, one row an experiment."""
    rows: list[tuple[str, ...]] = []
    for group in groups(cell for cell in cells if cell.paper is not None).values():
        paper = group[0].paper or {}
        values = [v for cell in group if (v := _value(result_of(cell), paper["metric"])) is not None]
        published = f"{paper['value']:g} {paper['unit']}"
        if not values:
            rows.append((group[0].experiment or "", published, "-", _why_empty(group, paper["metric"]), ""))
            continue
        answer, notes = _same_protocol(paper, [found for cell in group if (found := result_of(cell)) is not None])
        why = "; ".join(note.removeprefix("differs: ") for note in notes)
        same = f"{answer}: {why}" if answer == "no" else answer
        mean = statistics.fmean(values)
        difference = mean - paper["value"]
        within = "" if abs(difference) > paper["tolerance"] else " (within tolerance)"
        rows.append(
            (group[0].experiment or "", published, spread(values), f"{difference:+.3g}{within}", same),
        )
    return rows


def _same_protocol(paper: Mapping[str, Any], results: Sequence[Result]) -> tuple[str, list[str]]:
    """The report's answer for the first result that has the paper's metric."""
    for result in results:
        if (metric := result["metrics"].get(paper["metric"])) is not None:
            name = str(metric.get("protocol_id", ""))
            return same_protocol(paper, name, result.get("protocols", {}).get(name, {}))
    return "", []


def measured_rows(
    cells: Sequence[Cell], result_of: Callable[[Cell], Result | None], config_dirs: Folders = ()
) -> list[tuple[str, ...]]:
    """One row for all seeds of a model on a data set: headline metric, energy distance, budget and seconds, status."""
    rows: list[tuple[str, ...]] = []
    for group in groups(cell for cell in cells if cell.paper is None).values():
        results = [found for cell in group if (found := result_of(cell)) is not None]
        first = group[0]
        if not results:
            rows.append((first.model, first.family or "", first.data, "-", "", "", "", _why_empty(group, None)))
            continue
        name = headline(results[0], protocol_k(first, config_dirs))
        values = [v for found in results if (v := _value(found, name)) is not None]
        metric = results[0]["metrics"].get(name, {})
        unit = f"{metric.get('unit', '')}, {metric.get('kind', '')}"
        distances = [v for found in results if (v := _value(found, "energy_distance")) is not None]
        seconds = statistics.fmean(found["cost"]["train_seconds"] for found in results)
        budget = value_of(first.overrides, "trainer.budget")
        rows.append(
            (
                first.model,
                first.family or "",
                first.data,
                f"{name} {_both_sides(results, name, values)}" if values else f"{name} is not finite",
                unit,
                spread(distances) if distances else "-",
                f"{budget}, {seconds:.0f} s" if budget else f"{seconds:.0f} s",
                _why_empty([cell for cell in group if cell.status != "done"], None),
            )
        )
    return rows


def _both_sides(results: Sequence[Result], name: str | None, values: Sequence[float]) -> str:
    """The spread of a metric; an estimate by annealing with that of the other direction, since one side flatters."""
    other = None if name is None else name.replace("_ais", "_reverse_ais")
    reverse = [v for found in results if (v := _value(found, other)) is not None] if other != name else []
    return f"{spread(values)}, reverse {spread(reverse)}" if reverse else spread(values)


def spread(values: Sequence[float]) -> str:
    """Mean +- standard deviation (number) of several values; a single one alone."""
    if len(values) == 1:
        return f"{values[0]:.4g} (1)"
    return f"{statistics.fmean(values):.4g} +- {statistics.stdev(values):.2g} ({len(values)})"


def _value(result: Result | None, name: str | None) -> float | None:
    value = None if result is None else result["metrics"].get(name, {}).get("value")
    return value if value is not None and math.isfinite(value) else None


def _why_empty(cells: Sequence[Cell], metric: str | None) -> str:
    reasons: dict[str, None] = {}
    for cell in cells:
        if cell.status == "done":
            reasons[f"the run has no {metric}"] = None
        else:
            reasons[f"{cell.status}: {cell.reason}" if cell.reason else cell.status] = None
    return "; ".join(reasons)


def estimate(
    chosen: Sequence[Cell], cells: Sequence[Cell], slots: int, tried: Mapping[str, float | None] | None = None
) -> tuple[dict[str, float | None], float | None]:
    """Seconds that each chosen cell will take, from finished ``cells`` of other seeds, else as ``tried``, and all in so
    many slots.
    """
    known: dict[tuple[str, ...], list[float]] = {}
    for key, group in groups(cells).items():
        known[key] = [cell.seconds for cell in group if cell.seconds is not None and cell.status in ("done", "stale")]
    each: dict[str, float | None] = {}
    for key, group in groups(chosen).items():
        for cell in group:
            if cell.status == "planned":
                each[cell.id] = statistics.fmean(known[key]) if known[key] else (tried or {}).get(cell.id)
    values = [value for value in each.values() if value is not None]
    total = sum(values) / max(1, min(slots, len(values))) if len(values) == len(each) else None
    return each, total
