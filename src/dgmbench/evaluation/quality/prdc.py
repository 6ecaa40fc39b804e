r"""Precision, recall, density and coverage: how samples and data lie in each other's neighbourhoods.

With the ball around each example that reaches its k-th nearest other one of the same set,

    precision   share of samples inside the ball of any data example        (Kynkaanniemi et al. 2019, eq. 1-2)
    recall      share of data inside the ball of any sample
    density     data balls that a sample lies in, mean over samples, / k    (Naeem et al. 2020, eq. 4-5)
    coverage    share of data balls with a sample inside

Sets of equal size from equal distributions do not score 1: with N examples each, coverage is in expectation
1 - prod_{i=0}^{k-1} (N - 1 - i) / (2N - 1 - i), about 1 - 2^-k; density is 1, precision and recall some 0.8 to 0.95 by
dimension. Precision counts a single outlier's huge ball like any other; density and coverage do not.

The *two-sample accuracy* is that of telling samples from data by their nearest neighbour in both sets, leaving the
example itself out (Lopez-Paz and Oquab 2017; Xu et al. 2018): 1/2 at equal distributions, 1 if they lie apart, 0 if
every example has its own copy on the other side.

Distances that are equal but for rounding count as equal: a ball holds what is as far as its k-th neighbour, and a tie
of nearest neighbours counts as half.

*Standard errors.* Examples share balls and neighbours, so what they say is not independent. The jackknife over both
sets,

    se^2 = (n - 1)/n sum_i (t_(i) - mean)^2 + (m - 1)/m sum_j (t_(j) - mean)^2,

with t_(i) the measure without data example i and t_(j) without sample j, sees that: an example leaves with its ball and
with its part in the balls of others, which then reach one neighbour further. It is not too small in expectation (Efron
and Stein 1981), and for neighbours up to twice too large. By how much is measured on disjoint blocks of both sets,
whose measures are independent: their spread over their own jackknife errors, kept between 1/2 and 1, is a factor of se.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import Distances, FeatureSets, checked_pair, random_order

NEIGHBOURS = 5
# The jackknife is calibrated on this many blocks or more, each of at most BLOCK examples and a fifth of a set; where
# that is fewer than so many a neighbour, it stays as large as it is.
BLOCKS, BLOCK, LEAST_A_NEIGHBOUR = 50, 500, 4


class Jackknifed(NamedTuple):
    """A mean over ``n`` examples, with its standard error over the draw of both sets."""

    value: float
    se: float
    n: int


class Neighbourhoods(NamedTuple):
    """The five measures."""

    precision: Jackknifed
    recall: Jackknifed
    density: Jackknifed
    coverage: Jackknifed
    two_sample: Jackknifed

    def means(self) -> dict[str, float]:
        """Their values."""
        return {name: measure.value for name, measure in self._asdict().items()}


def expected_coverage(n: int, m: int, k: int) -> float:
    """Coverage of n data examples by m samples of the same distribution, exact for continuous ones.

    A ball stays empty if, of the other n - 1 data examples and the m samples, the k nearest are all data.
    """
    return 1 - math.prod((n - 1 - i) / (n - 1 + m - i) for i in range(k))


def _jackknifed(value: float, n: int, *without: Tensor) -> Jackknifed:
    """From the values without each example of one set, and of the other."""
    variance = sum(float(values.var(correction=0)) * (len(values) - 1) for values in without)
    return Jackknifed(value, math.sqrt(variance), n)


class _Within(NamedTuple):
    """The neighbours of n examples in their own set; squared distances are infinite where there is no such neighbour.

    ``ball`` and ``wider`` reach the k-th and the next neighbour, and as far beyond as rounding may put an equal one.
    """

    nearest: Tensor  # (n, 2), to the first and the second
    which: Tensor  # (n, k)
    ball: Tensor  # (n,)
    wider: Tensor  # (n,)

    @classmethod
    def of(cls, x: Tensor, k: int, distances: Distances) -> "_Within":
        values, which = [], []
        some = min(max(k, 1) + 1, len(x) - 1)
        for rows, distance in distances.of(x, x):
            own = torch.arange(rows.start, rows.stop, device=x.device)
            distance[own - rows.start, own] = torch.inf
            least = distance.topk(some, 1, largest=False)
            values.append(least.values)
            which.append(least.indices[:, :k])
        near = torch.cat(values).double()
        if some < k + 1:
            near = torch.cat([near, torch.full_like(near[:, :1], torch.inf)], 1)
        reach = distances.reach(x, near[:, k - 1 :])
        # the comparisons are in the precision of the distances
        ball, wider = reach.to(distances.dtype).unbind(1)
        return cls(near[:, :2], torch.cat(which), ball, wider)


class _Balls:
    """Which points lie in the balls of a set: filled block by block, then asked for sums and jackknife values."""

    def __init__(self, within: _Within, points: int) -> None:
        self.within, balls = within, len(within.ball)
        zero = torch.zeros((2, max(balls, points)), dtype=torch.float64, device=within.ball.device)
        # how many points a ball holds and how many balls hold a point; and the sum of their numbers, so the number of
        # the only one where there is one
        self.inside, self.covers = zero[:, :balls].clone(), zero[:, :points].clone()
        self.ring = zero[0, :balls].clone()  # points of the wider ball that are not in the ball
        self.pairs: list[Tensor] = []  # their numbers (ball, point), where not two balls hold the point already

    def add(self, distance: Tensor, balls: slice, points: slice) -> None:
        """Squared distances (b, p) of some balls' centres to some points."""
        mask = distance <= self.within.ball[balls, None]
        ring = (distance <= self.within.wider[balls, None]) & ~mask
        # counts up to 2^24 are exact in float32, and so is a single number
        held = mask.float()
        self.inside[:, balls] += (held @ _numbers(points, held).T).T.double()
        self.covers[:, points] += (_numbers(balls, held) @ held).double()
        self.ring[balls] += ring.float().sum(1)
        pairs = (ring & (self.covers[0, points] <= 1)).nonzero()
        self.pairs.append(pairs + torch.tensor([balls.start, points.start], device=pairs.device))

    def neighbours_sum(self, values: Tensor) -> Tensor:
        """For each centre the sum of ``values`` (balls,) over the centres that have it among their k nearest."""
        each = values[:, None].expand(self.within.which.shape)
        return torch.zeros_like(values).index_add(0, self.within.which.flatten(), each.flatten())

    def covered(self) -> Jackknifed:
        """The share of points in any ball."""
        count, only = self.covers
        points, balls = len(count), len(self.inside[0])
        covered = (count > 0).double()
        total = covered.sum()
        alone = count == 1
        lost = torch.bincount(only[alone].long(), minlength=balls).double()
        # without a centre, each ball that it is a neighbour of reaches its ring: (centre, point) that this covers
        ball, point = torch.cat(self.pairs).unbind(1)
        open_ = count[point] <= 1
        centre = self.within.which[ball[open_]]
        reached = (centre * points + point[open_, None]).unique()
        centre, point = reached // points, reached % points
        counts = (count[point] == 0) | (only[point] == centre)
        gained = torch.bincount(centre[counts], minlength=balls)
        return _jackknifed(
            float(total) / points, points, (total - covered) / (points - 1), (total - lost + gained) / points
        )

    def density(self, k: int) -> Jackknifed:
        """The number of balls that a point lies in, over k."""
        count, inside = self.covers[0], self.inside[0]
        total, points = count.sum(), len(count)
        without_point = (total - count) / (k * (points - 1))
        without_centre = (total - inside + self.neighbours_sum(self.ring)) / (k * points)
        return _jackknifed(float(total) / (k * points), points, without_point, without_centre)

    def occupied(self) -> Jackknifed:
        """The share of balls with any point inside."""
        count, only = self.inside
        balls, points = len(count), len(self.covers[0])
        occupied = (count > 0).double()
        total = occupied.sum()
        lost = torch.bincount(only[count == 1].long(), minlength=points)
        gained = self.neighbours_sum(((count == 0) & (self.ring > 0)).double())
        return _jackknifed(
            float(total) / balls, balls, (total - lost) / balls, (total - occupied + gained) / (balls - 1)
        )


