"""A distance between samples and data that needs no feature network: the energy distance on scaled pixel values."""

import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.evaluation.metrics import Metric
from dgmbench.nn.scaling import Scaling


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased estimate of 2 E|A - B| - E|A - A'| - E|B - B'| for samples a (n, d) and b (m, d).

    Zero in expectation exactly when the two distributions agree (Szekely and Rizzo 2013, eq. 2.1). The estimate may be
    negative.
    """
    n, m = len(a), len(b)
    between = torch.cdist(a, b).mean()
    within_a = torch.cdist(a, a).sum() / (n * (n - 1))
    within_b = torch.cdist(b, b).sum() / (m * (m - 1))
    return 2 * between - within_a - within_b


def pixel_energy_distance(samples: Tensor, data: Tensor, spec: DataSpec) -> Metric:
    """Energy distance of raw samples and raw data (n, *shape), values scaled to [0, 1] where they are bounded."""
    scale = Scaling(spec, low=0.0, high=1.0)
    value = energy_distance(scale(samples).flatten(1).double(), scale(data).flatten(1).double())
    return Metric(float(value), scale.unit, "estimate", "lower", None, min(len(samples), len(data)))
