"""What the survey itself says of each model, beside what was measured: its rows, in its order.

The rows of its three tables lie in ``survey.yaml``; a model that only its text names is told by its card.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dgmbench.bench.report.ledger import Ledger
from dgmbench.bench.report.numbers import Group
from dgmbench.bench.report.overview import Line, overview
from dgmbench.config.bounded import load_yaml, read_bytes
from dgmbench.config.cards import Card, read_cards

FILE = Path(__file__).parent / "survey.yaml"
SECTIONS = {1: 2, 2: 3, 3: 4}
"""The section that each table belongs to."""
SAID = {
    "likelihood": "likelihood is",
    "changes": "changes",
    "aim": "aim",
    "method": "what is new",
    "pictures": "its pictures",
    "largest": "largest",
}
"""The columns, most of which one table of the survey has and another lacks."""


@dataclass(frozen=True)
class Entry:
    """What the survey says of one model."""

    model: str
    name: str
    """As the survey spells it."""
    section: str
    table: int | None = None
    row: int = 0
    said: Mapping[str, str] = field(default_factory=dict)
    """By the keys of ``SAID``; what the survey does not say is left out."""

    @property
    def where(self) -> str:
        """Where a reader of the survey finds it."""
        return f"table {self.table}, row {self.row}" if self.table else f"section {self.section}".strip()

    @property
    def part(self) -> str:
        """The heading that it stands under."""
        if self.table:
            return f"Table {self.table}: {_tables()[self.table]['title']}"
        major = self.section.partition(".")[0]
        beside = {section: f", beside table {table}" for table, section in SECTIONS.items()}
        return f"Section {major}{beside.get(int(major), '')}" if major else "Beyond the survey"

    @property
    def order(self) -> tuple[object, ...]:
        """Section by section, the rows of its table first, then what only its text names."""
        numbers = [int(number) for number in re.findall(r"\d+", self.section)]
        major = SECTIONS[self.table] if self.table else numbers[0] if numbers else 99
        return major, self.table is None, self.row, numbers


@cache
def _tables() -> dict[int, dict[str, Any]]:
    return load_yaml(read_bytes(FILE), FILE)["tables"]


def entry(model: str, card: Card | None) -> Entry:
    """What is said of a model; one that has neither a row nor a card has its name alone."""
    about = {} if card is None else {"likelihood": card.likelihood}
    for table, content in _tables().items():
        for number, (name, row) in enumerate(content["rows"].items(), 1):
            if name == model:
                said = about | {key: str(row[key]) for key in SAID if key in row}
                return Entry(model, str(row["name"]), str(SECTIONS[table]), table, number, said)
    section = "" if card is None else card.survey.partition(",")[0].strip()
    return Entry(model, model, section, said=about | ({} if card is None else {"method": card.summary}))


def rows_of_tables() -> dict[str, int]:
    """The models that the survey's tables list, with the number of the table."""
    return {name: table for table, content in _tables().items() for name in content["rows"]}


def in_its_order(ledger: Ledger, groups: Sequence[Group]) -> list[tuple[Entry, Line]]:
    """The models of a suite of the survey in the survey's order; nothing of any other suite."""
    if not ledger.survey:
        return []
    cards = read_cards()
    lines = {id(line.group): line for line in overview(ledger, groups)}
    found = [(entry(group.first.model, cards.get(group.first.model)), lines[id(group)]) for group in groups]
    return sorted(found, key=lambda pair: pair[0].order)


def by_part(found: Sequence[tuple[Entry, Line]]) -> dict[str, list[tuple[Entry, Line]]]:
    """The same under the survey's headings."""
    parts: dict[str, list[tuple[Entry, Line]]] = {}
    for pair in found:
        parts.setdefault(pair[0].part, []).append(pair)
    return parts


def columns_of(found: Sequence[tuple[Entry, Line]]) -> list[str]:
    """The keys of ``SAID`` that anything is said under."""
    return [key for key in SAID if any(each.said.get(key) for each, _ in found)]
