"""Processor seconds of every test, children included: a table by row and by file, and a budget for each row.

``--budgets`` prints the tables and marks the rows that are over their budget. Seconds of the processor depend on what
else the machine does (a shared cache, a host's other guests), if less than those of the clock; so a session fails only
where a row needs ``RUNAWAY`` times its budget, which is never the machine's doing.
"""

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from dgmbench.config.cards import read_cards

from .fast import remember
from .process_tree import cpu_seconds

# A row's own tests, and the proof of its tiny instances.
BUDGETS = {"tests": 10.0, "verify": 5.0}
# The same rows have measured up to twice as much in a slow hour of one machine.
RUNAWAY = 5.0
VERIFY = "tests/contract/test_every_model.py::test_the_model_verifies["
FILES_SHOWN = 20


def row_of(nodeid: str, parameters: dict[str, Any], rows: set[str]) -> tuple[str, str] | None:
    """The row and the budget that a test belongs to: by its parameter, else by the name of its file."""
    path = nodeid.partition("::")[0]
    of = next((value for value in parameters.values() if isinstance(value, str) and value in rows), None)
    if nodeid.startswith(VERIFY):
        return None if of is None else (of, "verify")
    name = Path(path).stem.removeprefix("test_")
    if not path.startswith("tests/models/"):
        return None
    if of is not None:
        return of, "tests"
    return (name, "tests") if name in rows else None


class Costs:
    """The plugin; with xdist one in every worker, whose sums come together in the controller's."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.rows = set(read_cards())
        self.by_row: Counter[tuple[str, str]] = Counter()
        self.by_test: dict[str, float] = {}

    def pytest_sessionstart(self) -> None:
        """What every test needs is imported before the first is measured."""
        if self.config.pluginmanager.hasplugin("dsession"):
            return  # the controller runs none
        import dgmbench.bench.preload  # noqa: F401

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        begin = cpu_seconds()
        result = yield
        self.add(item, cpu_seconds() - begin)
        return result

    def add(self, item: pytest.Item, seconds: float) -> None:
        self.by_test[item.nodeid] = round(seconds, 3)
        parameters = getattr(item, "callspec", None)
        row = row_of(item.nodeid, parameters.params if parameters else {}, self.rows)
        if row is not None:
            self.by_row[row] += seconds

    @property
    def by_file(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for nodeid, seconds in self.by_test.items():
            found[nodeid.partition("::")[0]] += seconds
        return found

    def over(self) -> list[str]:
        """One sentence for each row that has run away."""
        return [
            f"{name}: {budget} took {seconds:.1f} CPU s, more than {RUNAWAY:g} x {BUDGETS[budget]:g}"
            for (name, budget), seconds in sorted(self.by_row.items())
            if seconds > RUNAWAY * BUDGETS[budget]
        ]

    # ------------------------------------------------------------------ the worker's word and the controller's

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        told = getattr(self.config, "workeroutput", None)
        if told is not None:
            told["costs"] = [[*row, seconds] for row, seconds in self.by_row.items()], self.by_test
            return
        remember(self.config, self.by_test)
        if self.over() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        rows, tests = getattr(node, "workeroutput", {}).get("costs", ([], {}))
        for name, budget, seconds in rows:
            self.by_row[name, budget] += seconds
        self.by_test.update(tests)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        write = terminalreporter.write_line
        terminalreporter.section("CPU seconds")
        files = self.by_file
        for file, seconds in files.most_common(FILES_SHOWN):
            write(f"{seconds:8.1f}  {file}")
        write(f"{files.total():8.1f}  all files")
        write(f"{'tests':>8} {'verify':>8}  row (budgets: {BUDGETS['tests']:g} and {BUDGETS['verify']:g})")
        for name in sorted({name for name, _ in self.by_row}):
            own, verify = (self.by_row[name, budget] for budget in BUDGETS)
            marks = ["over" if self.by_row[name, budget] > limit else "" for budget, limit in BUDGETS.items()]
            write(f"{own:8.1f} {verify:8.1f}  {name} {' '.join(filter(None, marks))}".rstrip())
        for sentence in self.over():
            write(f"far over budget: {sentence}", red=True)
