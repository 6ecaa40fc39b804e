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
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import FeatureSets, checked_pair, squared_distances

NEIGHBOURS = 5


class Neighbourhoods(NamedTuple):
    """What each example says, (n,) or (m,) float64; the measures are their means."""

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor
    two_sample: Tensor

    def means(self) -> dict[str, float]:
        """The five measures."""
        return {name: float(values.mean()) for name, values in self._asdict().items()}


def expected_coverage(n: int, m: int, k: int) -> float:
    """Coverage of n data examples by m samples of the same distribution, exact for continuous ones.

    A ball stays empty if, of the other n - 1 data examples and the m samples, the k nearest are all data.
    """
    return 1 - math.prod((n - 1 - i) / (n - 1 + m - i) for i in range(k))


def _radii(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances from each example to the first and the k-th nearest other one, (n,)."""
    first, last = [], []
    for rows, distance in squared_distances(x, x):
        own = torch.arange(rows.start, rows.stop, device=x.device)
        distance[own - rows.start, own] = torch.inf
        nearest = distance.topk(k, 1, largest=False).values
        first.append(nearest[:, 0])
        last.append(nearest[:, -1])
    return torch.cat(first), torch.cat(last)


def neighbourhoods(data: Tensor, samples: Tensor, *, k: int = NEIGHBOURS) -> Neighbourhoods:
    """How features of data (n, d) and of samples (m, d) lie in each other's neighbourhoods of ``k`` examples."""
    checked_pair(data, samples)
    fewer = min(len(data), len(samples))
    if not 1 <= k < fewer:
        raise UserError(
            f"k={k} nearest neighbours need more than k examples on both sides (and k at least 1); there are {fewer}."
        )
    data_first, data_ball = _radii(data, k)
    sample_first, sample_ball = _radii(samples, k)
    inside = torch.zeros(len(samples), dtype=torch.int64, device=data.device)
    sample_nearest = torch.full((len(samples),), torch.inf, dtype=torch.float64, device=data.device)
    recalled, data_nearest = [], []
    for rows, distance in squared_distances(data, samples):
        inside += (distance <= data_ball[rows, None]).sum(0)
        recalled.append((distance <= sample_ball).any(1))
        data_nearest.append(distance.min(1).values)
        sample_nearest = torch.minimum(sample_nearest, distance.min(0).values.double())
    nearest = torch.cat(data_nearest)
    return Neighbourhoods(
        precision=(inside > 0).double(),
        recall=torch.cat(recalled).double(),
        density=inside.double() / k,
        coverage=(nearest <= data_ball).double(),
        two_sample=torch.cat([_told_apart(data_first, nearest), _told_apart(sample_first, sample_nearest)]),
    )


def _told_apart(own: Tensor, other: Tensor) -> Tensor:
    """1 where the nearest neighbour is of the example's own set, 1/2 where both are as near."""
    own, other = own.double(), other.double()
    return (own < other).double() + 0.5 * (own == other).double()


class PrecisionRecall(FeatureSets):
    """The five measures of features that come in batches, as a dict."""

    def __init__(self, *, k: int = NEIGHBOURS) -> None:
        super().__init__()
        self.k = k

    def compute(self) -> dict[str, Tensor]:
        """Means by name."""
        means = neighbourhoods(*self.sets(), k=self.k).means()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}
