"""``--fast``: as many tests as fit into three minutes on two cores, the cheapest first.

What a test costs is known from its last run here with ``--budgets`` (``make test``). Where nothing is known yet, what
starts processes, proves a row or belongs to a row alone is left out.
"""

from collections.abc import Sequence

import pytest

# Three minutes on two cores, less the time that both workers need to start.
CPU_SECONDS = 240.0
RECORD = "dgmbench/cpu_seconds"
# What a test without a record may cost; those below these paths are not run without one.
UNKNOWN = 0.1
SLOW = (
    "tests/bench/",
    "tests/command/test_cli.py",
    "tests/contract/",
    "tests/evaluation/",
    "tests/models/",
    "tests/runs/",
    "tests/test_packaging.py",
    "tests/test_readme.py",
    "tests/training/test_ranks.py",
)


def affordable(nodeids: Sequence[str], costs: dict[str, float]) -> set[str]:
    """The cheapest tests that together cost no more than ``CPU_SECONDS``."""
    known = {nodeid: costs.get(nodeid, UNKNOWN) for nodeid in nodeids if nodeid in costs or not nodeid.startswith(SLOW)}
    chosen, left = set(), CPU_SECONDS
    for nodeid in sorted(known, key=lambda nodeid: (known[nodeid], nodeid)):
        left -= known[nodeid]
        if left < 0:
            break
        chosen.add(nodeid)
    return chosen


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what does not fit."""
    costs = {} if config.cache is None else config.cache.get(RECORD, {})
    chosen = affordable([item.nodeid for item in items], costs)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]


def remember(config: pytest.Config, costs: dict[str, float]) -> None:
    """Add what this session's tests have cost to the record."""
    if config.cache is not None and costs:
        config.cache.set(RECORD, config.cache.get(RECORD, {}) | costs)
