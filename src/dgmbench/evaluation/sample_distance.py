"""A distance between samples and data that needs no feature network: the energy distance on scaled pixel values."""

from collections.abc import Callable

import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.evaluation.metrics import Metric
from dgmbench.nn.scaling import Scaling

Distance = Callable[[Tensor, Tensor], Tensor]


def one_hot_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n, m) of the one-hot vectors of tokens a (n, t) and b (m, t): sqrt(2 differing places)."""
    return (2 * torch.cdist(a.double(), b.double(), p=0.0)).sqrt()


def energy_distance(a: Tensor, b: Tensor, distance: Distance = torch.cdist) -> Tensor:
    """Unbiased estimate of 2 E|A - B| - E|A - A'| - E|B - B'| for samples a (n, d) and b (m, d).

    Zero in expectation exactly when the two distributions agree (Szekely and Rizzo 2013, eq. 2.1). The estimate may be
    negative.
    """
    n, m = len(a), len(b)
    between = distance(a, b).mean()
    within_a = distance(a, a).sum() / (n * (n - 1))
    within_b = distance(b, b).sum() / (m * (m - 1))
    return 2 * between - within_a - within_b


def pixel_energy_distance(samples: Tensor, data: Tensor, spec: DataSpec) -> Metric:
    """Energy distance of raw samples and raw data (n, *shape), values scaled to [0, 1] where they are bounded.

    Tokens have no scale; they enter as one-hot vectors.
    """
    n = min(len(samples), len(data))
    if spec.kind == "tokens":
        value = energy_distance(samples.flatten(1), data.flatten(1), one_hot_distance)
        return Metric(float(value), "one-hot tokens", "estimate", "lower", None, n)
    scale = Scaling(spec, low=0.0, high=1.0)
    a, b = (scale(x).flatten(1).double() for x in (samples, data))
    found = Metric(float(energy_distance(a, b)), scale.unit, "estimate", "lower", None, n)
    bad = int((~a.isfinite().all(1)).sum())
    return found.noting(f"{bad} of {len(a)} samples are not finite" if bad else None)
