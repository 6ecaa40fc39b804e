"""Sets of feature vectors: what is refused, an order that does not depend on how they came in, distances in blocks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module
from torchmetrics import Metric

from dgmbench.errors import UserError

# Distances are computed for this many rows and columns at a time, and of fewer rows where they would be more numbers in
# all: what is made of them is several times as large.
ROWS, COLUMNS, MOST = 512, 4096, 2**23
# Up to this many multiplications distances are computed in float64, above in float32.
DOUBLE = 2e11
# Features of up to this many numbers are centred and rounded once, larger sets once for each block of rows.
HELD = 2**27


def checked(features: Tensor, what: str, *, least: int = 2) -> Tensor:
    """The features (n, d) as they are, or a UserError that says what is wrong with them."""
    if features.ndim != 2:
        raise UserError(f"The features of the {what} have shape {tuple(features.shape)}; they must be (n, d).")
    if len(features) < least:
        raise UserError(f"There are {len(features)} {what}, but this measure needs at least {least}.")
    bad = ~torch.isfinite(features).all(1)
    if bad.any():
        raise UserError(
            f"The features of {int(bad.sum())} of {len(features)} {what} are not finite, so no distance to them exists."
        )
    return features


def checked_pair(data: Tensor, samples: Tensor, *, least: int = 2) -> None:
    """Refuse two sets that cannot be compared."""
    checked(data, "data examples", least=least)
    checked(samples, "samples", least=least)
    if data.shape[1] != samples.shape[1]:
        raise UserError(
            f"Data have {data.shape[1]} features and samples {samples.shape[1]}; both must come from one network."
        )


def random_order(features: Tensor, generator: Generator | None = None) -> Tensor:
    """An order of the rows (n,) drawn from ``generator``: of the same rows the same, whatever order they came in.

    They are sorted along a fixed direction first: then neither batches nor processes change what is drawn.
    """
    direction = torch.linspace(1, 2, features.shape[1], dtype=torch.float64, device=features.device).sqrt()
    order = torch.cat([(part.double() * direction).sum(1) for part in features.split(ROWS)]).argsort(stable=True)
    draw = torch.randperm(len(features), generator=generator, device="cpu" if generator is None else generator.device)
    return order[draw.to(order.device)]


def shuffled(features: Tensor, generator: Generator | None = None, most: int | None = None) -> Tensor:
    """The rows (n, d) in ``random_order``, at most ``most`` of them."""
    return features[random_order(features, generator)[:most]]


class Distances:
    """Squared distances of features from a common centre, and how near two of them are to count as equal.

    The centre is taken off first, or the matrix product would lose the digits that matter, and it is the same for all
    sets that are compared, so that equal distances stay equal. Up to ``DOUBLE`` multiplications are done in float64,
    more in float32.
    """

    def __init__(self, centre: Tensor, dtype: torch.dtype) -> None:
        self.centre, self.dtype = centre, dtype
        self.noise = 64 * torch.finfo(dtype).eps

    @classmethod
    def between(cls, x: Tensor, y: Tensor, dtype: torch.dtype | None = None) -> "Distances":
        """For the sets x (n, d) and y (m, d), in either order and within themselves; ``dtype`` is that of products."""
        total = torch.stack([part.double().sum(0) for each in (x, y) for part in each.split(COLUMNS)]).sum(0)
        multiplications = max(len(x), len(y)) ** 2 * x.shape[1]
        dtype = dtype or (torch.float64 if multiplications <= DOUBLE else torch.float32)
        return cls(total / (len(x) + len(y)), dtype)

    def of(self, x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """|x_i - y_j|^2 for x (n, d) and y (m, d), some rows at a time: a slice of the rows and their distances (b, m).

        What is below the rounding error of the product counts as zero. The distances are overwritten by the next ones.
        """
        size = min(ROWS, max(16, MOST // max(1, len(y))))
        held = self._centred(y) if y.numel() <= HELD else None
        space = torch.empty((min(size, len(x)), len(y)), dtype=self.dtype, device=x.device)
        for start in range(0, len(x), size):
            rows = slice(start, min(start + size, len(x)))
            a, length = (held[0][rows], held[1][rows]) if held and x is y else self._centred(x[rows])
            distances = space[: len(a)]
            for part in (slice(first, first + COLUMNS) for first in range(0, len(y), COLUMNS)):
                b, other = (held[0][part], held[1][part]) if held else self._centred(y[part])
                scale = length[:, None] + other
                distance = torch.addmm(scale, a, b.T, alpha=-2, out=distances[:, part])
                distance.masked_fill_(distance < scale.mul_(self.noise), 0)
            yield rows, distances

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features x (n, d) less the centre, and their squared lengths (n,)."""
        # any centre will do, if it is the same for all: it is rounded as the features are
        exact = torch.promote_types(x.dtype, self.dtype)
        centre, centred = self.centre.to(exact), torch.empty(x.shape, dtype=self.dtype, device=x.device)
        length = torch.empty(len(x), dtype=self.dtype, device=x.device)
        for rows in (slice(start, start + ROWS) for start in range(0, len(x), ROWS)):
            centred[rows] = x[rows].to(exact) - centre
            length[rows] = centred[rows].square().sum(1)
        return centred, length

    def reach(self, x: Tensor, distance: Tensor) -> Tensor:
        """The squared distances (n, ...) from each x_i beyond which another is larger than ``distance`` for certain.

        Up to there the two may be equal: the features are rounded, which moves each distance by a few units in the last
        place of |x_i|, and so is the matrix product.
        """
        sizes = [torch.stack([part.to(self.dtype).square().sum(1), self._centred(part)[1]]) for part in x.split(ROWS)]
        raw, length = torch.cat(sizes, 1).double().view(2, -1, *[1] * (distance.ndim - 1))
        root = distance.double().sqrt()
        rounded = root + 4 * torch.finfo(x.dtype).eps * (raw.sqrt() + root)
        return rounded.square() + self.noise * (length + distance.double())


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance from each x_i to its nearest y_j, and that j, both (n,)."""
    found = [distance.min(1) for _, distance in Distances.between(x, y).of(x, y)]
    return torch.cat([f.values for f in found]).double(), torch.cat([f.indices for f in found])


class SetMeasure(Metric):
    """Base of the measures of sets: they keep their precision wherever their module is sent, and batches have no value.

    Examples that a sampler repeats to give every process as many count as often as they come.
    """

    full_state_update = False

    def forward(self, *arguments: Any, **named: Any) -> None:
        """Add a batch; the value is that of all batches, and ``compute`` gives it."""
        self.update(*arguments, **named)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Follow a module to another device, not to another precision; ``set_dtype`` alone changes that."""
        return super()._apply(fn if self._dtype_convert else lambda t: t.to(fn(t).device), exclude_state)


