"""Bounds of models whose evidence is known: each on its side, tighter as it should be, with errors that are true."""

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.neighbors import KernelDensity
from torch import Generator, Tensor, nn

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import Chunks
from dgmbench.evaluation.evaluator import PARTS, Evaluator
from dgmbench.evaluation.likelihood.bounds import (
    BLOCK_NUMBERS,
    grouped_bound,
    importance_weighted_bounds,
    jackknife_variance,
)
from dgmbench.evaluation.likelihood.decoder_measure import SIGMAS, parzen
from dgmbench.evaluation.likelihood.parzen import parzen_jackknife, parzen_log_density, squared_distances
from dgmbench.evaluation.likelihood.sigma import TOLERANCE
from dgmbench.evaluation.metrics import Metric
from dgmbench.evaluation.parts import Context
from dgmbench.models.boltzmann.dbn import Dbn
from dgmbench.models.boltzmann.helmholtz import Helmholtz
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import HasLogWeights, Model
from dgmbench.models.flow.realnvp import RealNvp
from dgmbench.models.gan.gan import Gan
from dgmbench.models.vae.vae import Vae
from dgmbench.training.ranks import Ranks

CPU = torch.device("cpu")
PROTOCOL: dict[str, Any] = {"seed": 0, "k": 10, "ais": {"chains": 20, "temperatures": 50}, "max_examples": None}
BITS = DataSpec((4,), "binary")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def dataset(x: np.ndarray | Tensor, spec: DataSpec) -> DataSet:
    split = Split(np.asarray(x), None)
    return DataSet("toy", spec, {"train": split, "valid": split, "test": split}, "1" * 64)


def all_bits(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((0, 1), repeat=n)), dtype=torch.uint8)


def scrambled(model: Model, scale: float = 0.8, seed: int = 0) -> Model:
    g = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=g))
    return model.double().eval()


def measured(model: Model, data: DataSet, **changes: Any) -> dict[str, Metric]:
    one = Evaluator(data, PROTOCOL | changes, split="test", rule="best", averaged=False, device=CPU)
    return {name: metric for name, (metric, _) in one.measure(model).items()}


# ---------------------------------------------------------------------- several k at once


def test_groups_of_draws_by_hand() -> None:
    weights = torch.arange(1.0, 8.0).double()[:, None]  # 1 ... 7
    value, variance = grouped_bound(weights.log(), 2)
    each = [math.log(1.5), math.log(3.5), math.log(5.5)]  # the seventh is in no group
    assert float(value) == pytest.approx(np.mean(each))
    assert float(variance) == pytest.approx(np.var(each, ddof=1) / 3)
    value, variance = grouped_bound(weights.log(), 7)
    assert float(value) == pytest.approx(math.log(4))
    without = [math.log((28 - i) / 6) for i in range(1, 8)]
    assert float(variance) == pytest.approx(6 / 7 * sum((w - np.mean(without)) ** 2 for w in without))


def test_one_weight_above_all_others_is_no_small_error() -> None:
    log_weights = torch.tensor([0.0, -800.0, -900.0]).double()[:, None]
    assert float(jackknife_variance(log_weights)) > 1
    assert math.isfinite(float(jackknife_variance(log_weights)))


def test_the_jackknife_is_that_of_its_definition_however_far_the_weights_lie_apart() -> None:
    for spread in (1.0, 40.0, 300.0):
        log_weights = spread * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        without = torch.stack(
            [torch.cat([log_weights[:i], log_weights[i + 1 :]]).logsumexp(0) for i in range(50)]  # each one left out
        )
        expected = 49 / 50 * (without - without.mean(0)).square().sum(0)
        torch.testing.assert_close(jackknife_variance(log_weights), expected, rtol=1e-9, atol=0)
    assert jackknife_variance(log_weights[:1]).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["elbo", "elbo_ais", "elbo_reverse_ais"])
