r"""The deviation sigma of noise on samples, or of kernels around them, by the likelihood of held-out examples.

With t = log sigma, D dimensions and d the squared distance of an example to a sample, the log-likelihood is

    f(t) = E_x log E exp(-D t - exp(-2 t) d / 2) + constant,     f'(t) = -D + exp(-2 t) E_x E[d | x],

and E[d | x], the mean over the posterior, falls nowhere as t grows. So f lies at a distance s from its best t at most
D/2 (exp(2 s) - 1 - 2 s) ~ D s^2 below it. A grid that makes this small would be long: with steps of a factor 1.78 it
is up to 65 nats for 784 dimensions. So a coarse grid finds the hill, and a search its top, until what may still be
gained is below ``TOLERANCE``.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

TOLERANCE = 0.1  # nats of the held-out examples that a better sigma might still gain


class Point(NamedTuple):
    """log sigma and the value there, -inf where it is not finite."""

    t: float
    value: float


def best_sigma(value: Callable[[float], float], grid: Sequence[float], dim: int) -> tuple[float, str | None]:
    """The sigma of the largest mean log-likelihood of held-out examples of ``dim`` values, and what is odd about it.

    ``value`` should use the same noise for each sigma. NaN if it is finite for no sigma of the ascending grid.
    """

    def at(t: float) -> Point:
        found = value(math.exp(t))
        return Point(t, found if math.isfinite(found) else -math.inf)

    points = [at(math.log(sigma)) for sigma in grid]
    best = max(range(len(points)), key=lambda i: points[i].value)
    if points[best].value == -math.inf:
        return math.nan, "no sigma of the grid gives the held-out examples a finite likelihood"
    low, high = points[max(best - 1, 0)], points[min(best + 1, len(points) - 1)]
    t = _top(at, low, points[best], high, dim).t
    end = {points[0].t: "smallest", points[-1].t: "largest"}.get(t)
    return math.exp(t), f"sigma is the {end} of its grid" if end else None


def _top(at: Callable[[float], Point], low: Point, middle: Point, high: Point, dim: int) -> Point:
    """The largest value between ``low`` and ``high``, none of which exceeds that of ``middle``."""
    width = 0.9 * math.sqrt(TOLERANCE / dim)  # 0.9 pays for the terms beyond D s^2, from one dimension on
    step = 0.95 * width
    tries = 0
    while max(middle.t - low.t, high.t - middle.t) > width:
        tries += 1
        up = high.t - middle.t >= middle.t - low.t
        near = middle.t + (step if up else -step)
        t = near if low == middle or middle == high else _vertex(low, middle, high)
        if t is None or tries % 4 == 0:  # so that it ends, whatever the vertices are
            t = middle.t + ((high.t if up else low.t) - middle.t) / 2
        elif abs(t - middle.t) < step:  # the top seems found: close the wider side
            t = near
        new = at(t)
        if new.value > middle.value:
            low, middle, high = (middle, new, high) if new.t > middle.t else (low, new, middle)
        elif new.t > middle.t:
            high = new
        else:
            low = new
    return middle


def _vertex(low: Point, middle: Point, high: Point) -> float | None:
    """Where a + b t + c exp(-2 t) through the points is largest: f itself, were it not for the posterior's change."""
    left, right = low.t - middle.t, high.t - middle.t
    down, up = low.value - middle.value, high.value - middle.value
    left_power, right_power = math.expm1(-2 * left), math.expm1(-2 * right)
    determinant = left * right_power - right * left_power
    b = (down * right_power - up * left_power) / determinant
    c = (left * up - right * down) / determinant
    if not (math.isfinite(b + c) and b < 0 and c < 0):
        return None
    return middle.t - 0.5 * math.log(b / (2 * c))
