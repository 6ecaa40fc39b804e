r"""The sliced 2-Wasserstein distance: features compared along random directions, one sort a direction.

    SW^2 = E_u int_0^1 (F_u^-1(q) - G_u^-1(q))^2 dq

with u uniform on the sphere and F_u, G_u the distributions of u^T x for data and for samples (Bonneel et al. 2015). On
finite sets it is biased upwards.

*Standard error* by the delta method, over the draw of both sets and of the directions. The influence of one example on
SW^2 is the mean over directions of its Kantorovich potential, psi_u(t) = 2 int^t (s - T_u(s)) ds with T_u the optimal
transport along u (del Barrio, Gonzalez-Sanz and Loubes 2021); to its variance over both sets comes that of the mean
over directions. Where both distributions agree, potentials are but noise, which is counted twice then: the error is
up to twice too large.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dgmbench.errors import require
from dgmbench.evaluation.quality.feature_set import COLUMNS, FeatureSets, checked_pair

DIRECTIONS = 256


class SlicedEstimate(NamedTuple):
    """The distance and its standard error over both sets and the directions."""

    value: float
    se: float


def squared_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Squared 2-Wasserstein distances between columns of x (n, s) and y (m, s), as (s,), exact for any n and m."""
    return _transport(x.sort(0).values, y.sort(0).values)[0]


def _transport(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of sorted columns, and where each x_i (n, s) and each y_j (m, s) is moved to, on average."""
    n, m = len(x), len(y)
    if n == m:
        return (x - y).square().mean(0), y, x
    # both quantile functions are constant between neighbouring multiples of 1/n and 1/m; in units of 1/(n m)
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    starts = torch.cat([steps.new_zeros(1), steps[:-1]])
    widths = ((steps - starts).double() / (n * m))[:, None]
    i, j = starts // m, starts // n
    to_y = torch.zeros_like(x).index_add(0, i, n * widths * y[j])
    to_x = torch.zeros_like(y).index_add(0, j, m * widths * x[i])
    return ((x[i] - y[j]).square() * widths).sum(0), to_y, to_x


def _potential(x: Tensor, order: Tensor, to: Tensor) -> Tensor:
    """Potentials (n,) of the examples, summed over columns: of sorted x (n, s) that are moved to ``to`` (n, s)."""
    gap = x - to
    steps = (gap[1:] + gap[:-1]) * x.diff(dim=0)  # the integral of 2 (s - T(s)) by the trapezium rule
    climbed = torch.cat([torch.zeros_like(x[:1]), steps.cumsum(0)])
    return torch.zeros_like(x).scatter(0, order, climbed - climbed.mean(0)).sum(1)


def sliced_wasserstein(
    data: Tensor, samples: Tensor, *, directions: int = DIRECTIONS, generator: Generator | None = None
) -> SlicedEstimate:
    """SW between features of data (n, d) and of samples (m, d)."""
    require("sliced_wasserstein", least=2, directions=directions)
    checked_pair(data, samples, least=2)
    at = "cpu" if generator is None else generator.device
    u = torch.randn((data.shape[1], directions), generator=generator, dtype=torch.float64, device=at)
    u = (u / u.norm(dim=0)).to(data.device)
    values, potentials = [], [torch.zeros(len(each), dtype=torch.float64, device=u.device) for each in (data, samples)]
    for part in u.split(64, 1):
        (x, x_order), (y, y_order) = (_along(each, part).sort(0) for each in (data, samples))
        squared, to_y, to_x = _transport(x, y)
        values.append(squared)
        potentials[0] += _potential(x, x_order, to_y) / directions
        potentials[1] += _potential(y, y_order, to_x) / directions
    each = torch.cat(values)
    variance = each.var() / directions + sum(potential.var() / len(potential) for potential in potentials)
    value = math.sqrt(float(each.mean()))
    return SlicedEstimate(value, math.sqrt(float(variance)) / (2 * value) if value > 0 else 0.0)


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