def test_the_error_over_draws_is_the_spread_on_the_same_examples(name: str) -> None:
    model: Model = scrambled(Dbn(BITS, hidden_sizes=(3, 2), fine_tuning=0.0), 1.0)
    data = dataset(all_bits(4).repeat(5, 1), BITS)
    ais = {"chains": 10, "temperatures": 20}
    found = [measured(model, data, seed=seed, k=1, ais=ais)[name] for seed in range(60)]
    claimed = np.mean([metric.se_draws for metric in found])
    # 60 repeats know a standard deviation to 9 %
    assert 0.7 < np.std([metric.value for metric in found], ddof=1) / claimed < 1.35
    assert all(metric.se > metric.se_draws for metric in found)


class Lognormal(Model):
    """log-weights N(-s^2 / 2, s^2), so that log p(x) = 0."""

    def __init__(self, s: float = 1.0, dim: int = 2) -> None:
        super().__init__(DataSpec((dim,), "real"))
        self.s, self.blocks = s, []  # type: ignore[var-annotated]

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        self.blocks.append(k * len(x) * x[0].numel())
        return self.s * torch.randn(k, len(x), generator=generator, dtype=torch.float64) - self.s**2 / 2


def test_one_pass_gives_every_k_and_the_largest_as_alone() -> None:
    data = dataset(np.zeros((150, 2), np.float32), DataSpec((2,), "real"))
    model, chunks = Lognormal(), Chunks(data, "test", seed=0)
    found = importance_weighted_bounds(model, chunks, [1, 10, 300])
    alone = importance_weighted_bounds(model, chunks, [300])
    assert torch.equal(found[300].values, alone[300].values)
    means = {k: float(draws.values.mean()) for k, draws in found.items()}
    assert means[1] < means[10] < means[300] < 0.01
    # E log w = -s^2 / 2, over 150 * 300 draws
    assert abs(means[1] + 0.5) < 4.5 / math.sqrt(150 * 300)
    assert importance_weighted_bounds(model, chunks, [1])[1].variance is None
    for wrong in ([], [0], [5, -1]):
        with pytest.raises(UserError, match="at least 1"):
            importance_weighted_bounds(model, chunks, wrong)


def test_memory_is_bounded_whatever_k_and_the_size_of_the_data() -> None:
    for dim in (2, 3000):
        data = dataset(np.zeros((100, dim), np.float32), DataSpec((dim,), "real"))
        model = Lognormal(dim=dim)
        importance_weighted_bounds(model, Chunks(data, "test", seed=0), [2000])
        assert sum(model.blocks) == 2000 * 100 * dim
        assert max(model.blocks) <= BLOCK_NUMBERS


@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_error_over_draws_is_the_spread_of_repeated_draws(k: int) -> None:
    data = dataset(np.zeros((100, 2), np.float32), DataSpec((2,), "real"))
    values, claims = [], []
    for seed in range(150):
        draws = importance_weighted_bounds(Lognormal(0.7), Chunks(data, "test", seed=seed), [k, 40])[k]
        metric = Metric.mean_of(
            draws.values, unit="nats", kind="lower bound", direction="higher", draw_variance=draws.variance
        )
        values.append(metric.value)
        claims.append(metric.se_draws)
    # 150 repeats know a standard deviation to 6 %, and the jackknife may claim somewhat too much
    assert 0.75 < np.std(values, ddof=1) / np.mean(claims) < 1.25


# ---------------------------------------------------------------------- models whose evidence is known


def evidence_of_helmholtz() -> tuple[Model, Tensor, Tensor]:
    model = scrambled(Helmholtz(BITS, hidden_sizes=(3, 2)), 0.7)
    x = all_bits(4)
    hidden = [(one, two) for one in all_bits(3).double() for two in all_bits(2).double()]
    joint = torch.stack(
        [model.log_joint([x.double(), one.expand(16, -1), two.expand(16, -1)]) for one, two in hidden]  # type: ignore[operator]
    )
    return model, x, joint.logsumexp(0).detach()


def evidence_of_vae() -> tuple[Model, Tensor, Tensor]:
    model = scrambled(Vae(BITS, hidden_sizes=(6,), latent=1), 0.6)
    with torch.no_grad():  # a proposal near the prior, whose weights have light tails
        for parameter in model.encoder.parameters():  # type: ignore[union-attr]
            parameter *= 0.1
    x = all_bits(4)
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    log_prior = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) + math.log(18 / 4000)
    with torch.no_grad():
        each = [(model.log_prob_given(one.expand(4001, -1), z[:, None]) + log_prior).logsumexp(0) for one in x]  # type: ignore[operator]
    return model, x, torch.stack(each)


