"""Annealed importance sampling of log Z, forwards and backwards, so that log Z is bracketed.

Forwards (Neal 2001): states start at p_0 and are annealed to p_1; the mean of exp(log w) is Z_1 / Z_0, so the
estimate of log Z is too small in expectation (Jensen). Backwards (Burda, Grosse, Salakhutdinov 2015, "Accurate and
conservative estimates of MRF log-likelihood using reverse annealing"): states start at p_1, the mean of exp(log w) is
Z_0 / Z_1, and the estimate of log Z is too large in expectation. The two *expectations* enclose log Z; the two
numbers of one run need not, and are to be read with their standard errors. A small forward estimate of log Z flatters
log p(x) = log p*(x) - log Z, which is why one direction alone is not enough.

    w = prod_k p*_{beta_k}(v_{k-1}) / p*_{beta_{k-1}}(v_{k-1}),     v_k ~ T_{beta_k}(v_{k-1}, .),
    0 = beta_0 < beta_1 < ... < beta_K = 1

All chains move together, one batched matrix product a step; weights are summed in float64. Units: nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, inf, isfinite, log, log1p, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from dgmbench.config.temperatures import Temperatures, schedule
from dgmbench.errors import UserError
from dgmbench.models.contract import AnnealingPath, StartsFromData

Progress = Callable[[int, int], None]
Spacing = Literal["even", "adaptive"]
PILOT_STEPS = 500
AGREEMENT = 3.0  # standard errors within which reverse runs of two origins agree
BLIND = "nothing but forward runs was looked at, so a mode that they miss is missing on both sides"
MISSED = 0.1  # share of the runs from data that tells of a mode if the forward runs are expected to miss it


@dataclass(frozen=True)
class AisEstimate:
    """An estimate of log Z from ``chains`` independent annealing runs.

    Attributes:
        log_z: the estimate; too small in expectation if ``direction`` is "forward", too large if "reverse".
        se: standard error of ``log_z`` by the delta method, sd(w) / (mean(w) sqrt(chains)); inf for one chain.
        ess: effective sample size (sum w)^2 / sum w^2, between 1 and ``chains``. Near 1, ``se`` means nothing.
        log_weights: the runs' log weights, log Z_0 included, such that exp of them averages to Z (forward) or 1/Z.
        states: the runs' final states (chains, d).
    """

    log_z: float
    se: float
    ess: float
    chains: int
    temperatures: int
    direction: str
    log_weights: Tensor
    states: Tensor

    def interval(self, width: float = 3.0) -> tuple[float, float]:
        """Error bars log(Z - width sd) and log(Z + width sd); the lower end is -inf where Z - width sd < 0.

        Backwards the error is that of 1/Z, so the infinite end is the upper one.
        """
        reach = width * self.se
        down = log1p(-reach) if reach < 1 else -inf
        up = log1p(reach)
        return (
            (self.log_z + down, self.log_z + up)
            if self.direction == "forward"
            else (self.log_z - up, self.log_z - down)
        )


@dataclass(frozen=True)
class Bracket:
    """Forward and reverse estimates of one log Z.

    Attributes:
        forward: the forward estimate, a stochastic lower bound of log Z.
        reverse: the reverse estimate, a stochastic upper bound if its starting states are exact samples of the model.
            Where runs of two origins differ, that of the origin with the larger log Z, to err upwards.
        exact_start: whether they are; else they come from ``burn_in`` transitions, and ``reverse`` may be too small.
        exact: log Z by enumeration, where the path can.
        tolerance: gap in nats above which the bracket counts as wide.
        origins: the reverse estimates of the runs that started from data, and of those that started from the forward
            runs' states; None where all runs have one origin.
    """

    forward: AisEstimate
    reverse: AisEstimate
    exact_start: bool
    burn_in: int
    exact: float | None
    tolerance: float
    origins: tuple[AisEstimate, AisEstimate] | None = None

    @property
    def from_data(self) -> int:
        """How many of the reverse runs started from data."""
        return 0 if self.origins is None else self.origins[0].chains

    @property
    def gap(self) -> float:
        """Reverse minus forward estimate of log Z; negative by chance where both are accurate."""
        return self.reverse.log_z - self.forward.log_z

    @property
    def ess(self) -> float:
        """The smaller effective sample size of the two directions."""
        return min(self.forward.ess, self.reverse.ess)

    @property
    def missed(self) -> float:
        """Share of the runs from data whose states the forward runs are expected to find less than once.

        If the starts are samples of p_1, runs back with weight 1/w are w / Z times as frequent as runs forth with
        weight w (Crooks 1999). So this share of Z comes from weights above n Z, of which n runs forth find less than
        one on average, and their estimate lacks -log(1 - share). If they are not, the share may be any, but shows that
        there is a mode which the forward runs do not reach.
        """
        if self.origins is None:
            return 0.0
        found = -self.origins[0].log_weights - self.forward.log_z
        return float((found > log(self.forward.chains)).double().mean())

    @property
    def trouble(self) -> str | None:
        """What speaks against comparing models by this bracket; None where nothing does.

        Contradictions (``wide``), or that nothing but forward runs was looked at: then both sides miss what these do.
        """
        return self._contradictions or (None if self.exact_start or self.origins is not None else BLIND)

    @property
    def _contradictions(self) -> str | None:
        """A gap above ``tolerance``, fewer than two effective chains on either side, and runs from data that contradict
        the others: by another log Z, or by lying where the forward runs do not come.
        """
        if not isfinite(self.gap):
            return "the estimates of log Z are not finite"
        found = []
        if abs(self.gap) > self.tolerance or self.ess < 2:
            found.append(f"gap {self.gap:.2g} nats, {self.ess:.1f} effective chains")
        if self.origins is not None and _differ(*self.origins, self.tolerance):
            apart = self.origins[0].log_z - self.origins[1].log_z
            side = "above" if apart > 0 else "below"
            found.append(f"reverse runs from data put log Z {abs(apart):.2g} nats {side} those from forward states")
        if self.missed >= MISSED:
            found.append(f"forward runs do not reach {self.missed:.0%} of the runs from data")
        return "; ".join(found) or None

    @property
    def wide(self) -> bool:
        """Whether the bracket contradicts itself, as one does that is too wide or not finite."""
        return self._contradictions is not None

    def interval(self, width: float = 3.0) -> tuple[float, float]:
        """The bracket with ``width`` standard errors added on both sides."""
        return self.forward.interval(width)[0], self.reverse.interval(width)[1]


@torch.no_grad()
def adaptive_schedule(
    path: AnnealingPath, steps: int, *, chains: int = 100, generator: Generator | None = None
) -> list[float]:
    """``steps`` steps that are short where the path changes fast: of equal length in the path's own measure.

    That measure is the standard deviation over p_beta of d log p*_beta / d beta (Grosse, Maddison, Salakhutdinov 2013),
    taken from a first run of at most 500 even steps. The runs whose weights count come after, so that they stay
    unbiased. No step is more than ten times the mean, lest the first run has missed something.
    """
    pilot = schedule(min(steps, PILOT_STEPS))
    v, lengths = path.sample_base(chains, generator=generator), []
    for here, there in pairwise(pilot):
        lengths.append((path.log_unnormalised(v, there) - path.log_unnormalised(v, here)).std(correction=0))
        v = path.transition(v, there, generator=generator)
    length = torch.stack(lengths).cpu()
    length = length + (length.mean() / 9 if length.sum() > 0 else 1.0)
    travelled = np.concatenate([[0.0], length.cumsum(0).numpy() / float(length.sum())])
    betas = np.interp(np.linspace(0, 1, steps + 1), travelled, pilot)
    return [0.0, *betas[1:-1].tolist(), 1.0]


def _anneal(
    path: AnnealingPath,
    v: Tensor,
    betas: Sequence[float],
    direction: str,
    generator: Generator | None,
    progress: Progress | None,
) -> AisEstimate:
    """Move all chains v along the inverse temperatures in their order, either way, and sum up their log weights."""
    sign = 1.0 if direction == "forward" else -1.0
    log_w = sign * path.log_base_partition().expand(len(v)).clone()
    for k, (here, there) in enumerate(pairwise(betas), start=1):
        log_w += path.log_unnormalised(v, there) - path.log_unnormalised(v, here)
        v = path.transition(v, there, generator=generator)
        if progress is not None:
            progress(k, len(betas) - 1)
    return _estimate(log_w, v, direction, len(betas) - 1)


def _estimate(log_weights: Tensor, states: Tensor, direction: str, steps: int) -> AisEstimate:
    n = len(log_weights)
    sign = 1.0 if direction == "forward" else -1.0
    relative = (log_weights - log_weights.max()).exp()
    mean = relative.mean()
    return AisEstimate(
        log_z=sign * (float(log_weights.logsumexp(0)) - log(n)),
        se=float(relative.std() / mean) / sqrt(n) if n > 1 else inf,
        ess=float(relative.sum() ** 2 / relative.square().sum()),
        chains=n,
        temperatures=steps,
        direction=direction,
        log_weights=log_weights,
        states=states,
    )


def _differ(one: AisEstimate, other: AisEstimate, tolerance: float) -> bool:
    """Whether two estimates differ beyond their noise, and by more than a tenth of what matters.

    A burn-in never quite ends, so that small differences are found to be significant with enough chains.
    """
    noise = AGREEMENT * hypot(one.se, other.se)
    return abs(one.log_z - other.log_z) > max(tolerance / 10, noise)  # the first, if the noise is not a number


def _part(runs: AisEstimate, which: slice) -> AisEstimate:
    """The estimate of some of the runs."""
    return _estimate(runs.log_weights[which], runs.states[which], runs.direction, runs.temperatures)


@torch.no_grad()
def annealed_importance_sampling(
    path: AnnealingPath,
    *,
    chains: int = 100,
    temperatures: Temperatures = 10_000,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> AisEstimate:
    """Anneal ``chains`` states from p_0 to p_1 and estimate log Z_1, in expectation from below.

    Args:
        path: the distributions; see ``AnnealingPath``.
        chains: independent runs.
        temperatures: number of evenly spaced steps, pieces [end, steps], or the inverse temperatures themselves.
        generator: source of randomness, on the path's device.
        progress: called with (steps done, steps in all) after each step.
    """
    start = path.sample_base(chains, generator=generator)
    return _anneal(path, start, schedule(temperatures), "forward", generator, progress)


@torch.no_grad()
def reverse_ais(
    path: AnnealingPath,
    *,
    start: Tensor,
    temperatures: Temperatures = 10_000,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> AisEstimate:
    """Anneal samples ``start`` (chains, d) of p_1 back to p_0 and estimate log Z_1, in expectation from above.

    The direction of the bound holds if ``start`` are exact samples of p_1.
    """
    return _anneal(path, start, schedule(temperatures)[::-1], "reverse", generator, progress)


@torch.no_grad()
def bracket(
    path: AnnealingPath,
    data: Tensor | None = None,
    *,
    chains: int = 100,
    temperatures: Temperatures = 10_000,
    spacing: Spacing = "even",
    burn_in: int = 1_000,
    tolerance: float = 1.0,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> Bracket:
    """Estimate log Z from below and from above.

    The reverse runs start from exact samples where the path has ``sample_target`` and can enumerate. Otherwise half of
    them start from ``data``, and half from the forward runs' final states, resampled by their weights; ``burn_in``
    transitions at beta = 1 come first. From forward states alone, both directions would miss the same modes. The two
    halves agree if their estimates do within three standard errors; then all runs make up one estimate.

    Args:
        path: the distributions.
        data: raw examples (m, *shape), used from the first on, and again if there are too few; without them, or if
            the path does not know their states, all reverse runs start from forward states.
        chains: independent runs in each direction.
        temperatures: as in ``annealed_importance_sampling``.
        spacing: of a number of temperatures; see ``adaptive_schedule``.
        burn_in: transitions before the reverse runs, where exact samples cannot be had.
        tolerance: gap in nats above which the bracket counts as wide.
        generator: source of randomness, on the path's device.
        progress: called with (steps done, steps in all) over both directions.
    """
    return grouped_brackets(
        path,
        [data],
        [path.exact_log_partition()],
        chains=chains,
        temperatures=temperatures,
        spacing=spacing,
        burn_in=burn_in,
        tolerance=tolerance,
        generator=generator,
        progress=progress,
    )[0]


@torch.no_grad()
def grouped_brackets(
    path: AnnealingPath,
    data: Sequence[Tensor | None],
    exact: Sequence[Tensor | float | None],
    *,
    chains: int,
    temperatures: Temperatures,
    spacing: Spacing,
    burn_in: int,
    tolerance: float,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> list[Bracket]:
    """As ``bracket``, of several conditions: states g * chains ... are those of condition g, data[g] and exact[g]."""
    rows = chains * len(data)
    betas = schedule(temperatures)
    if spacing == "adaptive":
        if not isinstance(temperatures, int):
            raise UserError("an annealing schedule that is given in full leaves nothing to adapt; use spacing=even.")
        betas = adaptive_schedule(path, temperatures, chains=rows, generator=generator)
    steps = len(betas) - 1

    def after(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, 2 * steps)

    groups = [slice(g * chains, (g + 1) * chains) for g in range(len(data))]
    forth = annealed_importance_sampling(path, chains=rows, temperatures=betas, generator=generator, progress=after(0))
    sample_target = getattr(path, "sample_target", None)
    start = sample_target(rows, generator=generator) if sample_target is not None else None
    exact_start, seen = start is not None, [0] * len(data)
    if start is None:
        starts = []
        for g, group in enumerate(groups):
            weights = torch.softmax(forth.log_weights[group], 0).nan_to_num(1.0)  # a diverged model leaves none
            own = forth.states[group][torch.multinomial(weights, chains, replacement=True, generator=generator)]
            if (examples := data[g]) is not None and len(examples) and isinstance(path, StartsFromData):
                seen[g] = chains // 2
                chosen = examples[torch.arange(seen[g], device=examples.device) % len(examples)]
                own = torch.cat([path.state_from(chosen, generator=generator), own[seen[g] :]])
            starts.append(own)
        start = torch.cat(starts)
        for _ in range(burn_in):
            start = path.transition(start, 1.0, generator=generator)
    back = reverse_ais(path, start=start, temperatures=betas, generator=generator, progress=after(steps))
    found = []
    for g, group in enumerate(groups):
        forward, reverse, origins = _part(forth, group), _part(back, group), None
        if seen[g]:
            origins = _part(reverse, slice(seen[g])), _part(reverse, slice(seen[g], None))
            if _differ(*origins, tolerance):
                reverse = max(origins, key=lambda one: one.log_z)
        known = None if (log_z := exact[g]) is None else float(log_z)
        found.append(Bracket(forward, reverse, exact_start, 0 if exact_start else burn_in, known, tolerance, origins))
    return found
