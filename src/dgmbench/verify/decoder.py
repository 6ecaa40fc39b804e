"""Decoders as functions of standard normal noise: what they say of p(x | noise) is what the model samples."""

from collections.abc import Iterator

import torch
from scipy import stats
from torch import Tensor

from dgmbench.models.contract import CanGenerate, CanSample, HasDecoder, Model
from dgmbench.verify.check import Check, chi_squared, frequencies, undecided
from dgmbench.verify.density import draws_of
from dgmbench.verify.means import Means, follow_means
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import Support, support_of

SAMPLES = 10_000
VALUES = 2**18  # in the samples of examples of many dimensions, which are fewer then, down to LEAST
LEAST = 1000
FEW = 16
DIRECTIONS = 8
ROWS = 2**17


def checks(subject: Subject, model: Model) -> Iterator[Check]:
    """All checks of this module for one state of the model, in double precision."""
    if isinstance(model, HasDecoder):
        support = support_of(subject.spec, subject.data.x)
        if isinstance(support, str) or not support.exact:
            yield undecided("p(x | noise) sums to 1", "x cannot be enumerated")
        else:
            yield from _conditional(subject, model, support)
    if isinstance(model, CanGenerate) and isinstance(model, CanSample):
        yield _generated(subject, model)


def _noise(model: HasDecoder | CanGenerate, n: int, subject: Subject, name: str) -> Tensor:
    return torch.randn(n, model.noise_dim, generator=subject.generator("noise", name))


def _conditional(subject: Subject, model: HasDecoder, support: Support) -> Iterator[Check]:
    n = len(support.x)

    def given(noise: Tensor) -> Tensor:
        """p(x | noise) of all x, (noises, n)."""
        x = support.x.repeat(len(noise), *[1] * len(subject.spec.shape))
        return model.log_prob_given(x, noise.repeat_interleave(n, 0)).double().view(len(noise), n).exp()

    few = _noise(model, FEW, subject, "few")
    p = given(few)
    worst = float((p.sum(1) - 1).abs().max())
    yield Check("p(x | noise) sums to 1", worst, 1e-9, worst <= 1e-9, f"{support.note}, at {FEW} values of the noise")
    p_values = []
    for i in range(3):
        drawn = model.sample_given(few[i].expand(SAMPLES, -1), generator=subject.generator("given", i))
        counts, outside = support.counts(drawn)
        p_values.append(0.0 if outside else chi_squared(counts, support.probabilities(p[i].log())))
    yield frequencies("draws given noise follow p(x | noise)", p_values, f"chi-squared of {SAMPLES} draws, 3 times")
    if not isinstance(model, CanSample):
        return
    draws = max(64, min(4096, ROWS // n))
    block = max(1, 2**15 // n)
    each = torch.cat([given(part) for part in _noise(model, draws, subject, "many").split(block)])
    samples = draws_of(subject, model)
    note = f"{draws} values of the noise"
    yield follow_means("samples follow the mean of p(x | noise)", Means.of(each.log()), support, samples, note)


def _generated(subject: Subject, model: CanGenerate) -> Check:
    """Two samples of one distribution, one by ``sample`` and one through ``generate``, along random directions."""
    assert isinstance(model, CanSample)
    n = max(LEAST, min(SAMPLES, VALUES // subject.spec.dim))
    x = model.generate(_noise(model, n, subject, "generate"))
    if subject.spec.levels is not None:
        x = x.round().clamp(0, subject.spec.levels - 1)
    y = model.sample(n, generator=subject.generator("samples"))
    directions = torch.randn(subject.spec.dim, DIRECTIONS, generator=subject.generator("directions"))
    a, b = ((each.double().flatten(1) @ directions).numpy() for each in (x.to(subject.spec.dtype), y))
    # At so many values the limit is as good as the exact distribution, whose sum fails, with a warning, where p is 1.
    p_values = [float(stats.ks_2samp(a[:, i], b[:, i], method="asymp").pvalue) for i in range(DIRECTIONS)]
    note = f"Kolmogorov-Smirnov tests of twice {n} values along {DIRECTIONS} directions"
    return frequencies("generated values are distributed as samples", p_values, note)
