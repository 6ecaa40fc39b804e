"""One proved (or refuted) statement about a model, and the statistics that turn draws into verdicts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

SIGMAS = 4.0
"""How many standard errors an estimate may lie from the truth: one right model in 16,000 fails such a check."""

QUADRATURE = 2e-3
"""How far an integral over real data may be from the truth, and how much of the mass may lie outside of its cells."""

P_VALUE = 1e-4
"""The smallest p-value of a chi-squared test that passes."""


@dataclass(frozen=True)
class Check:
    """One line of the table: what was measured, what is allowed, and the verdict.

    ``passed`` is None where the check would apply but cannot be decided here; ``note`` then says why.
    """

    name: str
    measured: str | float
    tolerance: str | float
    passed: bool | None
    note: str = ""


def undecided(name: str, reason: str) -> Check:
    """A check that applies but cannot be decided on this instance."""
    return Check(name, "-", "-", None, reason)


def combine(labelled: Iterable[tuple[str, Check]]) -> list[Check]:
    """Join the checks made on several states of one model into one line a check.

    The line shows the first failure, else the last state that passed, else why none could be decided.
    """
    by_name: dict[str, list[tuple[str, Check]]] = {}
    for label, check in labelled:
        by_name.setdefault(check.name, []).append((label, check))
    lines = []
    for results in by_name.values():
        failed = [result for result in results if result[1].passed is False]
        passed = [result for result in results if result[1].passed]
        shown = failed[:1] or passed or results
        label, check = " and ".join(label for label, _ in shown), shown[-1][1]
        lines.append(replace(check, note=f"{label}; {check.note}" if check.note else label))
    return lines


def chi_squared(counts: Tensor, probabilities: Tensor, *, variance: Tensor | None = None) -> float:
    """The p-value of ``counts`` (n,) under cell ``probabilities`` (n,), with cells expected below 5 pooled.

    Args:
        counts: how often each cell was drawn.
        probabilities: the probability of each cell.
        variance: the squared standard errors of ``probabilities`` where they are estimates themselves.
    """
    total = float(counts.sum())
    probability = probabilities.double().numpy()
    count = counts.double().numpy()
    spread = np.zeros_like(probability) if variance is None else variance.double().numpy()
    if (count[probability <= 0] > 0).any():
        return 0.0
    order = np.argsort(-probability, kind="stable")
    each = probability[order] * total
    group = np.arange(len(order))
    rare = int((each >= 5).sum())
    if rare < len(order):  # pool the rare cells, in order, into groups that are expected at least 5 times
        group[rare:] = rare + np.floor(np.cumsum(each[rare:]) / 5 - 1e-9).astype(int)
        last = group[-1]
        if each[group == last].sum() < 5 and last > 0:
            group[group == last] = group[group < last].max(initial=0)
    cell = np.unique(group, return_inverse=True)[1]
    expected, observed = np.bincount(cell, each), np.bincount(cell, count[order])
    noise = np.bincount(cell, spread[order]) * total**2
    if len(expected) < 2:
        return 1.0
    statistic = ((observed - expected) ** 2 / (expected + noise)).sum()
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def symmetry(first: Tensor, second: Tensor, states: int) -> float:
    """The p-value of "the pair (first, second) is drawn as often as (second, first)", by Bowker's test."""
    pairs = torch.bincount(first * states + second, minlength=states**2).reshape(states, states).double()
    both, difference = pairs + pairs.T, pairs - pairs.T
    kept = (both >= 10).triu(1)
    if not kept.any():
        return 1.0
    return float(stats.chi2.sf(float((difference[kept] ** 2 / both[kept]).sum()), int(kept.sum())))


def frequencies(name: str, p_values: Sequence[float], note: str) -> Check:
    """The verdict on one or more chi-squared tests of one statement, corrected for their number."""
    smallest = min(1.0, min(p_values) * len(p_values))
    return Check(name, f"p = {smallest:.2g}", f"p >= {P_VALUE:g}", smallest >= P_VALUE, note)


def within(name: str, value: float, error: float, note: str = "", *, above: bool = True, below: bool = True) -> Check:
    """Whether ``value``, known up to the standard error ``error``, is 0 (or may lie ``above`` or ``below`` it only)."""
    slack = SIGMAS * error + 1e-9
    passed = (not above or value <= slack) and (not below or value >= -slack)
    bound = "+-" if above and below else "at most " if above else "at least -"
    return Check(name, f"{value:+.3g}", f"{bound}{slack:.2g}", passed, note)
