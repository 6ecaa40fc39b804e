"""The path that log Z is annealed along: its ends, its steps, and the bracket that it gives."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.contract import AnnealingPath
from dgmbench.verify.check import QUADRATURE, Check, chi_squared, frequencies, symmetry, undecided
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import MOST_STATES, all_states, state_index, support_of

CHAINS = 20_000
WIDTH = 3.0


def exact_starts(log_prob: Tensor, n: int, subject: Subject, *keys: int | str) -> Tensor:
    """Indices of n exact draws."""
    return torch.multinomial(log_prob.exp(), n, replacement=True, generator=subject.generator("start", *keys))


def path_checks(subject: Subject, path: AnnealingPath, log_partition: Tensor | None) -> Iterator[Check]:
    """The annealing path: base, both ends' normalisers, the transitions, and the AIS bracket."""
    base = path.sample_base(CHAINS, generator=subject.generator("base"))
    dim = base.shape[1]
    binary = bool(((base == 0) | (base == 1)).all())
    if not binary and dim <= 2:
        yield from _real_path(path, base, log_partition)
    elif not binary or 2**dim > MOST_STATES:
        yield undecided("annealing path by enumeration", f"{dim} units have too many states to enumerate")
    else:
        states = all_states(dim, 2, base.dtype)
        first = path.log_unnormalised(states, 0.0).double()
        error = abs(float(first.logsumexp(0)) - float(path.log_base_partition()))
        yield Check("log Z of the path's base", error, 1e-8, error <= 1e-8, f"all {len(states)} states")
        p = (first - first.logsumexp(0)).exp()
        counts = torch.bincount(state_index(base, 2), minlength=len(states))
        yield frequencies("the path's base samples are exact", [chi_squared(counts, p)], f"{CHAINS} samples")
        last = float(path.log_unnormalised(states, 1.0).double().logsumexp(0))
        if log_partition is None:
            log_partition = torch.tensor(last)
        else:
            error = abs(last - float(log_partition))
            yield Check("log Z of the path's end", error, 1e-8, error <= 1e-8, "enumeration against the model's own")
        invariant, reversible = [], []
        for beta in (0.5, 1.0):
            log_p = path.log_unnormalised(states, beta).double()
            log_p = log_p - log_p.logsumexp(0)
            index = exact_starts(log_p, CHAINS, subject, int(10 * beta))
            v = path.transition(states[index], beta, generator=subject.generator("path", int(10 * beta)))
            end = state_index(v, 2)
            if bool((end < 0).any()):
                invariant.append(0.0)
                continue
            invariant.append(chi_squared(torch.bincount(end, minlength=len(states)), log_p.exp()))
            if len(states) <= 1024:
                reversible.append(symmetry(index, end, len(states)))
        note = f"{CHAINS} exact starts, one step at beta 0.5 and 1"
        yield frequencies("the path's step leaves p_beta unchanged", invariant, note)
        if reversible:
            yield frequencies("the path's step is reversible", reversible, f"Bowker's test, {note}")
    if log_partition is None:
        yield undecided("log Z inside the AIS bracket", "log Z cannot be enumerated")
        return
    yield _bracket(subject, path, float(log_partition))


def _real_path(path: AnnealingPath, base: Tensor, log_partition: Tensor | None) -> Iterator[Check]:
    """Both ends of a path over one or two real units by quadrature around samples of the base."""
    support = support_of(DataSpec((base.shape[1],), "real"), base)
    assert not isinstance(support, str)
    ends = [("base", 0.0, path.log_base_partition())]
    ends += [] if log_partition is None else [("end", 1.0, log_partition)]
    for which, beta, expected in ends:
        log_z = (path.log_unnormalised(support.x.to(base.dtype), beta).double() + support.log_volume).logsumexp(0)
        error = abs(float(log_z) - float(expected))
        yield Check(f"log Z of the path's {which}", error, QUADRATURE, error <= QUADRATURE, support.note)


def _bracket(subject: Subject, path: AnnealingPath, log_partition: float) -> Check:
    from dgmbench.evaluation.likelihood.ais import bracket

    found = bracket(path, chains=500, temperatures=200, burn_in=100, generator=subject.generator("ais"))
    low, high = found.interval(WIDTH)
    note = f"AIS and reverse AIS, widened by {WIDTH:g} standard errors; {found.ess:.0f} effective of 500 chains"
    measured, allowed = f"{log_partition:.4f}", f"[{low:.4f}, {high:.4f}]"
    return Check("log Z inside the AIS bracket", measured, allowed, low <= log_partition <= high, note)