def evidence_of_flow() -> tuple[Model, Tensor, Tensor]:
    torch.manual_seed(0)
    spec = DataSpec((1,), "discrete", levels=3)
    model = RealNvp(spec, couplings=2, hidden_sizes=(4,)).double().eval()
    x = torch.arange(3, dtype=torch.uint8)[:, None]
    n = 20_000
    u = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    with torch.no_grad():  # the mass of each cell, by quadrature of the density
        each = []
        for level in range(3):
            z, log_det = model.bijection(level + u)
            density = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(1) + log_det
            each.append(density.logsumexp(0) - math.log(n))
    assert float(torch.stack(each).exp().sum()) == pytest.approx(1, abs=1e-4)
    return model, x, torch.stack(each)


KNOWN: dict[str, Callable[[], tuple[Model, Tensor, Tensor]]] = {
    "helmholtz": evidence_of_helmholtz,
    "vae": evidence_of_vae,
    "dequantised flow": evidence_of_flow,
}


@pytest.mark.parametrize("name", KNOWN)
def test_bounds_lie_below_the_evidence_and_rise_with_k_towards_it(name: str) -> None:
    model, x, exact = KNOWN[name]()
    assert isinstance(model, HasLogWeights)
    data = dataset(x.repeat(60, *[1] * (x.dim() - 1)), model.spec)
    found = measured(model, data, k=[1, 8, 64, 1024])
    truth = float(exact.mean())
    gaps = {k: truth - found[f"iw_bound_k{k}"].value for k in (1, 8, 64, 1024)}
    errors = {k: found[f"iw_bound_k{k}"].se_draws or 0.0 for k in gaps}
    for k, gap in gaps.items():
        assert gap > -4.5 * errors[k], k
    assert gaps[1] > gaps[8] > gaps[64] - 4.5 * errors[64]
    assert gaps[1] > 9 * errors[1]  # there is a gap to close
    assert abs(gaps[1024]) < 0.1 * gaps[1] + 4.5 * errors[1024]
    elbo, one = found["elbo"], found["iw_bound_k1"]
    assert abs(elbo.value - one.value) < 4.5 * math.hypot(elbo.se or 0.0, one.se_draws or 0.0)
    if name == "vae":  # and annealing finds it too
        settings = {"examples": 200, "chains": 8, "temperatures": 40, "leapfrog": 3}
        ais = measured(model, data, k=1, decoder_ais=settings, max_examples=200)
        exact_there = measured(Exact(model.spec, exact), data, max_examples=200)["log_likelihood"].value
        assert abs(ais["decoder_ais"].value - exact_there) < 4.5 * (ais["decoder_ais"].se_draws or 0.0) + 0.01


class Exact(Model):
    """The table of log p(x) over four bits."""

    def __init__(self, spec: DataSpec, table: Tensor) -> None:
        super().__init__(spec)
        self.table = table

    def log_prob(self, x: Tensor) -> Tensor:
        return self.table[x.long() @ torch.tensor([8, 4, 2, 1])]


def test_the_bound_of_a_belief_net_lies_below_its_evidence() -> None:
    model = scrambled(Dbn(BITS, hidden_sizes=(3, 3), fine_tuning=0.0), 0.8)
    x = all_bits(4)
    hidden = all_bits(3).double()
    with torch.no_grad():
        joint = torch.stack([model.log_joint_unnormalised([x.double(), h.expand(16, -1)]) for h in hidden])  # type: ignore[operator]
        log_z = float(model.annealing_path().exact_log_partition())  # type: ignore[operator]
    exact = joint.logsumexp(0) - log_z
    assert float(exact.exp().sum()) == pytest.approx(1)
    # the gap of one x in closed form: KL(Q(h | x) || p(h | x))
    found = measured(model, dataset(x.repeat(100, 1), BITS))["elbo"]
    with torch.no_grad():
        log_q = torch.stack([model.log_recognition([x.double(), h.expand(16, -1)]) for h in hidden])  # type: ignore[operator]
    gap = (log_q.exp() * (log_q - (joint - joint.logsumexp(0)))).sum(0)
    assert float(gap.min()) > 0.01
    spread = math.sqrt(float((log_q.exp() * (joint - log_z - log_q).square()).sum(0).mean()) / 1600)
    assert abs(found.value - float((exact - gap).mean())) < 4.5 * spread


