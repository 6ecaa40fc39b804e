"""Which model is best on these data: one line a model, its strongest statement of likelihood, a few measures of its
samples, and what it was given to learn with.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from dgmbench.bench.report.ledger import Ledger
from dgmbench.bench.report.numbers import Group, Row
from dgmbench.bench.report.statements import CODES, SAMPLES, TASKS, first_of_each, is_aside, statements

MOST_SAMPLE_MEASURES = 3


@dataclass(frozen=True)
class Line:
    """One model on one data set."""

    group: Group
    likelihood: Row | None
    """The strongest statement, whether or not its value is finite."""
    task: Row | None
    """What it does beside: the first measure of a task, or of its codes."""
    samples: dict[str, Row] = field(default_factory=dict)
    images: float | None = None
    """Images seen in training, and the seconds that it took: means over the seeds."""
    seconds: float | None = None


def overview(ledger: Ledger, groups: Sequence[Group]) -> list[Line]:
    """A line for each group; by data set, then the higher likelihood first, then models without one by their first
    measure of samples.
    """
    lines = [_line(ledger, group) for group in groups]
    measures = sample_measures(lines)

    def key(line: Line) -> tuple[object, ...]:
        sample = next((line.samples[name] for name in measures if name in line.samples), None)
        return line.group.first.data, *_place(line.likelihood), *_place(sample)

    return sorted(lines, key=key)


def _place(row: Row | None) -> tuple[bool, float]:
    """Better values first, none at all last."""
    if row is None or row.mean is None:
        return True, 0.0
    return False, row.mean if row.measure.direction == "lower" else -row.mean


def sample_measures(lines: Sequence[Line]) -> list[str]:
    """The measures of samples that are shown: of each pattern the one that most lines have, at most three."""
    counts = Counter(name for line in lines for name in line.samples)
    found = []
    for pattern in SAMPLES:
        fitting = sorted((-count, name) for name, count in counts.items() if fnmatch(name, pattern))
        found += [name for _, name in fitting[:1]]
    return found[:MOST_SAMPLE_MEASURES]


def _line(ledger: Ledger, group: Group) -> Line:
    rows: dict[str, Row] = {}
    for row in group.rows:
        if row.values and "@" not in row.measure.metric:
            rows.setdefault(row.measure.metric, row)
    said, beside = statements(rows), [*first_of_each(rows, (*TASKS, *CODES))]
    cost = [ledger.cells[number].cost for number in group.cells]
    return Line(
        group,
        rows[said[0]] if said else None,
        rows[beside[0]] if beside else None,
        {name: row for name, row in rows.items() if not is_aside(name) and any(fnmatch(name, p) for p in SAMPLES)},
        _mean([each.get("images") for each in cost]),
        _mean([each.get("train_seconds") for each in cost]),
    )


def _mean(values: Sequence[object]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None