class FeatureSets(SetMeasure):
    """Base of the measures that need all features of both sets: keeps them, on every process its share.

    They are kept in the metric's precision, float32 unless ``set_dtype`` changes it, and flat, so that a process
    without examples has nothing of the same form as all others.
    """

    data: list[Tensor]
    samples: list[Tensor]
    width: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("data", default=[], dist_reduce_fx="cat")
        self.add_state("samples", default=[], dist_reduce_fx="cat")
        self.add_state("width", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, features: Tensor, *, real: bool) -> None:
        """Add features (b, d) of data (``real``) or of samples."""
        if features.ndim != 2 or (int(self.width) and features.shape[1] != int(self.width)):
            expected = int(self.width) or "d"
            raise UserError(f"Features of shape {tuple(features.shape)} do not fit: (n, {expected}) is expected.")
        self.width = torch.full_like(self.width, features.shape[1])
        (self.data if real else self.samples).append(features.detach().to(self.dtype).flatten())

    def sets(self) -> tuple[Tensor, Tensor]:
        """All features of data and of samples."""
        width = max(int(self.width), 1)
        data, samples = (
            (torch.cat(held) if held else torch.empty(0, device=self.device)) if isinstance(held, list) else held
            for held in (self.data, self.samples)
        )
        return data.view(-1, width), samples.view(-1, width)
