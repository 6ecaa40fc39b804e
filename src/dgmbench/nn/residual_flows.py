"""Residual blocks as bijections: z = x + g(x) is invertible where g is a contraction.

With J the Jacobian of g and kappa < 1 its Lipschitz constant, x is the limit of x <- z - g(x), and

    log |det dz/dx| = log det(I + J) = sum_{k >= 1} (-1)^(k + 1) tr(J^k) / k.

Three ways to it, named by what they give:

    exact      log det of the dense matrix, D products with J: the log-determinant itself.
    series     the first n terms, each trace as v' J^k v with random signs v (Hutchinson): the right mean but for the
               terms left out, which are at most D (-log(1 - kappa) - sum_{k <= n} kappa^k / k).
    roulette   n terms and a random number of further ones, the k-th of them weighted by 1 / P(it is reached), so that
               the mean is exactly log det (Chen et al. 2019).

The roulette goes on with probability q = max(1/2, kappa): the weights then grow as kappa^-k while the terms themselves
fall as kappa^k / k, so that the variance is finite, which it is not for any fixed q below kappa^2.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.nn.bijections import Bijection, Mapped, Orientation
from dgmbench.nn.lipschitz import JacobianProduct, LipschitzNet

LogDet = Literal["exact", "series", "roulette"]


def series_remainder(kappa: float, terms: int) -> float:
    """The largest value of the terms of log(1 + t), |t| <= kappa, that are left out after ``terms``.

    >>> round(series_remainder(0.9, 5), 2)
    0.47
    """
    return -math.log1p(-kappa) - sum(kappa**k / k for k in range(1, terms + 1))


class Residual(Bijection):
    """z = x + g(x).

    Args:
        net: g, with a Lipschitz constant below one.
        log_det: ``exact``, ``series`` or ``roulette``.
        terms: of the series, or those that the roulette never leaves out, in training.
        evaluation_terms: the same in evaluation mode.
        probes: random vectors v, over which the traces are averaged.
    """

    def __init__(
        self, net: LipschitzNet, *, log_det: LogDet, terms: int = 10, evaluation_terms: int = 20, probes: int = 1
    ) -> None:
        super().__init__()
        self.net, self.log_det, self.probes = net, log_det, probes
        self._terms = {True: terms, False: evaluation_terms}

    @property
    def terms(self) -> int:
        """n in the present mode."""
        return self._terms[self.training]

    @property
    def orientation(self) -> Orientation:
        """One pass from data to noise."""
        return "density"

    @property
    def log_det_error(self) -> float:
        """None if exact; else it is random."""
        return 0.0 if self.log_det == "exact" else math.inf

    @property
    def inverse_error(self) -> float:
        """Where the iteration stops, relative."""
        return 1e-5

    def remainder(self) -> float:
        """The most that the expected log-determinant misses, in nats a dimension."""
        return series_remainder(self.net.lipschitz(), self.terms) if self.log_det == "series" else 0.0

    def forward(self, x: Tensor, generator: Generator | None = None) -> Mapped:
        """Data to noise; the generator is for the two random log-determinants."""
        g, product = self.net.linearise(x)
        if self.log_det == "exact":
            return x + g, exact_log_det(product, x)
        return x + g, self._estimate(product, x, generator)

    def _estimate(self, product: JacobianProduct, x: Tensor, generator: Generator | None) -> Float[Tensor, " b"]:
        terms, weights = self.terms, [1.0] * self.terms
        if self.log_det == "roulette":
            go_on = max(0.5, self.net.lipschitz())
            u = 1 - float(torch.rand((), generator=generator, device=x.device))  # in (0, 1]
            further = 1 + math.floor(math.log(u) / math.log(go_on))  # P(further >= k) = go_on ** (k - 1)
            weights += [go_on**-k for k in range(further)]
            terms += further
        shape = (self.probes, *x.shape)
        v = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(0.5, generator=generator) * 2 - 1
        power, total = v, x.new_zeros(len(x))
        for k in range(1, terms + 1):
            power = product(power)
            trace = (v * power).flatten(2).sum(2).mean(0)
            total = total + (weights[k - 1] * (-1) ** (k + 1) / k) * trace
        return total

    def inverse(self, z: Tensor) -> Mapped:
        """Noise to data."""
        x = self.solve(z)
        return x, -self(x)[1]

    @torch.no_grad()
    def solve(self, z: Tensor) -> Tensor:
        """The x with x + g(x) = z, by x <- z - g(x), whose error falls by kappa in every step."""
        tolerance, kappa = 16 * torch.finfo(z.dtype).eps, min(self.net.lipschitz(), 0.999)
        x = z
        for _ in range(8 + math.ceil(math.log(tolerance) / math.log(max(kappa, 0.01)))):
            before, x = x, z - self.net(x)
            if bool(((x - before).abs() <= tolerance * (1 + x.abs())).all()):
                break
        return x


def exact_log_det(product: JacobianProduct, x: Float[Tensor, "b *shape"]) -> Float[Tensor, " b"]:
    """log |det(I + J)| of each example from the D columns of J."""
    b, dim = len(x), x[0].numel()
    basis = torch.eye(dim, device=x.device, dtype=x.dtype).view(dim, 1, *x.shape[1:]).expand(dim, *x.shape)
    columns = product(basis).reshape(dim, b, dim)
    if dim == 2:  # written out: a factorisation of each small matrix takes longer than all else
        (a, c), (e, d) = columns[0].unbind(1), columns[1].unbind(1)
        return torch.log((1 + a) * (1 + d) - c * e)
    return torch.linalg.slogdet(torch.eye(dim, device=x.device, dtype=x.dtype) + columns.movedim(0, 2)).logabsdet
