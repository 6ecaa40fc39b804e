"""Undirected models whose log Z depends on what is given: normalisation and annealing, condition by condition."""

from collections.abc import Iterator
from math import comb
from typing import Any

import torch
from torch import Tensor

from dgmbench.evaluation.likelihood.ais import grouped_brackets
from dgmbench.models.contract import HasConditions, HasTransition
from dgmbench.verify.check import Check, chi_squared, frequencies, undecided
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import MOST_STATES

MOST_CONDITIONS = 3
CHAINS = 20_000
WIDTH = 3.0
SCHEDULE: dict[str, Any] = {"chains": 500, "temperatures": 200, "spacing": "even", "burn_in": 100, "tolerance": 1.0}


def compositions(total: int, parts: int) -> Tensor:
    """All count vectors of ``parts`` counts that sum to ``total``, (n, parts) int64."""
    if parts == 1:
        return torch.tensor([[total]])
    rows = []
    for first in range(total + 1):
        rest = compositions(total - first, parts - 1)
        rows.append(torch.cat([torch.full((len(rest), 1), first), rest], 1))
    return torch.cat(rows)


def checks(subject: Subject, model: HasConditions) -> Iterator[Check]:
    """For a few conditions of the data: sums over x, ends and steps of the path, and the AIS bracket."""
    name = "log Z by enumerating x, given what x is given"
    if subject.spec.kind != "counts":
        yield undecided(name, f"the values of {subject.spec} that share a condition are not known")
        return
    x = subject.data.x
    condition, total = model.condition_of(x), x.flatten(1).sum(1)
    order = total.argsort(stable=True)
    chosen = [int(order[0])]
    for index in order.tolist():
        if int(total[index]) != int(total[chosen[-1]]) and len(chosen) < MOST_CONDITIONS:
            chosen.append(index)
    given = condition[chosen]
    exact = model.annealing_path_given(given).exact_log_partition()
    sums, ends, starts, steps, moved, counted = [], [], [], [], [], 0
    for k, index in enumerate(chosen):
        if comb(int(total[index]) + subject.spec.dim - 1, subject.spec.dim - 1) > MOST_STATES:
            yield undecided(name, f"{int(total[index])} words have too many count vectors to enumerate")
            return
        states = compositions(int(total[index]), subject.spec.dim).reshape(-1, *subject.spec.shape)
        counted += len(states)
        log_p = model.log_prob_unnormalised(states).double()
        path = model.annealing_path_given(given[k : k + 1].repeat_interleave(len(states), 0))
        v = states.flatten(1).to(log_p.dtype)
        log_z = float(log_p.logsumexp(0))
        sums.append(0.0 if exact is None else abs(log_z - float(exact[k])))
        ends.append(abs(float(path.log_unnormalised(v, 1.0).logsumexp(0)) - log_z))
        starts.append(
            abs(float(path.log_unnormalised(v, 0.0).logsumexp(0)) - float(path.log_base_partition().flatten()[0]))
        )
        steps.append(_unchanged(subject, model, states, v, given[k : k + 1]))
        if isinstance(model, HasTransition):
            rows = _starts(subject, log_p, k)
            moved.append(_chi(states, model.transition(states[rows], generator=subject.generator("chain", k)), log_p))
    note = f"all {counted} count vectors of {len(chosen)} totals, with their multinomial coefficients"
    if exact is None:
        yield undecided(name, "the path cannot enumerate log Z")
    else:
        yield Check(name, max(sums), 1e-8, max(sums) <= 1e-8, f"{note}; against the path's")
    yield Check("log Z of the path's end", max(ends), 1e-8, max(ends) <= 1e-8, note)
    yield Check("log Z of the path's base", max(starts), 1e-8, max(starts) <= 1e-8, note)
    yield frequencies("the path's step leaves p_beta unchanged", steps, f"{CHAINS} exact starts, one step at beta 0.5")
    if moved:
        yield frequencies("the chain leaves p(x) unchanged", moved, f"{CHAINS} exact starts, one step")
    if exact is not None:
        yield _brackets(subject, model, given, exact)


def _starts(subject: Subject, log_p: Tensor, k: int) -> Tensor:
    return torch.multinomial(log_p.softmax(0), CHAINS, replacement=True, generator=subject.generator("start", k))


def _chi(states: Tensor, found: Tensor, log_p: Tensor) -> float:
    """The p-value of the frequencies of count vectors; 0 if one of them is none of ``states``."""
    radix = int(states.max()) + 1
    powers = radix ** torch.arange(states.flatten(1).shape[1])
    codes, order = (states.flatten(1) * powers).sum(1).sort()
    drawn = (found.flatten(1).long() * powers).sum(1)
    place = torch.searchsorted(codes, drawn).clamp(max=len(codes) - 1)
    if not bool((codes[place] == drawn).all()):
        return 0.0
    return chi_squared(torch.bincount(order[place], minlength=len(states)), log_p.softmax(0))


def _unchanged(subject: Subject, model: HasConditions, states: Tensor, v: Tensor, given: Tensor) -> float:
    """The p-value of one step at beta = 1/2 from exact starts of one condition."""
    log_p = model.annealing_path_given(given.repeat_interleave(len(v), 0)).log_unnormalised(v, 0.5)
    rows = _starts(subject, log_p, 100 + int(v[0].sum()))
    path = model.annealing_path_given(given.repeat_interleave(CHAINS, 0))
    return _chi(states, path.transition(v[rows], 0.5, generator=subject.generator("path", int(v[0].sum()))), log_p)


def _brackets(subject: Subject, model: HasConditions, given: Tensor, exact: Tensor) -> Check:
    """log Z of each condition inside its own bracket."""
    path = model.annealing_path_given(given.repeat_interleave(SCHEDULE["chains"], 0))
    known = [float(one) for one in exact]
    found = grouped_brackets(path, [None] * len(given), known, **SCHEDULE, generator=subject.generator("ais"))
    inside = [
        low <= log_z <= high for log_z, (low, high) in zip(known, (b.interval(WIDTH) for b in found), strict=True)
    ]
    note = f"AIS and reverse AIS of each condition, widened by {WIDTH:g} standard errors"
    return Check("log Z inside the AIS bracket", f"{sum(inside)} of {len(inside)}", "all", all(inside), note)
