"""From cells to the numbers of a table: means over seeds, beside what was published, and a reason where there is none.

A mean takes values of one model, data set, settings, metric **and protocol** only. Where one metric of one data set was
measured under several protocols, each gets its own rows and a letter, and a note says so.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgmbench.bench.report.ledger import HAS_NUMBERS, Cell, Ledger
from dgmbench.evaluation.names import CONDITIONAL
from dgmbench.runs.metric_names import bound_samples, without_protocol

HEADLINES = (
    "log_likelihood", "log_likelihood_ais", "log_likelihood_estimate", "iw_bound", "elbo", "elbo_ais", "elbo_estimate",
    "reconstruction_log_prob", "energy_distance", "patch_energy_distance",
)  # fmt: skip
"""What stands for a model, the strongest statement first."""


@dataclass(frozen=True)
class Measure:
    """What a number is: two numbers with different measures never enter one mean."""

    metric: str
    kind: str
    unit: str
    direction: str
    protocol_id: str
    letter: str = ""
    """Which of several protocols of this metric and data set it is; empty where there is one."""


@dataclass
class Published:
    """A published value beside ours."""

    value: float | None
    text: str
    paper: Mapping[str, Any]
    difference: float | None = None
    within: bool | None = None
    """Whether the difference lies within the tolerance that the experiment states."""
    same_protocol: str = "not stated"
    why: str = ""


@dataclass
class Row:
    """One metric of one group: the mean over its seeds, or the reason why there is none."""

    measure: Measure
    values: list[tuple[int, float]] = field(default_factory=list)
    """The number of each cell in the ledger and its value; NaN where it is not finite and nothing more is known."""
    mean: float | None = None
    sd: float | None = None
    se: float | None = None
    """The standard error of a single value; the spread over seeds is ``sd``."""
    why: str = ""
    warning: str = ""
    """What the runs say against relying on their numbers."""
    published: Published | None = None

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def text(self) -> str:
        """Mean ± sd (n), as many digits as the spread allows."""
        if self.mean is None:
            return ""
        spread = self.sd if self.sd else self.se
        value = rounded(self.mean, spread)
        return f"{value} ({self.n})" if self.sd is None else f"{value} ± {rounded(self.sd, spread)} ({self.n})"


@dataclass
class Group:
    """The cells that differ in their seed only."""

    cells: list[int]
    first: Cell
    rows: list[Row] = field(default_factory=list)
    why: str = ""
    """What became of the cells without numbers."""


def group_cells(ledger: Ledger) -> list[Group]:
    """Group the cells of a ledger over their seeds, with all numbers; notes on protocols go to the ledger."""
    groups: dict[tuple[str, ...], Group] = {}
    for number, cell in enumerate(ledger.cells):
        key = (cell.family, cell.model, cell.data, cell.experiment, cell.variant)
        groups.setdefault(key, Group([], cell)).cells.append(number)
    letters = _letters(ledger)
    for group in groups.values():
        cells = [ledger.cells[number] for number in group.cells]
        group.why = _why_empty(cells)
        group.rows = _rows(ledger, group, letters)
        _compare(ledger, group, cells)
    return list(groups.values())


def metric_order(groups: Sequence[Group]) -> list[str]:
    """The names of all metrics: headlines, then others by their number of groups; what is marked by ``@`` last."""
    counts = Counter(row.measure.metric for group in groups for row in group.rows if row.measure.metric)

    def key(name: str) -> tuple[bool, int, int, str]:
        stem = name.removeprefix(CONDITIONAL)  # beside the others, of which data have one kind only
        stem = stem if bound_samples(stem) is None else "iw_bound"
        rank = HEADLINES.index(stem) if stem in HEADLINES else len(HEADLINES)
        return "@" in name, rank, -counts[name], name

    return sorted(counts, key=key)


def _letters(ledger: Ledger) -> dict[tuple[str, str, str], str]:
    """A letter for each protocol of a metric and data set that has several, the most frequent first."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    last: Counter[tuple[str, str, str]] = Counter()  # how often it is the protocol that was measured last
    for cell in ledger.cells:
        for stored, metric in cell.metrics.items():
            name, protocol = without_protocol(stored), metric["protocol_id"]
            counts.setdefault((cell.data, name), Counter())[protocol] += 1
            last[cell.data, name, protocol] += stored == name
    letters = {}
    alike: dict[tuple[str, tuple[tuple[str, int], ...]], list[str]] = {}
    for (data, name), counter in sorted(counts.items()):
        if len(counter) < 2:
            continue
        # among equals the order of the cells, which is one for all metrics, so that letters mean the same measurement
        ranked = sorted(counter, key=lambda protocol: (-counter[protocol], -last[data, name, protocol]))
        for rank, protocol in enumerate(ranked):
            letters[data, name, protocol] = chr(ord("A") + rank) if rank < 26 else f"Z{rank - 25}"
        alike.setdefault((data, tuple((p, counter[p]) for p in ranked)), []).append(name)
    for (data, counted), names in alike.items():
        ranked = [protocol for protocol, _ in counted]
        parts = [f"{letters[data, names[0], p]} = {p or 'none'} ({count} cells)" for p, count in counted[:6]]
        differing = _differing([ledger.protocols.get(p, {}) for p in ranked])
        about = f"; they differ in {', '.join(differing[:6])}" if differing else ""
        what = f"{', '.join(names)} on {data} {'was' if len(names) == 1 else 'were each'}"
        ledger.notes.append(
            f"{what} measured under {len(ranked)} protocols, which are kept apart: {', '.join(parts)}{about}."
        )
    return letters


def _differing(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for protocol in protocols for name in protocol})
    return [name for name in names if len({repr(protocol.get(name)) for protocol in protocols}) > 1]


