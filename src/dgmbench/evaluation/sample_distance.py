r"""A distance between samples and data that needs no feature network: the energy distance on scaled pixel values.

*Standard errors.* The estimate is a U-statistic of two samples. Its variance is that of its projections on single
points (Hajek), phi(a) = 2 E|a - B| - 2 E|a - A'| and likewise phi(b), and that of what pairs add to them: with
g(x, y) = |x - y| less its means over x and over y,

    Var = Var phi(A) / n + Var phi(B) / m + 4 E g(A, B)^2 / (n m) + 2 E g(A, A')^2 / n^2 + 2 E g(B, B')^2 / m^2.

Where both distributions agree, phi is zero and the pairs are all: the error falls as 1 / n then, and the estimate is
no longer normal but skewed, with a long tail to the right. The variance of the *estimated* phi contains that of the
pairs twice (Efron and Stein 1981), so it is subtracted once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.evaluation.metrics import Metric
from dgmbench.nn.scaling import Scaling

Distance = Callable[[Tensor, Tensor], Tensor]


def one_hot_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n, m) of the one-hot vectors of tokens a (n, t) and b (m, t): sqrt(2 differing places)."""
    return (2 * torch.cdist(a.double(), b.double(), p=0.0)).sqrt()


class EnergyDistance(NamedTuple):
    """The estimate, its standard error, and the part of that which other samples a would show with the same b."""

    value: Tensor
    se: Tensor
    se_draws: Tensor


def energy_distance(a: Tensor, b: Tensor, distance: Distance = torch.cdist) -> EnergyDistance:
    """Unbiased estimate of 2 E|A - B| - E|A - A'| - E|B - B'| for samples a (n, d) and b (m, d).

    Zero in expectation exactly when the two distributions agree (Szekely and Rizzo 2013, eq. 2.1). The estimate may be
    negative.
    """
    n, m = len(a), len(b)
    between, within_a, within_b = distance(a, b), distance(a, a), distance(b, b)
    from_a, from_b = between.mean(1), between.mean(0)
    near_a, near_b = within_a.sum(1) / (n - 1), within_b.sum(1) / (m - 1)
    value = 2 * from_a.mean() - near_a.mean() - near_b.mean()

    pairs = 4 * _centred(between, from_a, from_b).square().mean() / (n * m)
    pairs_a = 2 * _centred(within_a, near_a, near_a).fill_diagonal_(0.0).square().sum() / (n * (n - 1)) ** 2
    pairs_b = 2 * _centred(within_b, near_b, near_b).fill_diagonal_(0.0).square().sum() / (m * (m - 1)) ** 2
    first_a = (2 * (from_a - near_a)).var() / n
    first_b = (2 * (from_b - near_b)).var() / m
    draws = (first_a - 2 * pairs_a).clamp(min=0.0) + pairs_a
    both = pairs + pairs_a + pairs_b
    every = (first_a + first_b - 2 * both).clamp(min=0.0) + both
    return EnergyDistance(value, every.sqrt(), draws.sqrt())


def _centred(distances: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Distances less their means over either point."""
    return distances - rows[:, None] - columns + rows.mean()


def pixel_energy_distance(samples: Tensor, data: Tensor, spec: DataSpec) -> Metric:
    """Energy distance of raw samples and raw data (n, *shape), values scaled to [0, 1] where they are bounded.

    Tokens have no scale; they enter as one-hot vectors.
    """
    scale = Scaling(spec, low=0.0, high=1.0)
    if spec.kind == "tokens":
        a, b = samples.flatten(1), data.flatten(1)
        found, bad = energy_distance(a, b, one_hot_distance), 0
    else:
        a, b = (scale(x).flatten(1).double() for x in (samples, data))
        found, bad = energy_distance(a, b), int((~a.isfinite().all(1)).sum())
    value, se, se_draws = (float(each) for each in found)
    metric = Metric(value, _unit(spec), "estimate", "lower", se, min(len(a), len(b)), se_draws=se_draws)
    return metric.noting(f"{bad} of {len(a)} samples are not finite" if bad else None)


def no_distance(spec: DataSpec, n: int, why: Exception) -> Metric:
    """What stands for the energy distance of n samples that are no values of the data's space."""
    return Metric(math.nan, _unit(spec), "estimate", "lower", None, n, note=str(why))


def _unit(spec: DataSpec) -> str:
    return "one-hot tokens" if spec.kind == "tokens" else Scaling(spec, low=0.0, high=1.0).unit
