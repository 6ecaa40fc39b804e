"""``dgm diff RUN RUN``: what two runs differ in, from their configurations to their numbers."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dgmbench.bench.report.index import read_config
from dgmbench.bench.report.numbers import finite_or_nan, rounded, signed
from dgmbench.bench.report.settings import flatten
from dgmbench.config.bounded import read_bytes
from dgmbench.errors import UserError
from dgmbench.runs.metric_names import without_protocol
from dgmbench.runs.record import file_hash, is_as_written

Difference = tuple[str, str, str, str, str]
"""Where, what, the first run's value, the second's, and their difference if they are numbers of one protocol."""
MOST_NAMES = 3


def differences(first: Path, second: Path) -> list[Difference]:
    """All settings, versions, costs, protocols and numbers in which two runs differ; paths are left out.

    A difference between protocols stands once, with the numbers that it concerns.
    """
    try:
        return _differences(first, second)
    except (AttributeError, TypeError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"The results of {first} and {second} are not of one shape ({type(error).__name__}: {error}): one is "
            "damaged, or of another version; measure it again by dgm evaluate."
        ) from error


def _differences(first: Path, second: Path) -> list[Difference]:
    configs = [_config(path) for path in (first, second)]
    found = _unequal("config", *configs)
    results = [read_result(path) for path in (first, second)]
    here, there = (_config_note(path, result) for path, result in zip((first, second), results, strict=True))
    found += [("note", "config.yaml", here, there, "")] if (here, there) != ("-", "-") else []
    found += _unequal("version", *(result.get("versions") or {} for result in results))
    found += _unequal("cost", *(result.get("cost") or {} for result in results))
    metrics = [result.get("metrics") or {} for result in results]
    protocols = [result.get("protocols") or {} for result in results]
    concerned: dict[Difference, list[str]] = {}
    numbers: list[Difference] = []
    for name, one, other in _pairs(*metrics):
        if one is not None and other is not None:
            settings = protocols[0].get(one.get("protocol_id"), {}), protocols[1].get(other.get("protocol_id"), {})
            for row in _unequal("", *settings):
                concerned.setdefault(row, []).append(name)
        numbers += _number(name, one, other)
    for row, names in concerned.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        found.append((f"protocol of {', '.join(names[:MOST_NAMES])}{more}", *row[1:]))
    return found + numbers


def _pairs(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any] | None, dict[str, Any] | None]]:
    """Each metric's numbers of two runs: those of every protocol that both know, else the last ones."""
    sides: list[dict[str, dict[str, Any]]] = [{}, {}]
    for side, run in zip(sides, (first, second), strict=True):
        for stored, found in run.items():
            side.setdefault(without_protocol(stored), {})[found.get("protocol_id", "")] = found
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(name, {}) for side in sides)
        both = [protocol for protocol in one if protocol in other]
        for protocol in both:
            yield name, one[protocol], other[protocol]
        if not both:
            yield name, first.get(name), second.get(name)


def _config(path: Path) -> dict[str, Any]:
    config = flatten(read_config(path))
    if not config:
        raise UserError(f"{path} is not the folder of a run: it has no config.yaml that can be read.")
    return {key: value for key, value in config.items() if not key.startswith(("paths.", "model.card.", "data.card."))}


def _config_note(path: Path, result: Mapping[str, Any]) -> str:
    expected = (result.get("files") or {}).get("config.yaml")
    return "-" if expected in (None, file_hash(path / "config.yaml")) else "changed since the run was made"


def read_result(path: Path) -> dict[str, Any]:
    """The ``result.json`` of a run's folder; nothing where the run is not finished."""
    try:
        result = json.loads(read_bytes(path / "result.json"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path / 'result.json'} is damaged; remove it and give the run's command again.") from error
    if isinstance(result, dict) and not is_as_written(result):
        raise UserError(
            f"{path / 'result.json'} is not what was written: something in it has been changed since; put the original "
            "back, or remove it and give the run's command again."
        )
    return result if isinstance(result, dict) else {}


def _unequal(where: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    absent = object()
    return [
        (where, key, str(first.get(key, "-")), str(second.get(key, "-")), "")
        for key in dict.fromkeys([*first, *second])
        if first.get(key, absent) != second.get(key, absent)
    ]


def _number(name: str, first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> list[Difference]:
    if first is None or second is None:
        return [("metric", name, _text(first), _text(second), "")]
    values = finite_or_nan(first.get("value")), finite_or_nan(second.get("value"))
    finite = all(map(math.isfinite, values))
    same = all(first.get(key) == second.get(key) for key in ("unit", "kind", "protocol_id"))
    notes = str(first.get("note") or "-"), str(second.get("note") or "-")
    found: list[Difference] = [] if notes[0] == notes[1] else [("note", name, *notes, "")]
    if same and (values[0] == values[1] or (not finite and _text(first) == _text(second))):
        return found
    spread = min([side["se"] for side in (first, second) if side.get("se")], default=None)
    note = "not comparable"
    if same:
        note = signed(values[1] - values[0], spread) if finite else "not finite"
    kinds = first.get("kind"), second.get("kind")
    if kinds[0] != kinds[1]:
        note += f": {kinds[0]}, {kinds[1]}"
    return [("metric", name, _text(first), _text(second), note), *found]


def _text(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return "-"
    value = finite_or_nan(metric.get("value"))
    shown = "not finite" if math.isnan(value) else rounded(value, metric.get("se"))
    return f"{shown} {metric.get('unit') or ''}".rstrip()
