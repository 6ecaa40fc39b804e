"""The evaluator against closed forms and hand-computed values."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor, nn

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import CHUNK, Chunks
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.evaluation.likelihood import bounds
from dgmbench.evaluation.likelihood.units import bits_per_dim, nats_per_token
from dgmbench.evaluation.metrics import Metric, protocol_id
from dgmbench.evaluation.sample_distance import energy_distance, pixel_energy_distance
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import Model
from dgmbench.models.gan.gan import Gan
from dgmbench.training.ranks import Ranks

CPU = torch.device("cpu")
PROTOCOL: dict[str, Any] = {"seed": 0, "k": 130, "ais": {"chains": 50, "temperatures": 200}, "max_examples": None}
BINARY = DataSpec((6,), "binary")


def dataset(x: np.ndarray, spec: DataSpec) -> DataSet:
    split = Split(x, None)
    return DataSet("toy", spec, {"train": split, "valid": split, "test": split}, "1" * 64)


def bits(n: int = 250) -> DataSet:
    return dataset(np.random.RandomState(0).randint(0, 2, (n, 6)).astype(np.uint8), BINARY)


def evaluator(data: DataSet, **changes: Any) -> Evaluator:
    return Evaluator(data, PROTOCOL | changes, split="test", rule="best", averaged=False, device=CPU)


class Bernoulli(Model):
    """Independent coins with probability p."""

    def __init__(self, spec: DataSpec, p: float) -> None:
        super().__init__(spec)
        self.p = p

    def log_prob(self, x: Tensor) -> Tensor:
        ones = x.double().flatten(1).sum(1)
        return ones * math.log(self.p) + (self.spec.dim - ones) * math.log(1 - self.p)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return (torch.rand((n, *self.spec.shape), generator=generator) < self.p).to(torch.uint8)


class LinearGaussian(Model):
    """z ~ N(0, 1), x | z ~ N(w z, s^2 I), with q(z | x) a little too wide: everything about it is known."""

    def __init__(self, widen: float = 1.2) -> None:
        super().__init__(DataSpec((2,), "real"))
        self.w, self.s, self.widen = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.7, widen
        self.unused = nn.Parameter(torch.zeros(1))

    def exact(self, x: Tensor) -> Tensor:
        covariance = torch.outer(self.w, self.w) + self.s**2 * torch.eye(2, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)
        return normal.log_prob(x.double())

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        x = x.double()
        variance = 1 / (1 + self.w.square().sum() / self.s**2)
        mean, scale = variance * (x @ self.w) / self.s**2, self.widen * variance.sqrt()
        noise = torch.randn((k, len(x)), generator=generator, dtype=torch.float64)
        z = mean + scale * noise
        log_q = -0.5 * noise.square() - scale.log() - 0.5 * math.log(2 * math.pi)
        log_prior = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        error = (x - z.unsqueeze(-1) * self.w) / self.s
        log_x = -0.5 * error.square().sum(-1) - 2 * math.log(self.s) - math.log(2 * math.pi)
        return log_prior + log_x - log_q

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.log_weights(x, 1, generator=generator)[0]


# ---------------------------------------------------------------------- numbers


def test_mean_and_standard_error() -> None:
    metric = Metric.mean_of(torch.tensor([1.0, 2.0, 3.0, 6.0]), unit="nats", kind="exact", direction="higher")
    assert metric.value == 3.0
    assert metric.se == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert metric.n == 4
    assert Metric.mean_of(torch.ones(1), unit="", kind="exact", direction="none").se is None


def test_a_number_that_is_not_finite_says_why() -> None:
    values = torch.tensor([-1.0, -math.inf, math.nan, -2.0])
    metric = Metric.mean_of(values, unit="nats", kind="exact", direction="higher", note="blurred")
    assert metric.as_dict()["value"] is None
    assert metric.note == "blurred; 2 of 4 values are not finite"
    assert bits_per_dim(metric, 3).note == metric.note
    text = nats_per_token(values, torch.ones(4), "exact")
    assert text.as_dict()["value"] is None
    assert text.note == "2 of 4 values are not finite"
    samples = torch.zeros(5, 2)
    samples[3, 1] = math.inf
    distance = pixel_energy_distance(samples, torch.ones(5, 2), DataSpec((2,), "real"))
    assert distance.as_dict()["value"] is None
    assert distance.note == "1 of 5 samples are not finite"


def test_a_diverged_model_has_a_note_on_each_number_that_is_none() -> None:
    model = Rbm(DataSpec((30,), "binary"), hidden=25)
    with torch.no_grad():
        model.weight[0, 0] = math.inf
    data = dataset(np.random.RandomState(0).randint(0, 2, (20, 30)).astype(np.uint8), model.spec)
    found = evaluator(data, ais={"chains": 3, "temperatures": 5, "burn_in": 2}).measure(model)
    lost = [name for name, (metric, _) in found.items() if metric.as_dict()["value"] is None]
    assert {"log_likelihood_ais", "log_z_ais", "log_z_reverse_ais"} <= set(lost)
    assert [name for name in lost if not found[name][0].note] == []


def test_the_better_of_two_and_never_a_nan() -> None:
    high, low, nan = (Metric(v, "nats", "exact", "higher") for v in (2.0, 1.0, math.nan))
    assert high.better_than(low)
    assert not low.better_than(high)
    assert low.better_than(None)
    assert not nan.better_than(None)
    assert Metric(1.0, "", "estimate", "lower").better_than(Metric(2.0, "", "estimate", "lower"))
    assert nan.as_dict()["value"] is None
    assert not Metric(math.inf, "nats", "exact", "higher").better_than(high)
    assert not Metric(-math.inf, "", "estimate", "lower").better_than(None)


def test_protocol_id_is_a_function_of_the_content() -> None:
    assert protocol_id({"a": 1, "b": 2}) == protocol_id({"b": 2, "a": 1}) != protocol_id({"a": 1, "b": 3})


# ---------------------------------------------------------------------- chunks


def test_each_keeps_order_and_noise_whoever_computes_it() -> None:
    data = bits()

    class Shared(Ranks):
        def gathered(self, parts: dict[int, Tensor]) -> list[Tensor]:
            held.update(parts)
            return [held[number] for number in sorted(held)]

    def value(x: Tensor, generator: Generator) -> Tensor:
        return x.double() @ torch.arange(6.0).double() + torch.rand(len(x), generator=generator)

    alone = Chunks(data, "test", seed=3).each("value", value)
    held: dict[int, Tensor] = {}
    for rank in (1, 0):
        together = Chunks(data, "test", seed=3, ranks=Shared(rank, rank, 2)).each("value", value)
    assert torch.equal(alone, together)
    assert len(alone) == 250
    assert not torch.equal(alone, Chunks(data, "test", seed=4).each("value", value))
    assert not torch.equal(alone, Chunks(data, "test", seed=3).each("another", value))


def test_a_limit_takes_a_random_part_that_is_always_the_same() -> None:
    x = np.arange(1000, dtype=np.float32)[:, None].repeat(2, 1)  # sorted, as some official test sets are
    data = dataset(x, DataSpec((2,), "real"))
    part = torch.cat(list(Chunks(data, "test", seed=0, limit=250)))[:, 0]
    assert len(part) == len(part.unique()) == 250
    # the mean of 250 of 0..999 without replacement: 499.5 +- 288.7 sqrt(0.75 / 250)
    assert abs(float(part.mean()) - 499.5) < 4 * 288.7 * math.sqrt(0.75 / 250)
    assert torch.equal(part, torch.cat(list(Chunks(data, "test", seed=0, limit=250)))[:, 0])
    assert max(len(c) for c in Chunks(data, "test", seed=0, limit=250)) == CHUNK


# ---------------------------------------------------------------------- likelihoods


def test_exact_likelihood_of_coins() -> None:
    data = bits()
    found = evaluator(data).measure(Bernoulli(BINARY, 0.3))
    ones = data.splits["test"].x.sum(1)
    expected = ones * math.log(0.3) + (6 - ones) * math.log(0.7)
    metric, protocol = found["log_likelihood"]
    assert metric.value == pytest.approx(expected.mean())
    assert metric.se == pytest.approx(expected.std(ddof=1) / math.sqrt(250))
    assert metric.kind == "exact"
    assert found["log_likelihood_bits_per_dim"][0].value == pytest.approx(-expected.mean() / 6 / math.log(2))
    assert found["log_likelihood_bits_per_dim"][0].protocol_id == metric.protocol_id == protocol_id(protocol)
    assert protocol["data_hash"] == data.content_hash


def test_bounds_of_a_linear_gaussian_lie_where_they_should() -> None:
    model = LinearGaussian()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((3000, 1), generator=generator, dtype=torch.float64)
    x = (z * model.w + model.s * torch.randn((3000, 2), generator=generator, dtype=torch.float64)).float()
    data = dataset(x.numpy(), model.spec)
    chunks = Chunks(data, "test", seed=0)
    exact = chunks.each("exact", lambda x, _: model.exact(x))
    values = {k: bounds.importance_weighted_bounds(model, chunks, [k])[k].values for k in (1, 5, 130)}
    elbo = bounds.elbo(model, chunks).values
    # closed form: the ELBO's gap is KL(q || p(z|x)), the same for every x because only the width differs
    gap = 0.5 * (1.2**2 - 1) - math.log(1.2)

    def mean_and_error(differences: Tensor) -> tuple[float, float]:
        return float(differences.mean()), float(differences.std() / math.sqrt(len(differences)))

    for found in (elbo, values[1]):
        mean, error = mean_and_error(exact - found)
        assert abs(mean - gap) < 4 * error
    gaps = [mean_and_error(exact - values[k]) for k in (1, 5, 130)]
    assert gaps[0][0] > gaps[1][0] > gaps[2][0]
    # for large k the gap is Var(w) / (2 k); with p / q a ratio of Gaussians, E w^2 = c / sqrt(2 - 1 / c^2)
    variance = 1.2 / math.sqrt(2 - 1 / 1.2**2) - 1
    assert abs(gaps[2][0] - variance / (2 * 130)) < 4 * gaps[2][1]


def test_at_the_true_posterior_every_weight_is_the_evidence() -> None:
    model = LinearGaussian(widen=1.0)
    data = dataset(np.random.RandomState(1).randn(150, 2).astype(np.float32), model.spec)
    found = {name: metric for name, (metric, _) in evaluator(data, k=[1, 7]).measure(model).items()}
    exact = float(model.exact(torch.from_numpy(data.splits["test"].x)).mean())
    for name in ("elbo", "iw_bound_k1", "iw_bound_k7"):
        assert found[name].value == pytest.approx(exact, abs=1e-9)
        assert found[name].se_draws < 1e-9


def test_a_limit_reads_no_other_rows() -> None:
    class Watched(np.ndarray):
        read = 0

        def __getitem__(self, key: Any) -> Any:
            found = super().__getitem__(key)
            Watched.read += len(found)
            return np.asarray(found)

    data = dataset(np.arange(2000, dtype=np.float32)[:, None].view(Watched), DataSpec((1,), "real"))
    chosen = torch.cat(list(Chunks(data, "test", seed=0, limit=130)))
    assert Watched.read == len(chosen) == len(chosen.unique()) == 130


def test_importance_bound_in_blocks_is_the_log_mean_of_all_weights() -> None:
    class Counting(Model):
        """The i-th weight drawn is log(i), so that the bound is log((k + 1) / 2)."""

        def __init__(self) -> None:
            super().__init__(DataSpec((2,), "real"))
            self.drawn = 0

        def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
            first, self.drawn = self.drawn, self.drawn + k
            return torch.arange(first + 1, first + k + 1).double().log().unsqueeze(1).expand(k, len(x))

    data = dataset(np.zeros((3, 2), np.float32), DataSpec((2,), "real"))
    found = bounds.importance_weighted_bounds(Counting(), Chunks(data, "test", seed=0), [3000])
    torch.testing.assert_close(found[3000].values, torch.full((3,), math.log(3001 / 2), dtype=torch.float64))


def test_rbm_by_enumeration_and_from_both_sides() -> None:
    torch.manual_seed(0)
    rbm = Rbm(BINARY, hidden=4)
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_(0, 0.7)
    data = bits()
    found = {name: metric for name, (metric, _) in evaluator(data).measure(rbm).items()}
    states = torch.tensor([[int(b) for b in f"{i:06b}"] for i in range(64)], dtype=torch.uint8)
    with torch.no_grad():
        log_z = float(rbm.log_prob_unnormalised(states).double().logsumexp(0))
        expected = float(rbm.log_prob_unnormalised(torch.from_numpy(data.splits["test"].x)).double().mean()) - log_z
    assert found["log_likelihood"].value == pytest.approx(expected, abs=1e-5)
    assert found["log_likelihood"].kind == "exact"
    for side in ("ais", "reverse_ais"):
        z = found[f"log_z_{side}"]
        assert z.se is not None
        assert abs(z.value - log_z) < 4 * z.se + 1e-6
        assert found[f"log_likelihood_{side}"].kind == "estimate"
        assert found[f"log_likelihood_{side}"].value == pytest.approx(expected + log_z - z.value, abs=1e-5)
    assert found["log_z_gap"].value == pytest.approx(found["log_z_reverse_ais"].value - found["log_z_ais"].value)


def test_measuring_neither_depends_on_nor_moves_the_global_generator() -> None:
    model = LinearGaussian()
    data = dataset(np.random.RandomState(1).randn(150, 2).astype(np.float32), model.spec)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = evaluator(data).measure(model)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert evaluator(data).measure(model) == first
    assert evaluator(data, seed=1).measure(model)["elbo"][0].value != first["elbo"][0].value


def test_the_objective_is_the_strongest_statement_that_the_model_can_make() -> None:
    gaussian = LinearGaussian()
    real = dataset(np.random.RandomState(1).randn(150, 2).astype(np.float32), gaussian.spec)
    assert validation_objective(Bernoulli(BINARY, 0.3), bits(), device=CPU)[0] == "log_likelihood"
    assert validation_objective(gaussian, real, device=CPU)[0] == "elbo"
    assert validation_objective(Rbm(BINARY, hidden=3), bits(), device=CPU)[0] == "log_likelihood"  # by enumeration
    wide = DataSpec((24,), "binary")
    many = dataset(np.random.RandomState(0).randint(0, 2, (50, 24)).astype(np.uint8), wide)
    assert validation_objective(Rbm(wide, hidden=21), many, device=CPU)[0] == "log_likelihood_ais"

    class Sampler(Bernoulli):
        log_prob = None  # type: ignore[assignment]

    name, metric = validation_objective(Sampler(BINARY, 0.5), bits(), device=CPU)
    assert (name, metric.direction) == ("energy_distance", "lower")
    with pytest.raises(UserError, match="nothing to validate it by"):
        validation_objective(Model(BINARY), bits(), device=CPU)


def test_the_objective_of_few_examples_is_that_of_these() -> None:
    data, model = bits(), Bernoulli(BINARY, 0.3)
    few = torch.cat(list(Chunks(data, "valid", seed=0, limit=20)))
    metric = validation_objective(model, data, device=CPU, limit=20)[1]
    assert metric.n == 20 < data.size("valid")
    assert metric.value == pytest.approx(float(model.log_prob(few).mean()))


# ---------------------------------------------------------------------- samples


def test_samples_that_are_nan_are_no_level_and_have_no_distance() -> None:
    torch.manual_seed(0)
    gan = Gan(DataSpec((6,), "discrete", levels=4), latent=2, hidden_sizes=(4,))
    with torch.no_grad():
        next(gan.generator.parameters()).fill_(math.nan)
    x = np.random.RandomState(0).randint(0, 4, (50, 6)).astype(np.uint8)
    data = dataset(x, gan.spec)
    found = {name: metric for name, (metric, _) in evaluator(data).measure(gan).items()}
    assert found["energy_distance"].as_dict()["value"] is None
    assert "NaN" in found["energy_distance"].note
    name, objective = validation_objective(gan, data, device=CPU)
    assert name == "energy_distance"
    assert not objective.better_than(None)


def test_energy_distance_of_two_points_and_of_two_gaussians() -> None:
    a, b = torch.zeros((5, 3)), torch.full((4, 3), 2.0)
    assert float(energy_distance(a, b).value) == pytest.approx(2 * math.sqrt(12))
    # N(0, 1) against N(m, 1): E|A - B| = 2 s phi(m / s) + m (2 Phi(m / s) - 1) with s = sqrt(2)
    m, s, n = 1.5, math.sqrt(2), 2000
    phi = math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi)
    between = 2 * s * phi + m * math.erf(m / s / math.sqrt(2))
    exact = 2 * between - 2 * (2 / math.sqrt(math.pi))
    values = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn((n, 1), generator=generator, dtype=torch.float64) for _ in range(2))
        values.append(float(energy_distance(x, y + m).value))
    error = np.std(values, ddof=1) / math.sqrt(8)
    assert abs(np.mean(values) - exact) < 4 * error


def test_energy_distance_is_unbiased_at_zero() -> None:
    values = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        values.append(float(energy_distance(*(torch.randn((30, 4), generator=generator) for _ in range(2))).value))
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / math.sqrt(40)


@pytest.mark.parametrize("same_examples", [False, True])
@pytest.mark.parametrize("shift", [1.5, 0.3])
def test_errors_of_the_energy_distance_are_the_spread_of_repeated_draws(shift: float, same_examples: bool) -> None:
    repeats = 400
    generator = torch.Generator().manual_seed(1)
    value, se, se_draws = [], [], []
    fixed = torch.randn((40, 3), generator=generator, dtype=torch.float64)
    for _ in range(repeats):
        a = shift + torch.randn((60, 3), generator=generator, dtype=torch.float64)
        b = fixed if same_examples else torch.randn((40, 3), generator=generator, dtype=torch.float64)
        found = energy_distance(a, b)
        value.append(float(found.value))
        se.append(float(found.se))
        se_draws.append(float(found.se_draws))
    spread = np.std(value, ddof=1)
    claimed = math.sqrt(np.mean(np.square(se_draws if same_examples else se)))
    assert claimed / spread == pytest.approx(1, abs=4 / math.sqrt(2 * repeats))


def test_at_equality_the_error_of_the_energy_distance_is_that_of_pairs() -> None:
    # many dimensions of like importance: there the estimate of the vanishing first order is close to its expectation
    repeats, n, m = 300, 80, 50
    generator = torch.Generator().manual_seed(2)
    sets = [[torch.randn((k, 40), generator=generator, dtype=torch.float64) for k in (n, m)] for _ in range(repeats)]
    found = [energy_distance(a, b) for a, b in sets]
    spread = np.std([float(each.value) for each in found], ddof=1)
    claimed = math.sqrt(np.mean([float(each.se) ** 2 for each in found]))
    # E g^2, the squared distance variance of the normal distribution, by U-centred distances of one large set
    big = torch.cdist(*[torch.randn((1500, 40), generator=generator, dtype=torch.float64)] * 2)
    rows = big.sum(1) / 1498
    g = (big - rows[:, None] - rows + big.sum() / (1499 * 1498)).fill_diagonal_(0.0)
    second = float(g.square().sum()) / (1500 * 1497)
    exact = math.sqrt(second * (4 / (n * m) + 2 / n**2 + 2 / m**2))
    noise = 1 / math.sqrt(2 * repeats)
    assert spread / exact == pytest.approx(1, abs=0.03 + 4 * noise)
    # never less, and at most what counts the pairs twice
    assert min(float(each.se) for each in found) > 0.9 * exact
    assert 0.97 < claimed / exact < math.sqrt(2)
    # the first order alone falls as 1 / sqrt(n), this as 1 / n
    halves = math.sqrt(np.mean([float(energy_distance(a[: n // 2], b[: m // 2]).se) ** 2 for a, b in sets]))
    assert halves / claimed == pytest.approx(2, rel=0.1)


def test_energy_distance_notices_collapse_and_noise() -> None:
    spec = DataSpec((1, 8, 8), "discrete", levels=17)
    x = torch.from_numpy(load_digits().images.astype(np.uint8)[:, None])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    data, fresh = x[order[:500]], x[order[500:1000]]
    collapsed = fresh[:3].repeat(167, 1, 1, 1)[:500]
    noise = torch.randint(0, 17, data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one_class_less = fresh[fresh.flatten(1).float().mean(1) > fresh.flatten(1).float().mean(1).median()]
    good, less, few, bad = (
        pixel_energy_distance(s, data, spec).value for s in (fresh, one_class_less, collapsed, noise)
    )
    assert good < less < few < bad
