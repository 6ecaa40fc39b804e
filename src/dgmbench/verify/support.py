"""All values that an example can take, or a grid over them, so that sums over x can be computed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dgmbench.data.spec import DataSpec

MOST_STATES = 2**14


@dataclass(frozen=True)
class Support:
    """Points ``x`` (n, *shape) with ``sum_i f(x_i) exp(log_volume_i)`` equal to the sum (or integral) of f over x.

    ``cell`` (n,) puts each point into one of ``cells`` histogram cells, and ``cell_of`` does so for samples, with -1
    for values outside. ``draw`` takes the numbers of cells (m,) to a random point in each, (m, *shape), and the log of
    one over its density (m,): f exp(log_volume) there has the sum (or integral) of f over the cell as its mean, however
    narrow f is.
    """

    x: Tensor
    log_volume: Tensor
    cell: Tensor
    cells: int
    cell_of: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
    exact: bool

    @property
    def note(self) -> str:
        """How the sum is taken."""
        return f"all {len(self.x)} values of x" if self.exact else f"quadrature over {len(self.x)} points"

    def probabilities(self, log_prob: Tensor) -> Tensor:
        """The probability of each histogram cell, given log p at the points."""
        return torch.zeros(self.cells, dtype=torch.float64).index_add(
            0, self.cell, (log_prob.double() + self.log_volume).exp()
        )

    def counts(self, samples: Tensor) -> tuple[Tensor, int]:
        """How many samples fall into each cell, and how many into none."""
        cell = self.cell_of(samples)
        return torch.bincount(cell[cell >= 0], minlength=self.cells), int((cell < 0).sum())


def all_states(dim: int, levels: int, dtype: torch.dtype) -> Tensor:
    """Every vector of ``dim`` values in 0 ... levels - 1, as (levels ** dim, dim), in the order of their index."""
    index = torch.arange(levels**dim)[:, None]
    return (index // levels ** torch.arange(dim - 1, -1, -1) % levels).to(dtype)


def state_index(x: Tensor, levels: int) -> Tensor:
    """The position of each row of x (n, dim) in ``all_states``, -1 if a value is none of 0 ... levels - 1."""
    digits = x.long()
    valid = (digits == x).all(1) & (digits >= 0).all(1) & (digits < levels).all(1)
    index = (digits * levels ** torch.arange(x.shape[1] - 1, -1, -1)).sum(1)
    return torch.where(valid, index, -1)


def unsupported(spec: DataSpec) -> str | None:
    """Why there can be no support of ``spec``, in a sentence, or None if there is one."""
    if spec.kind in ("binary", "discrete", "tokens") and spec.levels:
        return f"{spec} has too many values of x to enumerate" if spec.levels**spec.dim > MOST_STATES else None
    if spec.kind != "real" or spec.dim > 2:
        return f"{spec} can neither be enumerated nor integrated on a grid"
    return None


def support_of(spec: DataSpec, pilot: Tensor, *, points: int | None = None) -> Support | str:
    """The support of ``spec``, or a sentence that says why there is none.

    Args:
        spec: the data space; binary, discrete and tokens are enumerated, real is covered in one and two dimensions by
            a grid that is even in arsinh((x - centre) / scale), so fine in the middle and out to 500 scales.
        pilot: raw values that show where the mass lies, (n, *shape).
        points: grid points a dimension, for real values.
    """
    if (reason := unsupported(spec)) is not None:
        return reason
    if spec.kind != "real" and spec.levels:
        levels, n = spec.levels, spec.levels**spec.dim
        x = all_states(spec.dim, levels, spec.dtype).reshape(n, *spec.shape)
        zeros = torch.zeros(n, dtype=torch.float64)
        return Support(
            x,
            zeros,
            torch.arange(n),
            n,
            lambda s: state_index(s.flatten(1), levels),
            lambda cells, _: (x[cells], zeros[cells]),
            True,
        )
    flat = pilot.double().flatten(1)
    centre = flat.median(0).values
    scale = (flat.quantile(0.84, 0) - flat.quantile(0.16, 0)).clamp_min(1e-3) / 2
    m = points or (2000 if spec.dim == 1 else 150)
    coarse = 100 if spec.dim == 1 else 50
    reach = 7.0
    u = (torch.arange(m, dtype=torch.float64) + 0.5) / m * 2 * reach - reach
    axes = torch.cartesian_prod(*[u] * spec.dim).reshape(-1, spec.dim)
    x = (centre + scale * axes.sinh()).reshape(-1, *spec.shape)
    log_volume = (scale * axes.cosh() * (2 * reach / m)).log().sum(1)

    def cell_of(samples: Tensor) -> Tensor:
        position = ((samples.double().flatten(1) - centre) / scale).asinh()
        index = torch.floor((position + reach) / (2 * reach) * coarse).long()
        inside = ((index >= 0) & (index < coarse)).all(1)
        return torch.where(inside, (index * coarse ** torch.arange(spec.dim - 1, -1, -1)).sum(1), -1)

    def draw(cells: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        corner = torch.stack([cells // coarse**i % coarse for i in range(spec.dim - 1, -1, -1)], 1)
        noise = torch.rand(corner.shape, generator=generator, dtype=torch.float64)
        u = (corner + noise) / coarse * 2 * reach - reach
        log_volume = (scale * u.cosh() * (2 * reach / coarse)).log().sum(1)
        return (centre + scale * u.sinh()).reshape(-1, *spec.shape), log_volume

    return Support(x, log_volume, cell_of(x), coarse**spec.dim, cell_of, draw, False)
