"""Estimates of the probability of each cell of the support, from draws that have it as their mean; what they decide.

The mean of draws with heavy tails, such as the weights of a poor posterior, rests on draws so rare that a finite number
of them lies below the truth nearly always, and by orders of magnitude, with a small spread. Kong's effective number of
draws, (sum w)^2 / sum w^2, tells so cell by cell. What is never seen cannot be counted, so a sum that falls short is no
sign of a wrong model where the effective numbers are low. An excess is: by Markov's inequality non-negative draws are
not often above their mean, and a rare one that is large makes the standard error as large.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dgmbench.verify.check import QUADRATURE, SIGMAS, Check, chi_squared, frequencies, undecided, within
from dgmbench.verify.support import Support

ENOUGH = 30.0
"""Effective draws of a cell from which on its mean and standard error are believed."""
TARGET = 2e-3
"""The standard error of the sum at which no more is drawn."""
MOST, LEAST = 2**17, 64
"""How many draws a sum may cost, and how many a cell of it may in any case."""
ROWS = 2**15
NEGLIGIBLE = 1e-4
"""The share of the sum that may be left at its first draws."""

Draw = Callable[[Tensor, int], Tensor]
"""k log-draws for each of these cells (m,), as (k, m)."""


@dataclass(frozen=True)
class Means:
    """Means of non-negative draws in each of n cells.

    Args:
        log_sums: logarithms of the sums of the draws, of their squares and of their cubes, (3, n).
        draws: how many they are, (n,).
    """

    log_sums: Tensor
    draws: Tensor

    @classmethod
    def of(cls, log_draws: Tensor) -> "Means":
        """Of all log-draws (k, n) of every cell."""
        sums = torch.stack([(power * log_draws.double()).logsumexp(0) for power in (1, 2, 3)])
        return cls(sums, torch.full((log_draws.shape[1],), float(len(log_draws)), dtype=torch.float64))

    @cached_property
    def mean(self) -> Tensor:
        """The mean of each cell, (n,)."""
        return self.log_sums[0].exp() / self.draws

    @cached_property
    def effective(self) -> Tensor:
        """The effective number of draws of each cell, (n,); 0 where all are 0."""
        return (2 * self.log_sums[0] - self.log_sums[1]).exp().nan_to_num(0.0)

    @cached_property
    def variance(self) -> Tensor:
        """The squared standard error of each mean, (n,)."""
        relative = (1 / self.effective - 1 / self.draws).clamp_min(0).nan_to_num(posinf=0.0)
        return self.mean**2 * relative

    @cached_property
    def skewness(self) -> Tensor:
        """The third central moment of each mean, (n,)."""
        cube, spread = self.log_sums[2].exp() / self.draws, self.variance * self.draws
        return (cube - 3 * self.mean * spread - self.mean**3).abs() / self.draws**2

    @cached_property
    def believed(self) -> Tensor:
        """The cells with enough effective draws, (n,)."""
        return self.effective >= ENOUGH

    def error(self, where: Tensor | None = None) -> float:
        """The standard error of the sum, over these cells."""
        return float((self.variance if where is None else self.variance[where]).sum()) ** 0.5


def estimate(draw: Draw, cells: int, most: int = MOST) -> Means:
    """Draw until the sum over all cells is known well enough, or cannot be known at the price.

    Draws double from round to round; cells that hold next to nothing of the sum stay with their first draws.

    Args:
        draw: what draws.
        cells: how many cells there are.
        most: how many draws the sum may cost, but for the least of each cell.
    """
    sums = torch.full((3, cells), -torch.inf, dtype=torch.float64)
    draws = torch.zeros(cells, dtype=torch.float64)
    index, each = torch.arange(cells), max(8, min(LEAST, ROWS // cells))
    budget, spent = max(most, LEAST * cells), 0
    while True:
        for part in index.split(ROWS):
            left, k = each, max(1, min(each, ROWS // len(part)))
            while left:
                log_w = draw(part, min(k, left)).double()
                left -= len(log_w)
                new = torch.stack([(power * log_w).logsumexp(0) for power in (1, 2, 3)])
                sums[:, part] = torch.logaddexp(sums[:, part], new)
                draws[part] += len(log_w)
        spent += each * len(index)
        found = Means(sums.clone(), draws.clone())
        highest = found.mean + SIGMAS * found.variance.sqrt()
        order = highest.argsort()
        index = order[highest[order].cumsum(0) > NEGLIGIBLE * highest.sum()].sort().values
        if not len(index) or not bool(found.mean.isfinite().all()):
            return found
        each = min(int(draws[index].min()), (budget - spent) // len(index))
        within_reach = found.effective[index] * (1 + (budget - spent) / len(index) / draws[index]) >= ENOUGH
        hopeless = float(highest[index][~within_reach].sum()) > 0.5 * float(highest.sum())
        known = found.error() < TARGET and bool(found.believed[index].all())
        if known or hopeless or each < 1:
            return found


def sums_to_one(name: str, means: Means, support: Support, samples: Tensor | None, note: str) -> Check:
    """Whether the means sum to 1 over all cells.

    A shortfall that the cells with few effective draws may hold leaves it open. How much they may hold, the model's
    samples say; where there are none, it is anything.
    """
    quadrature = 0.0 if support.exact else QUADRATURE / SIGMAS
    believed = means.believed
    for where in (torch.ones_like(believed), believed):
        error = (means.error(where) ** 2 + quadrature**2) ** 0.5
        check = within(name, float(means.mean[where].sum()) - 1, error, f"sum - 1; {note}", below=False)
        if not check.passed:
            return check
    error = (means.error() ** 2 + quadrature**2) ** 0.5
    check = within(name, float(means.mean.sum()) - 1, error, f"sum - 1; {note}")
    skewed = float(means.skewness.sum()) > 0.1 * means.error() ** 3 + 1e-30
    hidden, open_ = 0.0 if bool(believed.all()) else 1.0, 1.0 - float(means.mean.sum()) - SIGMAS * error
    if samples is not None and hidden:
        inside = support.cell_of(samples)
        share = float((~believed[inside[inside >= 0]]).double().mean())
        hidden = share + SIGMAS * ((share + 1 / len(samples)) / len(samples)) ** 0.5
    if means.error() > 0.1 or (not check.passed and (skewed or open_ <= hidden)):
        rest = f"{int((~believed).sum())} of {len(believed)} cells rest on fewer than {ENOUGH:g} effective draws"
        sum_ = f"they sum to {float(means.mean.sum()):.3g} +- {means.error():.2g}"
        return undecided(name, f"the weights' tails are too heavy: {sum_}, and {rest}; {note}")
    return check


def follow_means(name: str, means: Means, support: Support, samples: Tensor, note: str) -> Check:
    """Whether samples are as frequent as the means say, cell by cell; cells that say too little count as one."""
    n = len(samples)
    counts, outside = support.counts(samples)
    if outside > n * (0 if support.exact else 1e-3):
        return Check(name, f"{outside} outside", "0", False, f"{n} samples")
    noisy = n * means.variance > 0.1 * means.mean
    settled = means.believed & ~(noisy & (means.skewness > 0.25 * means.variance**1.5))
    p, variance, count = means.mean[settled], means.variance[settled], counts[settled]
    if not bool(settled.all()):
        rest = max(1 - float(p.sum()), float(means.mean[~settled].sum()), 1e-12)
        if rest > 0.5:
            return undecided(name, f"tails too heavy for the probability of single values of x; {note}")
        error = float(variance.sum()) + (0.0 if support.exact else QUADRATURE**2)
        p, variance = torch.cat([p, p.new_tensor([rest])]), torch.cat([variance, variance.new_tensor([error])])
        count = torch.cat([count, counts[~settled].sum()[None]])
    note = f"chi-squared of {n} samples in {len(p)} cells"
    return frequencies(name, [chi_squared(count, p, variance=variance)], note)