def test_annealing_an_rbm_encloses_its_likelihood_in_expectation_and_closes() -> None:
    model = scrambled(Rbm(DataSpec((6,), "binary"), hidden=5, sample_steps=1), 1.2)
    data = dataset(all_bits(6), model.spec)
    exact = measured(model, data)["log_likelihood"].value
    gaps = []
    for temperatures in (1, 60):
        high, low = [], []
        for seed in range(25):
            ais = {"chains": 5, "temperatures": temperatures}
            found = measured(model, data, ais=ais, seed=seed)
            high.append(found["log_likelihood_ais"].value)
            low.append(found["log_likelihood_reverse_ais"].value)
        error = np.std(high, ddof=1) / 5, np.std(low, ddof=1) / 5
        assert np.mean(high) > exact - 4.5 * error[0]
        assert np.mean(low) < exact + 4.5 * error[1]
        gaps.append(np.mean(high) - np.mean(low))
    assert gaps[0] > 3 * gaps[1] > 0


# ---------------------------------------------------------------------- Parzen windows


class Points(Model):
    """Draws rows of an array in turn."""

    def __init__(self, x: np.ndarray, spec: DataSpec) -> None:
        super().__init__(spec)
        self.x, self.at = torch.from_numpy(x), 0
        self.unused = nn.Parameter(torch.zeros(1))

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        first, self.at = self.at, (self.at + n) % len(self.x)
        return self.x[torch.arange(first, first + n) % len(self.x)]


def parts_of(model: Model, data: DataSet, **changes: Any) -> dict[str, tuple[Metric, dict[str, Any]]]:
    context = Context(data, PROTOCOL | changes, "test", CPU)
    return {name: (metric, details) for name, metric, details in parzen(model, context, lambda text: None)}


