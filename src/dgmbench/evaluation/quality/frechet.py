r"""The Frechet distance between Gaussians fitted to features of data and of samples.

    FD = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^{1/2}

is the squared 2-Wasserstein distance of N(m_1, S_1) and N(m_2, S_2) (Dowson and Landau 1982; Heusel et al. 2017).

*Trace of the root.* With any factors S_i = L_i L_i^T it is the nuclear norm of L_1^T L_2: no root of a non-symmetric
matrix, no complex numbers, and a covariance without full rank (fewer examples than features) needs no special case.

*Moments* are float64 and centred block by block (Chan, Golub, LeVeque 1979): E[x x^T] - m m^T in single precision
loses all digits of features whose mean is large beside their spread.

*Bias.* The distance between two samples of one Gaussian with eigenvalues l_i is not 0 but, to first order in 1/N,

    1/2 (1/N_1 + 1/N_2) (2 sum_i l_i + sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)),

which ``null_bias`` gives; with as few examples as a few times the features it is some d / 2N too small, and so is its
value at the eigenvalues of a sample. ``simulated_bias`` draws the covariances of such samples instead, from Wishart
distributions. ``extrapolated`` removes the bias: the distance of random shares 1/k of both sets grows linearly in
k, and the line's value at k = 0 is an estimate for unlimited examples (Chong and Forsyth 2020, on both sides).

*Standard error* by the delta method: the influence of one sample x is 2 (m_2 - m_1)^T (x - m_2) + (x - m_2)^T (I - T)
(x - m_2) but for its mean, with T the matrix of the optimal transport from N(m_2, S_2) to N(m_1, S_1); the same for one
data example. It covers the draw of both sets, not the bias; at equal distributions it tends to 0 faster than the bias.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from dgmbench.errors import UserError
from dgmbench.evaluation.quality.feature_set import SetMeasure, checked, checked_pair, random_order, shuffled

ENOUGH = 2  # examples a feature; with fewer, the distance is mostly its bias
BLOCK = 4096  # rows that are turned to float64 at a time
# With more than so many examples a feature, the first order of the bias is all of it but for one percent. With fewer
# it is corrected by simulated distances: until the eigenvalues that they saw are so many, or the distances.
PLENTY, DRAWN, MOST_DRAWS = 50, 2000, 200
# The spectrum of data, for the bias beside samples of lower rank, is that of at most so many features or examples.
MOST_SPECTRUM = 2048


class Moments(NamedTuple):
    """Count, mean (d,) and centred sum of products (d, d) of features, float64."""

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of features (n, d)."""
        total: Moments | None = None
        for part in features.split(BLOCK):
            values = part.double()
            mean = values.mean(0)
            centred = values - mean
            block = cls(len(part), mean, centred.T @ centred)
            total = block if total is None else total.merged(block)
        if total is None:
            raise UserError("There are no features to take moments of.")
        return total

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        if not self.n or not other.n:
            return self if self.n else other
        n, step = self.n + other.n, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.n * other.n / n)
        return Moments(n, self.mean + step * (other.n / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (d, d)."""
        if self.n < 2:
            raise UserError(f"A covariance needs at least 2 examples, and there are {self.n}.")
        return self.scatter / (self.n - 1)


class FrechetEstimate(NamedTuple):
    """A distance, its standard error over the draw of both sets, and the bias to expect at equal distributions."""

    value: float
    se: float
    bias: float


class Extrapolated(NamedTuple):
    """The distance for unlimited examples, its standard error, and the k of the shares 1/k that it comes from."""

    value: float
    se: float
    parts: tuple[int, ...]


def _factor(moments: Moments) -> Tensor:
    """L (d, r) with L L^T the covariance; r is no more than the examples or the features."""
    covariance, d = moments.covariance, moments.mean.numel()
    if moments.n > d:
        triangular, failed = torch.linalg.cholesky_ex(covariance)
        if not failed:
            return triangular
    # of rank r, pivoted elimination takes r steps
    import scipy.linalg

    packed, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance.cpu().numpy(), lower=1)
    factor = torch.zeros((d, rank), dtype=torch.float64)
    factor[torch.from_numpy(pivots.astype(np.int64) - 1)] = torch.from_numpy(np.tril(packed)[:, :rank])
    return factor.to(covariance.device)


def frechet_distance(a: Moments, b: Moments) -> float:
    """FD of two sets of features from their moments."""
    means, traces = (a.mean - b.mean).square().sum(), a.covariance.trace() + b.covariance.trace()
    return float(means + traces - 2 * torch.linalg.svdvals(_factor(a).T @ _factor(b)).sum())


def null_bias(covariance: Tensor, n: int, m: int) -> float:
    """FD to expect between n and m examples of one Gaussian with this covariance, to first order in 1/n and 1/m."""
    return float(_first_order(torch.linalg.eigvalsh(covariance.double()), n, m))


def _first_order(values: Tensor, n: int, m: int) -> Tensor:
    """The same of eigenvalues (..., d)."""
    values = values.clamp_min(0)
    sums = values[..., None] + values[..., None, :]
    products = values[..., None] * values[..., None, :] / sums.masked_fill(sums == 0, 1)
    return (2.5 * values.sum(-1) + products.sum((-2, -1))) * 0.5 * (1 / n + 1 / m)


def simulated_bias(covariance: Tensor, n: int, m: int, generator: Generator) -> float:
    """FD to expect between n and m examples of the Gaussian of which ``covariance`` is that of n examples.

    The first order at these eigenvalues, times how much it falls short in a simulation: of n and m examples of the
    Gaussian with just these eigenvalues, whose first order is also taken at the eigenvalues of the n. That corrects
    both that the first order is not all and that sample eigenvalues spread more than those of the distribution.
    """
    return _simulated_bias(torch.linalg.eigvalsh(covariance.double()), n, m, generator)


def _simulated_bias(values: Tensor, n: int, m: int, generator: Generator, seen: int | None = None) -> float:
    """The same of eigenvalues of n examples, or of ``seen`` of them; those that are zero may be left out."""
    values, seen = values.clamp_min(0), seen or n
    first = float(_first_order(values, n, m))
    roots = values[values > values.max() * len(values) * torch.finfo(torch.float64).eps].sqrt()
    if min(seen, m) > PLENTY * len(roots) or not len(roots):
        return first
    draws = min(math.ceil(DRAWN / len(roots)), MOST_DRAWS)
    a, b = (_drawn_factors(roots, count, draws, generator) for count in (seen, m))
    approximate = _first_order(torch.linalg.svdvals(a).square(), n, m)
    if seen < n:
        a = _drawn_factors(roots, n, draws, generator)
    means = roots.square().sum() * (1 / n + 1 / m)
    root = torch.linalg.svdvals(a.mT @ b).sum(1)
    exact = means + a.square().sum((1, 2)) + b.square().sum((1, 2)) - 2 * root
    return first * float(exact.sum() / approximate.sum())


def _drawn_factors(roots: Tensor, n: int, draws: int, generator: Generator) -> Tensor:
    """L (draws, d, min(d, n - 1)) with L L^T distributed as the covariance of n examples of N(0, diag(roots^2)).

    Of full rank it is Bartlett's: below the diagonal normal, on it the root of chi^2 with n - 1, n - 2, ... degrees.
    """
    d, at = len(roots), generator.device
    factor = torch.randn((draws, d, min(d, n - 1)), generator=generator, dtype=torch.float64, device=at)
    if n > d:
        # torch draws no chi^2 from a generator
        seed = int(torch.randint(2**62, (), generator=generator, device=at))
        squares = torch.from_numpy(np.random.default_rng(seed).chisquare(n - 1 - np.arange(d), (draws, d)))
        factor = factor.tril(-1) + squares.sqrt().diag_embed().to(at)
    return roots[:, None] * factor.to(roots.device) / math.sqrt(n - 1)


def _influence(x: Tensor, own: Tensor, other: Tensor, transport: Tensor | None) -> Tensor:
    """The influence on the distance (n,) of each of the examples x (n, d) of a set, whose mean is ``own``.

    ``other`` is the mean of the other set, and x^T T x = |transport^T x|^2; without it, that is left out.
    """
    influences = []
    for part in x.split(BLOCK):
        centred = part.double() - own
        each = centred.square().sum(1) + 2 * centred @ (own - other)
        influences.append(each if transport is None else each - (centred @ transport).square().sum(1))
    return torch.cat(influences)


def _inverse_roots(singular: Tensor, d: int) -> Tensor:
    """1 / sqrt of singular values, and 0 for those that are zero but for rounding."""
    largest = singular.max() if len(singular) else 0.0  # none are left of identical examples
    kept = singular > largest * d * torch.finfo(torch.float64).eps
    return torch.where(kept, singular, torch.inf).rsqrt()


def frechet(data: Tensor, samples: Tensor, *, generator: Generator | None = None) -> FrechetEstimate:
    """FD between features of data (n, d) and of samples (m, d); its bias, where simulated, depends on ``generator``."""
    checked_pair(data, samples)
    generator = generator or torch.Generator().manual_seed(0)
    if min(len(data), len(samples)) <= data.shape[1]:
        return _of_few(data, samples, generator)
    d, a, b = data.shape[1], Moments.of(data), Moments.of(samples)
    of_data, of_samples = _factor(a), _factor(b)
    u, singular, w = torch.linalg.svd(of_data.T @ of_samples, full_matrices=False)
    means, traces = (a.mean - b.mean).square().sum(), a.covariance.trace() + b.covariance.trace()
    inverse = _inverse_roots(singular, d)
    variance = _influence(data, a.mean, b.mean, of_samples @ w.T * inverse).var() / a.n
    variance += _influence(samples, b.mean, a.mean, of_data @ u * inverse).var() / b.n
    bias = simulated_bias(a.covariance, a.n, b.n, generator)
    return FrechetEstimate(float(means + traces - 2 * singular.sum()), math.sqrt(float(variance)), bias)


def _of_few(data: Tensor, samples: Tensor, generator: Generator) -> FrechetEstimate:
    """The same where one set has no more examples than features: in the space of the ``few``, no (d, d) matrix.

    With L the centred few over sqrt(n - 1), S the covariance of the many and L^T S L = W diag(s^2) W^T, the root's
    trace is sum s. The transport of the many is L W diag(1/s) W^T L^T, and that of the few is such that
    x_i^T T x_i = (n - 1) (W diag(s) W^T)_ii for the i-th of them.
    """
    few, many = (data, samples) if len(data) < len(samples) else (samples, data)
    n, m = len(few), len(many)
    mean, other = (torch.stack([part.double().sum(0) for part in x.split(BLOCK)]).sum(0) / len(x) for x in (few, many))
    factor = (few.double() - mean).T / math.sqrt(n - 1)  # (d, n)
    across, square = factor.new_zeros((0, n)), 0.0  # with the same L^T S L as the many, by QR, which loses no digits
    for part in many.split(BLOCK):
        centred = (part.double() - other) / math.sqrt(m - 1)
        square += float(centred.square().sum())
        across = torch.cat([across, centred @ factor])
        if len(across) > n:
            across = torch.linalg.qr(across).R
    _, singular, w = torch.linalg.svd(across, full_matrices=False)
    value = (mean - other).square().sum() + factor.square().sum() + square - 2 * singular.sum()
    transport = factor @ w.T * _inverse_roots(singular, len(mean))
    of_few = _influence(few, mean, other, None) - (n - 1) * (w.square().T @ singular)
    variance = _influence(many, other, mean, transport).var() / m + of_few.var() / n
    values, seen = _spectrum(data, generator)
    bias = _simulated_bias(values, len(data), len(samples), generator, seen)
    return FrechetEstimate(float(value), math.sqrt(float(variance)), bias)


def _spectrum(data: Tensor, generator: Generator) -> tuple[Tensor, int]:
    """Eigenvalues of the covariance of features (n, d), and of how many of them: enough for a bias of few samples."""
    n, d = data.shape
    if d <= min(n, MOST_SPECTRUM):
        return torch.linalg.eigvalsh(Moments.of(data).covariance), n
    seen = min(n, MOST_SPECTRUM)
    some = (data if seen == n else shuffled(data, generator, seen)).double()
    centred = some - some.mean(0)
    return torch.linalg.eigvalsh(centred @ centred.T / (seen - 1)), seen


def usable_parts(n: int, m: int, dim: int, parts: Sequence[int] = (1, 2, 4)) -> tuple[int, ...]:
    """The k for which a share 1/k of both sets still has two examples a feature, as a bias linear in k needs."""
    return tuple(k for k in parts if min(n, m) // k >= 2 * dim)


def extrapolated(
    data: Tensor,
    samples: Tensor,
    *,
    parts: Sequence[int] = (1, 2, 4),
    whole: FrechetEstimate | None = None,
    generator: Generator | None = None,
) -> Extrapolated:
    """FD for unlimited examples: the intercept of the mean distance between k disjoint shares of both sets against k.

    ``whole`` is the distance of both sets, where it is known already.

    Raises:
        UserError: with fewer than two k that leave two examples a feature (``usable_parts``).
    """
    checked_pair(data, samples)
    usable = usable_parts(len(data), len(samples), data.shape[1], parts)
    if len(usable) < 2:
        raise UserError(
            f"Extrapolating the Frechet distance needs at least {4 * data.shape[1]} examples on both sides for "
            f"{data.shape[1]} features; there are {len(data)} and {len(samples)}."
        )
    whole = whole or frechet(data, samples)
    x, y = random_order(data, generator), random_order(samples, generator)
    levels = [[whole.value]]
    for k in usable[1:]:
        shares = zip(x.tensor_split(k), y.tensor_split(k), strict=True)
        levels.append([frechet_distance(Moments.of(data[a]), Moments.of(samples[b])) for a, b in shares])
    at = torch.tensor(usable, dtype=torch.float64)
    mean = torch.tensor([sum(values) / len(values) for values in levels], dtype=torch.float64)
    centred = at - at.mean()
    weights = 1 / len(at) - at.mean() * centred / centred.square().sum()
    # A share's distance varies by its linear part, k whole.se^2, whose mean over the shares is that of the whole set,
    # and by a part of second order with variance proportional to k^2: what their spread has beyond the first.
    last = usable[-1]
    spread = float(torch.tensor(levels[-1], dtype=torch.float64).var())
    second = max(spread - last * whole.se**2, 0.0) / last**2
    noise = float((weights.square() * at).sum()) * second
    return Extrapolated(float(weights @ mean), math.sqrt(whole.se**2 + noise), usable)


class FrechetDistance(SetMeasure):
    """FD of features that come in batches; processes merge their moments."""

    is_differentiable = False
    higher_is_better = False
    data_mean: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        for side in ("data", "samples"):
            self.add_state(f"{side}_n", torch.zeros(1, dtype=torch.float64), dist_reduce_fx=None)
            self.add_state(f"{side}_mean", torch.zeros((1, features), dtype=torch.float64), dist_reduce_fx=None)
            scatter = torch.zeros((1, features, features), dtype=torch.float64)
            self.add_state(f"{side}_scatter", scatter, dist_reduce_fx=None)
        self.set_dtype(torch.float64)

    def update(self, features: Tensor, *, real: bool) -> None:
        """Add features (b, d) of data (``real``) or of samples."""
        side = "data" if real else "samples"
        checked(features, f"features of the {side}", least=1)
        if features.shape[1] != self.data_mean.shape[-1]:
            expected = self.data_mean.shape[-1]
            raise UserError(f"Features of shape {tuple(features.shape)} do not fit: (n, {expected}) is expected.")
        merged = self.moments(real=real).merged(Moments.of(features))
        setattr(self, f"{side}_n", torch.full((1,), merged.n, dtype=torch.float64, device=features.device))
        setattr(self, f"{side}_mean", merged.mean[None])
        setattr(self, f"{side}_scatter", merged.scatter[None])

    def moments(self, *, real: bool) -> Moments:
        """What has been added so far, on all processes once they are in step."""
        side = "data" if real else "samples"
        mean = getattr(self, f"{side}_mean").flatten(0, -2)
        scatter = getattr(self, f"{side}_scatter").flatten(0, -3)
        held = [
            Moments(int(n), m, s) for n, m, s in zip(getattr(self, f"{side}_n").flatten(), mean, scatter, strict=True)
        ]
        total = held[0]
        for each in held[1:]:
            total = total.merged(each)
        return total

    def compute(self) -> Tensor:
        """The distance."""
        value = frechet_distance(self.moments(real=True), self.moments(real=False))
        return torch.tensor(value, dtype=torch.float64)
