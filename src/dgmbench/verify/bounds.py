"""Bounds and importance weights: unbiased for p(x), ordered, and never above the truth."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from dgmbench.models.contract import CanSample, HasElbo, HasLogProb, HasLogWeights, Model
from dgmbench.verify.check import SIGMAS, Check, undecided, within
from dgmbench.verify.density import SAMPLES, follow
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import Support, support_of

EXAMPLES = 24
DRAWS = 2048
CHUNK = 2**15


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    if not isinstance(model, HasElbo | HasLogWeights):
        return
    x = subject.data.x[:EXAMPLES]
    names: list[str] = []
    means: list[float] = []
    errors: list[float] = []
    if isinstance(model, HasElbo):
        repeated = torch.stack([model.elbo(x, generator=subject.generator("elbo", i)) for i in range(DRAWS // 8)])
        names.append("elbo")
        _append(means, errors, repeated)
    if isinstance(model, HasLogWeights):
        g = subject.generator("weights")
        for k in (1, 4, 16, 64):
            repeats = max(8, DRAWS // (8 * k))
            w = model.log_weights(x.repeat(repeats, *[1] * len(subject.spec.shape)), k, generator=g)
            names.append(f"IW-{k}")
            _append(means, errors, (w.logsumexp(0) - torch.tensor(float(k)).log()).reshape(repeats, len(x)))
    yield from _ordered(names, means, errors)
    if isinstance(model, HasLogProb):
        truth = float(model.log_prob(x).mean())
        gaps = [mean - truth for mean in means]
        worst = max(range(len(gaps)), key=lambda i: gaps[i] - SIGMAS * errors[i])
        yield within("bounds lie below log p(x)", gaps[worst], errors[worst], f"{names[worst]}, nats", below=False)
    yield from _sums(subject, model)


def _append(means: list[float], errors: list[float], draws: Tensor) -> None:
    """Mean over examples and draws (repeats, b), and its standard error from the repeats."""
    per_draw = draws.double().mean(1)
    means.append(float(per_draw.mean()))
    errors.append(float(per_draw.std() / len(per_draw) ** 0.5))


def _ordered(names: list[str], means: list[float], errors: list[float]) -> Iterator[Check]:
    values = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(names, means, strict=True))
    if names[:2] == ["elbo", "IW-1"]:
        error = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
        yield within("the ELBO is the mean log-weight", means[0] - means[1], error, f"{values} nats")
    bounds = [i for i, name in enumerate(names) if name != "elbo"]
    if bounds:
        drops = [(means[a] - means[b], (errors[a] ** 2 + errors[b] ** 2) ** 0.5) for a, b in itertools.pairwise(bounds)]
        worst = max(drops, key=lambda drop: drop[0] - SIGMAS * drop[1])
        yield within("the bound grows with k", worst[0], worst[1], f"largest drop; {values} nats", below=False)


def _sums(subject: Subject, model: HasElbo | HasLogWeights) -> Iterator[Check]:
    """Sums over every x: mean weights are unbiased for p(x), so they sum to 1; exp(ELBO) sums to at most 1."""
    pilot = model.sample(500, generator=subject.generator("pilot")) if isinstance(model, CanSample) else subject.data.x
    support = support_of(subject.spec, pilot, points=100 if subject.spec.dim == 2 else 1000)
    if isinstance(support, str):
        yield undecided("weights or bounds sum to 1 over x", support)
        return
    if isinstance(model, HasLogWeights):
        yield from _unbiased(subject, model, support)
    if isinstance(model, HasElbo):
        yield from _below(subject, model, support)


def _unbiased(subject: Subject, model: HasLogWeights, support: Support) -> Iterator[Check]:
    """The mean weight of x is unbiased for p(x); means of heavy-tailed weights are recognised by their skewness."""
    volume = support.log_volume.exp()
    g = subject.generator("sum")
    n = len(support.x)
    k = max(8, min(256, CHUNK // n))
    sums, draws = torch.zeros(3, n, dtype=torch.float64), 0
    while True:
        for _ in range(max(1, 256 // k)):
            w = model.log_weights(support.x, k, generator=g).double().exp()
            sums, draws = sums + torch.stack([w.sum(0), w.square().sum(0), w.pow(3).sum(0)]), draws + k
        mean, square, cube = sums / draws
        spread = (square - mean**2).clamp_min(0)
        variance = volume**2 * spread / draws
        skewness = volume**3 * (cube - 3 * mean * spread - mean**3).abs() / draws**2
        error = float(variance.sum()) ** 0.5
        if error < 2e-3 or draws * n >= 2**20:
            break
    note, heavy = f"{support.note}, {draws} weights each", "the weights' tails are too heavy"
    name = "mean weights sum to 1 over x"
    if error > 0.1 or float(skewness.sum()) > 0.1 * error**3 + 1e-30:
        yield undecided(name, f"{heavy} (standard error {error:.2g}; {note})")
    else:
        quadrature = 0.0 if support.exact else 2e-3 / SIGMAS
        yield within(name, float((volume * mean).sum()) - 1, (error**2 + quadrature**2) ** 0.5, f"sum - 1; {note}")
    if not isinstance(model, CanSample):
        return
    name, p = "samples follow the weights", support.probabilities(mean.log())
    variance, skewness = (torch.zeros_like(p).index_add(0, support.cell, value) for value in (variance, skewness))
    noisy = (SAMPLES * variance > 0.1 * p) & (skewness > 0.25 * variance**1.5)
    if float(p[noisy].sum()) > 0.05:
        yield undecided(name, f"{heavy} ({note})")
    else:
        yield follow(name, support, model.sample(SAMPLES, generator=subject.generator("samples")), p, variance)


def _below(subject: Subject, model: HasElbo, support: Support) -> Iterator[Check]:
    draws = max(8, min(64, 2**18 // len(support.x)))
    elbo = torch.stack([model.elbo(support.x, generator=subject.generator("below", i)) for i in range(draws)]).double()
    mean, error = elbo.mean(0), elbo.std(0) / draws**0.5
    p = (mean + support.log_volume).exp()
    slack = float(((p * error) ** 2).sum()) ** 0.5 + float((p * error**2 / 2).sum())  # the second: Jensen's bias
    excess = float(p.sum()) - 1
    slack += 0.0 if support.exact else 2e-3 / SIGMAS
    yield within("exp(ELBO) sums to at most 1 over x", excess, slack, f"sum - 1; {support.note}", below=False)
    if isinstance(model, CanSample) and support.exact:
        yield below_frequencies(support, model.sample(SAMPLES, generator=subject.generator("samples")), mean, error)


def below_frequencies(support: Support, samples: Tensor, bound: Tensor, error: Tensor) -> Check:
    """Whether a bound of log p(x), known up to ``error``, exceeds the log-frequency of x nowhere, beyond noise."""
    name, (counts, _) = "the ELBO lies below sample frequencies", support.counts(samples)
    seen = counts >= 50
    if not bool(seen.any()):
        return undecided(name, "no value of x is frequent enough")
    frequency = counts[seen] / len(samples)
    noise = (error[seen] ** 2 + (1 - frequency) / counts[seen]).sqrt()
    score = float(((bound[seen] - frequency.log()) / noise).max())
    limit = SIGMAS + 1  # the largest of many
    note = f"largest excess over {int(seen.sum())} values of x, in standard errors"
    return Check(name, score, limit, score <= limit, note)