def _why_empty(cells: Sequence[Cell]) -> str:
    """``2 of 3 seeds: failed while running: ...``; empty when every cell has numbers."""
    reasons = Counter(cell.explanation for cell in cells if cell.status not in HAS_NUMBERS)
    if len(cells) == 1:
        return next(iter(reasons), "")
    return "; ".join(f"{count} of {len(cells)} seeds {reason}" for reason, count in reasons.items())


def _rows(ledger: Ledger, group: Group, letters: Mapping[tuple[str, str, str], str]) -> list[Row]:
    rows: dict[Measure, Row] = {}
    errors: dict[Measure, list[float]] = {}
    warnings: dict[Measure, list[tuple[int | None, str]]] = {}
    for number in group.cells:
        cell = ledger.cells[number]
        for stored, metric in cell.metrics.items():
            name = without_protocol(stored)
            letter = letters.get((cell.data, name, metric["protocol_id"]), "")
            measure = Measure(name, metric["kind"], metric["unit"], metric["direction"], metric["protocol_id"], letter)
            rows.setdefault(measure, Row(measure)).values.append((number, finite_or_nan(metric["value"])))
            if metric.get("note"):
                warnings.setdefault(measure, []).append((cell.seed, metric["note"]))
            if isinstance(metric.get("se"), int | float):
                errors.setdefault(measure, []).append(metric["se"])
    for measure, row in rows.items():
        said = warnings.get(measure, [])
        row.warning = said[0][1] if row.n == 1 and said else "; ".join(f"seed {seed}: {note}" for seed, note in said)
        finite = [value for _, value in row.values if math.isfinite(value)]
        if len(finite) < len(row.values):
            some = f"{row.n - len(finite)} of {row.n} values are not finite, so there is no mean"
            row.why = some if row.n > 1 else "the value is not finite"
            continue
        row.mean = mean = math.fsum(finite) / len(finite)
        squares = math.fsum((value - mean) ** 2 for value in finite)
        row.sd = math.sqrt(squares / (len(finite) - 1)) if len(finite) > 1 else None
        row.se = math.fsum(errors[measure]) / len(errors[measure]) if measure in errors else None
    return list(rows.values())


def _compare(ledger: Ledger, group: Group, cells: Sequence[Cell]) -> None:
    """Put the published values of a group's cells beside its rows; where ours is missing, say why."""
    papers: list[dict[str, Any]] = []
    for cell in cells:
        if cell.paper is not None and cell.paper not in papers:
            papers.append(cell.paper)
    for paper in papers:
        metric = str(paper.get("metric") or "")
        rows = [row for row in group.rows if row.measure.metric == metric]
        if not rows:
            done = any(cell.status in HAS_NUMBERS for cell in cells)
            named = f"the finished runs have no metric '{metric}'" if metric else "the experiment names no metric"
            missing = Measure(metric, "", str(paper.get("unit") or ""), "", "")
            rows = [Row(missing, why=named if done else group.why)]
            group.rows += rows
        for row in rows:
            row.published = _beside(paper, row, ledger.protocols.get(row.measure.protocol_id, {}))


def _beside(paper: Mapping[str, Any], row: Row, protocol: Mapping[str, Any]) -> Published:
    value, unit = paper.get("value"), str(paper.get("unit") or "")
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    found = Published(number, str(value) if value is not None else "", paper)
    if number is None:
        found.why = f"no published value: {value}" if value else "no published value"
        found.why += f"; {row.why}" if row.values and row.why else ""
    elif row.mean is None:
        found.why = row.why
    elif unit and unit != row.measure.unit:
        found.why = f"the published value is in {unit}, ours in {row.measure.unit or 'no unit'}"
    else:
        found.difference = row.mean - number
        tolerance = paper.get("tolerance")
        if isinstance(tolerance, int | float):
            found.within = abs(found.difference) <= tolerance
    found.same_protocol, notes = "", [f"differs: {paper['differs']}"] if paper.get("differs") else []
    if row.mean is not None:
        found.same_protocol, notes = same_protocol(paper, row.measure.protocol_id, protocol)
    found.why = "; ".join(part for part in (found.why, *notes) if part)
    return found


def same_protocol(paper: Mapping[str, Any], protocol_id: str, protocol: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Whether a number was measured as the paper's: a mapping is checked, a text can only be shown."""
    stated, differs = paper.get("protocol"), paper.get("differs")
    notes = [f"differs: {differs}"] if differs else []
    if isinstance(stated, Mapping):
        differing = [
            f"{name}: published {value}, ours {protocol.get(name, 'unknown')}"
            for name, value in stated.items()
            if protocol.get(name) != value
        ]
        return "no" if differing or differs else "yes", [*differing, *notes]
    if differs:
        return "no", notes
    if not stated:
        return "not stated", []
    if stated == protocol_id:
        return "yes", []
    return "as stated" if "differs" in paper else "see note", [f"published: {stated}"]


def finite_or_nan(value: float | None) -> float:
    """A result's value; null, which stands for one that is not finite, as NaN."""
    return math.nan if value is None else value


def rounded(value: float, spread: float | None = None) -> str:
    """A number with two digits of its spread, or four of its own.

    >>> rounded(-18.5246, 0.2257), rounded(1234.5), rounded(0.01350162)
    ('-18.52', '1234', '0.0135')
    """
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3e}"
    if spread and math.isfinite(spread):
        return f"{value:.{max(0, min(8, 1 - math.floor(math.log10(abs(spread)))))}f}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def signed(value: float, spread: float | None = None) -> str:
    """A difference, with its sign."""
    text = rounded(value, spread)
    return text if text.startswith("-") else f"+{text}"
