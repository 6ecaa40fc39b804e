"""Every standard error against the spread over a hundred repeats, at equal distributions and at a distance.

That of neighbourhoods, which takes longer, is in ``quality/test_scores.py``, that of log Z in ``test_log_z.py``. Scores
of disentanglement claim none.
"""

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.decoder_measure import _parzen_mean
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.quality import frechet, kid, mmd, sliced_wasserstein
from dgmbench.evaluation.quality.inception_score import inception_score
from dgmbench.evaluation.quality.measure import _share_wrong
from dgmbench.evaluation.quality.memorisation import memorisation
from dgmbench.evaluation.quality.probe import few_label_errors, linear_probe_errors, nearest_neighbour_errors
from dgmbench.evaluation.quality.similarity import psnr, ssim
from dgmbench.evaluation.sample_distance import energy_distance
from dgmbench.models.contract import Model
from dgmbench.nn.scaling import Scaling

REPEATS = 100
# A standard deviation from a hundred values is known to 7 %; that of five blocks, a hundred times, to 4 %.
LEAST, MOST = 0.75, 1.3
# The delta method and the jackknife see the noise of second order twice: at equal distributions nothing else is left.
TWICE = {"fd": 0.55, "fd_inf": 0.55, "swd": 0.5, "energy_distance": 0.6}
Claims = Iterator[tuple[str, float, float | None]]


def of_sets(x: Tensor, y: Tensor, g: Generator) -> Claims:
    """Name, value and claimed error of each measure of data x (n, d) and samples y (m, d)."""
    whole = frechet.frechet(x, y, generator=g)
    yield "fd", whole.value, whole.se
    yield "fd_inf", *frechet.extrapolated(x, y, whole=whole, generator=g)[:2]
    few = frechet.frechet(x[:40].repeat(1, 20), y[:30].repeat(1, 20), generator=g)  # 80 features
    yield "fd of few", few.value, few.se
    yield "kid", *kid.kid(x, y, generator=g)[:2]
    yield "kid in single precision", *kid.kid(x.float(), y.float(), generator=g)[:2]
    yield "mmd", *mmd.mmd(x, y, generator=g)[:2]
    yield "swd", *sliced_wasserstein.sliced_wasserstein(x, y, directions=32, generator=g)
    found = energy_distance(x, y)
    yield "energy_distance", float(found.value), float(found.se)
    yield "score", *inception_score(y * torch.tensor([1.0, 2.0, 3.0, 4.0]), splits=5)[:2]


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_distances_of_sets(shift: float) -> None:
    claims = defaultdict(list)
    for i in range(REPEATS):
        g = Generator().manual_seed(i)
        x, y = (torch.randn((n, 4), generator=g, dtype=torch.float64) for n in (120, 100))
        for name, *numbers in of_sets(x, y + shift, g):
            claims[name].append(numbers)
    compare(claims, {**TWICE, "fd of few": 0.55} if shift == 0 else {})


def compare(claims: dict[str, list], least: dict[str, float]) -> None:
    """The spread of values over the claimed error, root mean square, of every name."""
    ratios = {}
    for name, found in claims.items():
        values, errors = np.array(found, dtype=float).T
        ratios[name] = values.std(ddof=1) / math.sqrt(np.mean(errors**2))
    wrong = {name: ratio for name, ratio in ratios.items() if not least.get(name, LEAST) < ratio < MOST}
    assert not wrong, wrong


@pytest.mark.parametrize("blur", [1.0, 0.3])
def test_memorisation_of_fresh_and_of_blurred_samples(blur: float) -> None:
    claims = defaultdict(list)
    for i in range(REPEATS):
        g = Generator().manual_seed(i)
        train, held_out, fresh = (torch.randn((n, 4), generator=g, dtype=torch.float64) for n in (120, 60, 80))
        claims["memorisation"].append(memorisation(train, held_out, blur * fresh)[:2])
    compare(claims, {})


def data_set(x: Tensor) -> DataSet:
    split = Split(x.numpy(), None)
    return DataSet("toy", DataSpec((x.shape[1],), "real"), {"train": split, "valid": split, "test": split}, "1" * 64)


class Drawn(Model):
    """log w = -|x|^2 / 2 + noise, so that examples and draws both have a part in every error."""

    def __init__(self, width: float) -> None:
        super().__init__(DataSpec((3,), "real"))
        self.width = width

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        noise = torch.randn((k, len(x)), generator=generator, dtype=torch.float64)
        return self.width * noise - 0.5 * x.double().square().sum(1)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.log_weights(x, 1, generator=generator)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x.double().square().sum(1)


@pytest.mark.parametrize("width", [0.1, 1.5])
def test_likelihoods_and_bounds(width: float) -> None:
    claims, model = defaultdict(list), Drawn(width)
    for i in range(REPEATS):
        g = Generator().manual_seed(i)
        x, samples = (torch.randn((n, 3), generator=g) * scale for n, scale in ((150, 1.0), (100, 1 + width)))
        chunks = Chunks(data_set(x), "test", seed=i)
        draws = {"elbo": bounds.elbo(model, chunks)}
        draws |= {
            f"iw_bound_k{k}": each for k, each in bounds.importance_weighted_bounds(model, chunks, [5, 20]).items()
        }
        means = {
            name: Metric.mean_of(
                each.values, unit="nats", kind="lower bound", direction="higher", draw_variance=each.variance
            )
            for name, each in draws.items()
        }
        exact = bounds.log_likelihood(model, chunks)
        means["log_likelihood"] = Metric.mean_of(exact, unit="nats", kind="exact", direction="higher")
        means["parzen"] = _parzen_mean(samples, chunks, Scaling(model.spec, low=0.0, high=1.0), 0.8)
        for name, metric in means.items():
            claims[name].append((metric.value, metric.se))
    compare(claims, {})


@pytest.mark.parametrize("apart", [0.5, 1.5])
def test_probes_and_pairs_of_images(apart: float) -> None:
    claims = defaultdict(list)
    g = Generator().manual_seed(0)
    train_y = torch.arange(300) % 3

    def codes(y: Tensor) -> Tensor:
        return torch.randn((len(y), 3), generator=g) + apart * torch.nn.functional.one_hot(y, 3)

    train = codes(train_y)
    for _ in range(REPEATS):
        y = torch.randint(0, 3, (120,), generator=g)
        test = codes(y)
        errors = {
            "linear_probe_error": linear_probe_errors(train, train_y, test, y),
            "nearest_neighbour_error": nearest_neighbour_errors(train, train_y, test, y),
            "semi_supervised_error": few_label_errors(train, train_y, test, y, labels=12, draws=4, generator=g),
        }
        for name, each in errors.items():
            metric = _share_wrong(lambda each=each: each)
            claims[name].append((metric.value, metric.se))
        a = torch.rand((40, 1, 8, 8), generator=g)
        b = (a + 0.2 * apart * torch.rand((40, 1, 1, 1), generator=g)).clamp(0, 1)
        for name, value in (("psnr", psnr(a, b)), ("ssim", ssim(a, b))):
            metric = Metric.mean_of(value, unit="1", kind="estimate", direction="higher")
            claims[name].append((metric.value, metric.se))
    compare(claims, {})
