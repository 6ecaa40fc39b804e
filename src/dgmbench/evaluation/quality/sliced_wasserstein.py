r"""The sliced 2-Wasserstein distance: features compared along random directions, one sort a direction.

    SW^2 = E_u int_0^1 (F_u^-1(q) - G_u^-1(q))^2 dq

with u uniform on the sphere and F_u, G_u the distributions of u^T x for data and for samples (Bonneel et al. 2015). On
finite sets it is biased upwards. The standard error is that over the directions drawn.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dgmbench.errors import require
from dgmbench.evaluation.quality.feature_set import COLUMNS, FeatureSets, checked_pair

DIRECTIONS = 256


class SlicedEstimate(NamedTuple):
    """The distance and its standard error over directions."""

    value: float
    se: float


def squared_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Squared 2-Wasserstein distances between columns of x (n, s) and y (m, s), as (s,), exact for any n and m."""
    n, m = len(x), len(y)
    x, y = x.sort(0).values, y.sort(0).values
    if n == m:
        return (x - y).square().mean(0)
    # both quantile functions are constant between neighbouring multiples of 1/n and 1/m; in units of 1/(n m)
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    starts = torch.cat([steps.new_zeros(1), steps[:-1]])
    widths = (steps - starts).double() / (n * m)
    return ((x[starts // m] - y[starts // n]).square() * widths[:, None]).sum(0)


def sliced_wasserstein(
    data: Tensor, samples: Tensor, *, directions: int = DIRECTIONS, generator: Generator | None = None
) -> SlicedEstimate:
    """SW between features of data (n, d) and of samples (m, d)."""
    require("sliced_wasserstein", least=2, directions=directions)
    checked_pair(data, samples, least=1)
    at = "cpu" if generator is None else generator.device
    u = torch.randn((data.shape[1], directions), generator=generator, dtype=torch.float64, device=at)
    u = (u / u.norm(dim=0)).to(data.device)
    values = torch.cat([squared_wasserstein(_along(data, part), _along(samples, part)) for part in u.split(64, 1)])
    value = math.sqrt(float(values.mean()))
    error = float(values.std()) / math.sqrt(directions)
    return SlicedEstimate(value, error / (2 * value) if value > 0 else 0.0)


def _along(x: Tensor, directions: Tensor) -> Tensor:
    """The projections (n, s) of features (n, d), float64, without a copy of all of them in float64."""
    return torch.cat([part.double() @ directions for part in x.split(COLUMNS)])


class SlicedWasserstein(FeatureSets):
    """SW of features that come in batches, along directions that depend on ``seed``."""

    higher_is_better = False

    def __init__(self, *, directions: int = DIRECTIONS, seed: int = 0) -> None:
        super().__init__()
        self.directions, self.seed = directions, seed

    def compute(self) -> Tensor:
        """The distance."""
        generator = torch.Generator().manual_seed(self.seed)
        found = sliced_wasserstein(*self.sets(), directions=self.directions, generator=generator)
        return torch.tensor(found.value, dtype=torch.float64)