def test_two_kernels_in_one_dimension_by_hand() -> None:
    distances = squared_distances(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(distances, torch.tensor([[0.0, 4.0], [1.0, 1.0]]).double())
    found = parzen_log_density(distances, 0.5, 1)
    constant = -math.log(0.5) - 0.5 * math.log(2 * math.pi)
    assert float(found[0]) == pytest.approx(math.log((1 + math.exp(-8)) / 2) + constant)
    assert float(found[1]) == pytest.approx(-2 + constant)
    # the same distances in three dimensions: the constant of each
    assert float(parzen_log_density(distances, 0.5, 3)[1]) == pytest.approx(-2 + 3 * constant)
    # far away nothing underflows
    assert float(parzen_log_density(torch.tensor([[1e6]]).double(), 0.01, 1)) == pytest.approx(-5e9, rel=1e-6)


def test_densities_without_a_block_of_kernels_are_those_of_the_others() -> None:
    distances = squared_distances(torch.randn(5, 3, generator=seeded()), torch.randn(8, 3, generator=seeded(1)))
    found = parzen_jackknife(distances, 0.4, 3, 3)
    kept = [range(8), range(3, 8), (0, 1, 2, 6, 7), range(6)]  # blocks of 3, 3 and 2
    expected = torch.stack([parzen_log_density(distances[:, list(each)], 0.4, 3) for each in kept], 1)
    torch.testing.assert_close(found, expected)


def test_parzen_windows_are_scikit_learns_with_the_best_sigma() -> None:
    spec = DataSpec((1, 6, 6), "discrete", levels=17)
    random = np.random.RandomState(0)
    x, samples = (random.randint(0, 13, (n, 1, 6, 6)).astype(np.uint8) for n in (150, 700))
    found = parts_of(Points(samples, spec), dataset(x, spec), parzen={"samples": 700})
    flat, kernels = (a.reshape(len(a), -1) / 16 for a in (x, samples))

    def scores(sigma: float) -> np.ndarray:
        return KernelDensity(bandwidth=sigma, leaf_size=1000).fit(kernels).score_samples(flat)

    top = minimize_scalar(lambda s: -scores(s).mean(), bounds=(0.15, 0.4), method="bounded", options={"xatol": 1e-4})
    (value, details), sigma = found["parzen"], found["parzen_sigma"][0].value
    here = scores(sigma)
    assert value.value == pytest.approx(here.mean(), rel=1e-9)
    assert here.mean() > -top.fun - TOLERANCE
    assert max(scores(s).mean() for s in SIGMAS) < -top.fun - 3 * TOLERANCE  # what the grid alone would find
    blocks = [samples[start : start + 70] for start in range(0, 700, 70)]
    means = []
    for i in range(10):
        others = np.concatenate(blocks[:i] + blocks[i + 1 :]).reshape(630, -1) / 16
        means.append(KernelDensity(bandwidth=sigma, leaf_size=1000).fit(others).score_samples(flat).mean())
    assert value.se_draws == pytest.approx(math.sqrt(9 * np.var(means)), rel=1e-6)
    assert value.se == pytest.approx(math.hypot(here.std(ddof=1) / math.sqrt(150), value.se_draws))
    assert "unreliable" in (value.note or "")
    assert (details["samples"], details["sigma"]["split"], details["sigma"]["examples"]) == (700, "valid", 150)


@pytest.mark.parametrize("kernels", [30, 205])  # ten blocks do not divide the latter
def test_the_error_over_draws_of_kernels_is_the_spread_of_repeated_draws(kernels: int) -> None:
    class Normal(Model):
        def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
            return torch.randn(n, 2, generator=generator)

    spec = DataSpec((2,), "real")
    data = dataset(np.random.RandomState(0).randn(400, 2).astype(np.float32), spec)
    repeats = 60
    found = [
        parts_of(Normal(spec), data, seed=seed, parzen={"samples": kernels})["parzen"][0] for seed in range(repeats)
    ]
    spread = np.std([metric.value for metric in found], ddof=1)
    claimed = math.sqrt(np.mean([metric.se_draws**2 for metric in found]))
    # the standard deviation of both: 1 / sqrt(2 (R - 1)), and sqrt(2 / 9) / 2 of a jackknife of ten blocks, / sqrt(R)
    assert claimed / spread == pytest.approx(
        1, abs=4 * math.hypot(1 / math.sqrt(2 * repeats), 0.24 / math.sqrt(repeats))
    )
    assert all(metric.se > metric.se_draws for metric in found)


def test_one_kernel_has_no_spread_and_one_example_no_error_but_that() -> None:
    spec = DataSpec((2,), "real")
    x = np.random.RandomState(0).randn(50, 2).astype(np.float32)
    alone = parts_of(Points(x, spec), dataset(x[1:], spec), parzen={"samples": 1})["parzen"][0]
    assert alone.se_draws is None
    assert alone.se > 0
    few = parts_of(Points(x, spec), dataset(x[1:2] + 0.1, spec), parzen={"samples": 3})["parzen"][0]
    assert few.se is None
    assert few.se_draws > 0


def test_samples_that_are_not_finite_leave_no_parzen_windows() -> None:
    spec = DataSpec((2,), "real")
    x = np.random.RandomState(0).randn(50, 2).astype(np.float32)
    broken = x.copy()
    broken[7, 1] = math.nan
    found = parts_of(Points(broken, spec), dataset(x, spec), parzen={"samples": 50})
    for metric, _ in found.values():
        assert metric.as_dict()["value"] is None
        assert "no sigma of the grid" in (metric.note or "")
    assert "unreliable" in (found["parzen"][0].note or "")


def test_real_data_have_candidates_for_sigma_on_their_own_scale() -> None:
    spec = DataSpec((2,), "real")
    random = np.random.RandomState(0)
    x, samples = ((100 * random.randn(n, 2)).astype(np.float32) for n in (200, 2000))
    found = parts_of(Points(samples, spec), dataset(x, spec), parzen={"samples": 2000})
    assert 5 < found["parzen_sigma"][0].value < 60
    # the entropy of N(0, 100^2 I) in two dimensions, which 2000 kernels nearly reach
    entropy = math.log(2 * math.pi * math.e * 100**2)
    assert abs(found["parzen"][0].value + entropy) < 0.3


def test_kernels_around_noise_are_wider_than_the_data() -> None:
    spec = DataSpec((300,), "real")
    random = np.random.RandomState(0)
    x, samples = (5 * random.randn(n, 300).astype(np.float32) for n in (100, 200))
    found = parts_of(Points(samples, spec), dataset(x, spec), parzen={"samples": 200})
    assert found["parzen_sigma"][0].note is None
    assert 5 < found["parzen_sigma"][0].value < 5 * math.sqrt(2)  # the nearest of the samples count


def test_a_sigma_at_the_end_of_its_grid_is_noted() -> None:
    spec = DataSpec((3,), "real")
    x = np.random.RandomState(0).randn(100, 3).astype(np.float32)
    found = parts_of(Points(x, spec), dataset(x, spec), parzen={"samples": 100})  # a model that knows the examples
    assert found["parzen_sigma"][0].note == "sigma is the smallest of its grid"
    assert "smallest" in (found["parzen"][0].note or "")
    alone = DataSet("alone", spec, {"train": Split(x, None), "valid": Split(x[:0], None), "test": Split(x, None)}, "1")
    with pytest.raises(UserError, match="sigma is chosen on the valid split, and that of alone has no examples"):
        parts_of(Points(x, spec), alone, parzen={"samples": 100})
    assert not parts_of(Points(x, spec), dataset(x, spec), parzen={"samples": 0})
    assert not parts_of(Model(spec), dataset(x, spec), parzen={"samples": 10})


# ---------------------------------------------------------------------- whoever computes it

EVERYTHING = {
    "k": [1, 20],
    "parzen": {"samples": 50},
    "decoder_ais": {"examples": 230, "chains": 2, "temperatures": 4, "leapfrog": 1},
}


class Threads(Ranks):
    """Two processes played by two threads that meet at every exchange."""

    meeting = threading.Barrier(2)
    held: dict[int, dict[int, Tensor]] = {}  # noqa: RUF012

    def gathered(self, parts: dict[int, Tensor]) -> list[Tensor]:
        self.held[self.rank] = parts
        self.meeting.wait(60)
        both = {**self.held[0], **self.held[1]}
        self.meeting.wait(60)
        return [both[number] for number in sorted(both)]


def makers() -> Iterator[tuple[str, Callable[[], Model], DataSet]]:
    spec = DataSpec((2, 2), "discrete", levels=4)
    data = dataset(np.random.RandomState(0).randint(0, 4, (230, 2, 2)).astype(np.uint8), spec)
    yield "vae", lambda: Vae(spec, hidden_sizes=(4,), latent=2), data
    yield "gan", lambda: Gan(spec, hidden_sizes=(4,), latent=2), data
    bits = dataset(np.random.RandomState(0).randint(0, 2, (230, 4)).astype(np.uint8), BITS)
    yield "rbm", lambda: Rbm(BITS, hidden=3, sample_steps=5), bits


@pytest.mark.parametrize(("make", "data"), [pytest.param(make, data, id=name) for name, make, data in makers()])
def test_two_processes_find_what_one_does_and_nothing_else_is_disturbed(
    make: Callable[[], Model], data: DataSet
) -> None:
    torch.manual_seed(3)
    model = make().eval()

    @torch.no_grad()
    def run(ranks: Ranks) -> dict[str, Metric]:
        with torch.no_grad():  # it is set thread by thread
            context = Context(data, PROTOCOL | EVERYTHING, "test", CPU, ranks)
            return {name: metric for part in PARTS for name, metric, _ in part(model, context, lambda text: None)}

    before = torch.get_rng_state()
    weights = [p.clone() for p in model.parameters()]
    alone = run(Ranks())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    found: dict[int, dict[str, Metric]] = {}
    threads = [threading.Thread(target=lambda r=r: found.update({r: run(Threads(r, r, 2))})) for r in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == alone
    assert len(alone) > 5
    assert all(math.isfinite(metric.value) for metric in alone.values())