def _numbers(of: slice, like: Tensor) -> Tensor:
    """Ones, and the numbers of a slice, (2, b)."""
    numbers = torch.arange(of.start, of.stop, dtype=like.dtype, device=like.device)
    return torch.stack([torch.ones_like(numbers), numbers])


class _Across(NamedTuple):
    """Squared distances (n, 2) to the first and second nearest of the other set, and which these are (n, 2)."""

    nearest: Tensor
    which: Tensor

    @classmethod
    def none(cls, like: Tensor) -> "_Across":
        return cls(torch.full_like(like, torch.inf), torch.zeros_like(like, dtype=torch.int64))

    def merged(self, distance: Tensor, start: int) -> "_Across":
        """With squared distances (n, b) to the other set's examples from ``start`` on."""
        least = distance.topk(min(2, distance.shape[1]), 1, largest=False)
        nearest = torch.cat([self.nearest, least.values.double()], 1)
        which = torch.cat([self.which, least.indices + start], 1)
        chosen = nearest.topk(2, 1, largest=False)
        return _Across(chosen.values, which.gather(1, chosen.indices))


def neighbourhoods(
    data: Tensor, samples: Tensor, *, k: int = NEIGHBOURS, generator: Generator | None = None
) -> Neighbourhoods:
    """How features of data (n, d) and of samples (m, d) lie in each other's neighbourhoods of ``k`` examples.

    Only the standard errors depend on ``generator``, a little.
    """
    dtype = Distances.between(data, samples).dtype  # that of the whole, for its parts as well
    whole = jackknifed_neighbourhoods(data, samples, k=k)
    block = min(BLOCK, min(len(data), len(samples)) // 5)
    if block < LEAST_A_NEIGHBOUR * k:
        return whole
    blocks = min(len(data), len(samples)) // block
    spread, claimed = [], []
    for _ in range(math.ceil(BLOCKS / blocks)):
        x, y = random_order(data, generator), random_order(samples, generator)
        parts = [slice(i * block, (i + 1) * block) for i in range(blocks)]
        each = [jackknifed_neighbourhoods(data[x[part]], samples[y[part]], k=k, dtype=dtype) for part in parts]
        found = torch.tensor(each, dtype=torch.float64)  # (blocks, 5, 3)
        spread.append(found[..., 0].var(0))
        claimed.append(found[..., 1].square().mean(0))
    above, below = torch.stack(spread).mean(0), torch.stack(claimed).mean(0)
    factors = torch.where(below > 0, above / below, 1.0).sqrt().clamp(0.5, 1.0).tolist()
    return Neighbourhoods(*(m._replace(se=m.se * factor) for m, factor in zip(whole, factors, strict=True)))


def jackknifed_neighbourhoods(
    data: Tensor, samples: Tensor, *, k: int = NEIGHBOURS, dtype: torch.dtype | None = None
) -> Neighbourhoods:
    """The same with the errors of the jackknife, by distances in a given precision if there is one."""
    checked_pair(data, samples)
    fewer = min(len(data), len(samples))
    if not 1 <= k < fewer:
        raise UserError(
            f"k={k} nearest neighbours need more than k examples on both sides (and k at least 1); there are {fewer}."
        )
    distances = Distances.between(data, samples, dtype)
    around_data, around_samples = _Within.of(data, k, distances), _Within.of(samples, k, distances)
    data_balls, sample_balls = _Balls(around_data, len(samples)), _Balls(around_samples, len(data))
    to_samples, to_data = _Across.none(around_data.nearest), _Across.none(around_samples.nearest)
    everything = slice(0, len(samples))
    for rows, distance in distances.of(data, samples):
        data_balls.add(distance, rows, everything)
        sample_balls.add(distance.T, everything, rows)
        part = _Across.none(to_samples.nearest[rows]).merged(distance, 0)
        to_samples.nearest[rows], to_samples.which[rows] = part
        to_data = to_data.merged(distance.T, rows.start)
    return Neighbourhoods(
        precision=data_balls.covered(),
        recall=sample_balls.covered(),
        density=data_balls.density(k),
        coverage=data_balls.occupied(),
        two_sample=_told_apart(
            (data, around_data, to_samples), (samples, around_samples, to_data), distances=distances
        ),
    )


def _told_apart(*sets: tuple[Tensor, _Within, _Across], distances: Distances) -> Jackknifed:
    """The share of examples whose nearest neighbour is of their own set; 1/2 where both are as near."""
    right, without_own, without_other = [], [], []
    for x, within, across in sets:
        own, own_second = within.nearest.unbind(1)
        other, other_second = across.nearest.unbind(1)
        own_reach, second_reach = distances.reach(x, within.nearest).unbind(1)

        def told(own: Tensor, reach: Tensor, other: Tensor) -> Tensor:
            equal = torch.where(other >= own, other <= reach, own - other <= reach - own)
            return torch.where(equal, 0.5, (own < other).double())

        now = told(own, own_reach, other)
        right.append(now)
        without_own.append((within.which[:, 0], told(own_second, second_reach, other) - now))
        without_other.append((across.which[:, 0], told(own, own_reach, other_second) - now))
    total, n = torch.cat(right).sum(), sum(len(part) for part in right)
    values = []
    for here, there in ((0, 1), (1, 0)):
        changed = total - right[here]
        for which, change in (without_own[here], without_other[there]):
            changed = changed.index_add(0, which, change)
        values.append(changed / (n - 1))
    return _jackknifed(float(total) / n, n, *values)


class PrecisionRecall(FeatureSets):
    """The five measures of features that come in batches, as a dict."""

    def __init__(self, *, k: int = NEIGHBOURS) -> None:
        super().__init__()
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """Means by name."""
        means = jackknifed_neighbourhoods(*self.sets(), k=self.k).means()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}
