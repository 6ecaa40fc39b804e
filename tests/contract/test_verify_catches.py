"""Each check of ``verify`` passes right models and fails one that is broken in just the way that it is there for."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Generator, Tensor, nn

from dgmbench.config.cards import read_cards
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.nn.bijections import Bijection, Chain, Mapped
from dgmbench.verify import Check, density, verify_config, verify_model
from dgmbench.verify.check import chi_squared, symmetry
from dgmbench.verify.subject import Subject

from . import toys

RIGHT = {
    toys.Bernoullis: "exact",
    toys.Autoregressive: "exact",
    toys.Completing: "exact",
    toys.Labelled: "exact",
    toys.LinearGaussian: "exact",
    toys.GaussianFlow: "exact",
    toys.Mixture: "lower bound",
    toys.LabelledMixture: "lower bound",
    toys.Boltzmann: "AIS estimate",
    toys.Adversaries: "none",
}


@cache
def table(model: Callable[[], Model], likelihood: str) -> list[Check]:
    return verify_model(model, model().spec, likelihood)


def failures(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks if check.passed is False}


@pytest.mark.parametrize("model", RIGHT, ids=lambda model: model.__name__)
def test_right_models_pass_every_check(model: Callable[[], Model]) -> None:
    checks = table(model, RIGHT[model])
    assert not failures(checks)
    assert [check for check in checks if check.passed is None] == []
    assert len({check.name for check in checks}) == len(checks)


def test_the_table_is_repeatable_and_leaves_the_callers_random_state_alone() -> None:
    before = torch.get_rng_state()
    parts: list[str] = []
    first = verify_model(toys.Mixture, toys.BINARY, "lower bound", seed=3, progress=parts.append)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    mathematics = ["density", "bijection", "given", "bounds", "conditional", "decoder", "undirected"]
    assert parts == ["contract", "training", "statistics", *mathematics]
    torch.rand(1)
    assert verify_model(toys.Mixture, toys.BINARY, "lower bound", seed=3) == first


# --- densities ------------------------------------------------------------------------------------------------------


class SumsToTooMuch(toys.Bernoullis):
    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x) + math.log(1.1)


class DoubleSigmoid(toys.Bernoullis):
    """Still sums to 1, but samples something else."""

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        p = self.logits.sigmoid().sigmoid().expand(n, -1)
        return torch.bernoulli(p, generator=generator).to(self.spec.dtype).reshape(n, *self.spec.shape)


class LeakingMask(toys.Autoregressive):
    def mask(self) -> Tensor:
        return (self.order[:, None] >= self.order).to(self.weight.dtype)


class OrderIsNone(toys.Autoregressive):
    def ordering(self) -> Tensor:
        return torch.zeros_like(self.order)


class SeesItsBatch(toys.Bernoullis):
    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x) + 0.01 * (x.float().mean() - 0.5)


class PlaneWithoutLogDet(toys.LinearGaussian):
    """Forgets the Jacobian of a scaling."""

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(1.02 * x.float())


class Ridge(toys.GaussianFlow):
    """A Gaussian of deviation 1 along one direction and ``width`` across it, and ``excess`` nats too much."""

    def __init__(self, width: float, excess: float = 0.0) -> None:
        super().__init__()
        turn = torch.tensor([[math.cos(0.5), math.sin(0.5)], [-math.sin(0.5), math.cos(0.5)]])
        self.turn, self.scale, self.excess = turn.double(), torch.tensor([1.0, width]).double(), excess

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x.double() @ self.turn.T) / self.scale
        return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - self.scale.log()).sum(1) + self.excess

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        z = torch.randn(n, 2, generator=generator).double() * self.scale
        return z @ self.turn


@pytest.mark.parametrize(
    ("width", "excess", "points", "verdict"),
    [
        (1, 0, 150, True),
        (0.02, 0, 400, True),
        (0.012, 0, 800, True),
        (0.012, 0.01, 1600, False),
        (0.0005, 0, 0, None),
    ],
)
def test_a_narrow_density_is_summed_on_a_finer_grid(
    width: float, excess: float, points: int, verdict: bool | None
) -> None:
    subject = Subject(lambda: Ridge(width, excess), toys.PLANE, "exact")
    with torch.random.fork_rng(devices=[]):
        checks = list(density.checks(subject, subject.model()))
    names = ["probabilities sum to 1", "samples follow the probabilities"]
    assert [check.name for check in checks] == names
    assert checks[0].passed is verdict
    if verdict is None:
        assert checks[1].passed is None
        assert "too narrow for a grid" in checks[0].note
    else:
        assert f"{points**2} points" in checks[0].note
        assert verdict is False or checks[1].passed


class TwoRidges(Ridge):
    """Two parallel ones, so that the middle of the samples, where a grid has its own, lies on neither."""

    def log_prob(self, x: Tensor) -> Tensor:
        one, other = (Ridge.log_prob(self, x + side * self.turn[1]) for side in (-1, 1))
        return torch.logaddexp(one, other) - math.log(2)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        side = 2 * torch.randint(2, (n, 1), generator=generator) - 1
        return super().sample(n, generator=generator) + side * self.turn[1]


@pytest.mark.parametrize("kind", [Ridge, TwoRidges])
def test_grids_that_all_miss_a_density_decide_nothing(kind: type[Ridge], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over points that all miss it agree: all are 0."""
    monkeypatch.setattr(density, "FINER", {2: (160, 170)})
    subject = Subject(lambda: kind(1e-9), toys.PLANE, "exact")
    with torch.random.fork_rng(devices=[]):
        checks = list(density.checks(subject, subject.model()))
    assert [check.passed for check in checks] == [None, None]


# --- flows ----------------------------------------------------------------------------------------------------------


class Faulty(toys.GaussianFlow):
    """A right flow with a faulty bijection before it."""

    kind: type[Bijection]

    def __init__(self, spec: DataSpec = toys.PLANE) -> None:
        super().__init__(spec)
        self.bijection = Chain([self.kind(), self.bijection])


def constant(x: Tensor, value: float) -> Tensor:
    return x.new_full((len(x),), value)


class SignsCancel(Faulty):
    """Both ways have the wrong sign: their sum is 0, and every round trip is right."""

    class kind(Bijection):
        def forward(self, x: Tensor) -> Mapped:
            return 2 * x, constant(x, -2 * math.log(2))

        def inverse(self, z: Tensor) -> Mapped:
            return z / 2, constant(z, 2 * math.log(2))


class WrongConstant(Faulty):
    """Says log 256 a dimension for levels that were scaled by 255; the other way agrees with it."""

    class kind(Bijection):
        def forward(self, x: Tensor) -> Mapped:
            return x / 255, constant(x, -2 * math.log(256))

        def inverse(self, z: Tensor) -> Mapped:
            return 255 * z, constant(z, 2 * math.log(256))


class ForgetsItsScale(Faulty):
    class kind(Bijection):
        def forward(self, x: Tensor) -> Mapped:
            return 1.01 * x, constant(x, 0.0)

        def inverse(self, z: Tensor) -> Mapped:
            return z / 1.01, constant(z, 0.0)


class ReturnsTheForwardSign(Faulty):
    """The inverse returns the log-determinant of ``forward``."""

    class kind(Bijection):
        def forward(self, x: Tensor) -> Mapped:
            return 2 * x, constant(x, 2 * math.log(2))

        def inverse(self, z: Tensor) -> Mapped:
            return z / 2, constant(z, 2 * math.log(2))


class OtherInverse(Faulty):
    """Right in its density; samples are of another distribution."""

    class kind(Bijection):
        def forward(self, x: Tensor) -> Mapped:
            return x + torch.tensor([0.0, 0.1]) * x[:, :1].sin(), constant(x, 0.0)

        def inverse(self, z: Tensor) -> Mapped:
            return z, constant(z, 0.0)


class NotOnto(Faulty):
    """Its values end at +-1, so that noise beyond has no data: all else about it is right."""

    class kind(Bijection):
        def forward(self, x: Tensor) -> Mapped:
            return x.tanh(), (1 - x.tanh() ** 2).log().sum(1)

        def inverse(self, z: Tensor) -> Mapped:
            x = z.clamp(-1 + 1e-9, 1 - 1e-9).atanh()
            return x, -(1 - x.tanh() ** 2).log().sum(1)


# --- bounds ---------------------------------------------------------------------------------------------------------


class ElboAboveTheTruth(toys.LinearGaussian):
    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return super().elbo(x, generator=generator) + 0.5


class WeightsTooLarge(toys.Mixture):
    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        return super().log_weights(x, k, generator=generator) + 0.03


class OneDrawForAll(toys.Mixture):
    """Divides by k twice, as when the weights come averaged already."""

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Tensor:
        return super().log_weights(x, k, generator=generator) - math.log(k)


class OnlyElboAboveTheTruth(Model):
    """No weights to compare with: only the sum over x and the samples tell."""

    def __init__(self, spec: DataSpec = toys.BINARY) -> None:
        super().__init__(spec)
        self.inner = toys.Mixture(spec)

    def elbo(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.inner.elbo(x, generator=generator) + 0.7

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.inner.sample(n, y, generator=generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return self.inner.loss(player, batch, generator)


class SamplesAnotherPrior(toys.Mixture):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        z = torch.bernoulli(torch.full((n,), 0.5), generator=generator).long()
        return torch.bernoulli(self.logits[z].sigmoid(), generator=generator).to(torch.uint8).reshape(n, 1, 2, 2)


# --- labels and known parts -----------------------------------------------------------------------------------------


class PriorOfCounts(toys.Labelled):
    """Keeps the counts' logarithms and forgets to divide by their sum."""

    def initialise(self, batch: Batch, generator: Generator) -> None:
        super().initialise(batch, generator)
        self.class_log_prior += math.log(2)


class ClassSumsToTooMuch(toys.Labelled):
    """The classes' masses are wrong, and the marginal's is right."""

    def given(self, x: Tensor, y: Tensor) -> Tensor:
        tilt = torch.tensor([0.1, -0.1, 0.0]).to(self.class_log_prior)
        return super().given(x, y) + tilt[y] - self.class_log_prior[y] - math.log(3)


class ForgetsTheLabel(toys.Labelled):
    """Samples the marginal whatever the label, which the marginal's own check cannot see."""

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return super().sample(n, None, generator=generator)


class MarginalOfEqualClasses(toys.Labelled):
    """Sums to 1, but takes no notice of how frequent the classes are."""

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if y is not None:
            return self.given(x, y)
        each = [self.given(x, torch.full((len(x),), label)) for label in range(3)]
        return torch.stack(each).logsumexp(0) - math.log(3)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        self.class_log_prior.copy_(torch.tensor([0.7, 0.2, 0.1]).log())


class ClassWeightsTooLarge(toys.LabelledMixture):
    def log_weights(self, x: Tensor, k: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return super().log_weights(x, k, y, generator=generator) + (0.0 if y is None else 0.05)


class MixtureForgetsTheLabel(toys.LabelledMixture):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return super().sample(n, None, generator=generator)


class RedrawsEverything(toys.Completing):
    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.sample(len(x), generator=generator)


class CompletesByCoins(toys.Completing):
    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        coins = torch.bernoulli(torch.full(x.shape, 0.5), generator=generator).to(x.dtype)
        return torch.where(known, x, coins)


class CompletesIgnoringTheKnown(toys.Completing):
    """Right where nothing is known; else the drawn part knows nothing of the known part."""

    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        return torch.where(known, x, self.sample(len(x), generator=generator))


class ChainForgetsTheKnown(toys.Boltzmann):
    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        return torch.where(known, x, super().annealing_path().sample_base(len(x), generator=generator).to(x.dtype))


# --- undirected models ----------------------------------------------------------------------------------------------


class ChainDrifts(toys.Boltzmann):
    def transition(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        v = self.annealing_path().transition(x.flatten(1), 0.8, generator=generator)
        return v.reshape(x.shape)


class WrongPath(toys.Boltzmann):
    kind: type[toys.BoltzmannPath]

    def annealing_path(self) -> toys.BoltzmannPath:
        right = super().annealing_path()
        return self.kind(right.coupling, right.bias)


class WrongPartition(WrongPath):
    class kind(toys.BoltzmannPath):
        def exact_log_partition(self) -> Tensor | None:
            return super().exact_log_partition() + 1.0  # type: ignore[operator]


class WrongBase(WrongPath):
    class kind(toys.BoltzmannPath):
        def log_base_partition(self) -> Tensor:
            return super().log_base_partition() + 0.5


class WrongBaseSamples(WrongPath):
    class kind(toys.BoltzmannPath):
        def sample_base(self, n: int, *, generator: Generator | None = None) -> Tensor:
            return torch.bernoulli(torch.full((n, len(self.bias)), 0.6, dtype=torch.float64), generator=generator)


class StepIgnoresBeta(WrongPath):
    class kind(toys.BoltzmannPath):
        def transition(self, v: Tensor, beta: float, *, generator: Generator | None = None) -> Tensor:
            return super().transition(v, 1.0, generator=generator)


class SweepIsNotReversible(WrongPath):
    """A Gibbs sweep in a fixed order leaves p_beta unchanged, but is not reversible."""

    class kind(toys.BoltzmannPath):
        def transition(self, v: Tensor, beta: float, *, generator: Generator | None = None) -> Tensor:
            v = v.clone()
            for i in range(len(self.bias)):
                field = beta * (v.double() @ self.coupling + self.bias)[:, i]
                v[:, i] = torch.bernoulli(field.sigmoid(), generator=generator).to(v.dtype)
            return v


class UnnormalisedElboTooHigh(toys.Boltzmann):
    def elbo_unnormalised(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return self.log_prob_unnormalised(x) + 0.05


class SamplesTheBase(toys.Boltzmann):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.annealing_path().sample_base(n, generator=generator).to(torch.uint8)


# --- the training contract ------------------------------------------------------------------------------------------


class LossCounts(toys.Bernoullis):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        self.seen += 1
        return super().loss(player, batch, generator)


class LossCallsBackward(toys.Bernoullis):
    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        loss, logs = super().loss(player, batch, generator)
        loss.backward(retain_graph=True)
        return loss, logs


class LossRemembers(toys.Bernoullis):
    calls = 0

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        self.calls += 1
        return super().loss(player, batch, generator)[0] * (1 + 0.1 * (self.calls % 2)), {}


class LossDrawsGlobally(toys.Bernoullis):
    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return super().loss(player, batch, generator)[0] + torch.rand(()) * self.logits.sum(), {}


class LossIsNan(toys.Bernoullis):
    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return super().loss(player, batch, generator)[0] * torch.nan, {}


class NoGradient(toys.Bernoullis):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))


class NoPlayer(toys.Bernoullis):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"model": [self.logits]}


class NeverItsTurn(toys.Adversaries):
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("train", ("critic",)),)

    def turn(self, step: int, stage: object) -> tuple[str, ...]:
        return ("critic",)


class StepMovesTheOther(toys.Adversaries):
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        self.shift.clamp_(-0.1, 0.1)


class NeedsTheOthersGradient(toys.Adversaries):
    """Its own gradient changes when the other player is frozen."""

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        loss, logs = super().loss(player, batch, generator)
        return (loss + self.slope.sum() if self.shift.requires_grad and player == "critic" else loss), logs


class StateOutsideBuffers(toys.Bernoullis):
    """Its loss depends on a running mean that no checkpoint holds."""

    mean = 0.0

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return super().loss(player, batch, generator)[0] * (1 + self.mean), {}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        self.mean += 0.1 * (float(batch.x.float().mean()) - self.mean)


class UnsavedOrder(toys.Autoregressive):
    def __init__(self) -> None:
        super().__init__(DataSpec((9,), "binary"))
        self.register_buffer("order", self.order, persistent=False)


# --- samples and other outputs --------------------------------------------------------------------------------------


class SamplesGlobally(toys.Bernoullis):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return super().sample(n)


class SamplesFloats(toys.Bernoullis):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return super().sample(n, generator=generator).float()


class SampleMovesTheChains(toys.Boltzmann):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        self.chains.fill_(1)
        return super().sample(n, generator=generator)


class DecodesBeyondTheData(toys.Bernoullis):
    """Codes are the bits; what comes back is on another scale."""

    def encode(self, x: Tensor) -> Tensor:
        return x.float().flatten(1)

    def decode(self, code: Tensor) -> Tensor:
        return (2 * code - 1).reshape(-1, *self.spec.shape)


class ScalarLogProb(toys.Bernoullis):
    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x)[:, None]

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.log_prob(batch.x).mean(), {}


class NoLikelihood(toys.Adversaries):
    """Its card will say that it has one."""


class Raises(toys.Bernoullis):
    def log_prob(self, x: Tensor) -> Tensor:
        if not self.training:
            raise ValueError("not today")
        return super().log_prob(x)


# --- decoders -------------------------------------------------------------------------------------------------------


class ConditionalSumsToTooMuch(toys.Mixture):
    def log_prob_given(self, x: Tensor, noise: Tensor) -> Tensor:
        return super().log_prob_given(x, noise) + 0.01


class DrawsAnotherConditional(toys.Mixture):
    def sample_given(self, noise: Tensor, *, generator: Generator | None = None) -> Tensor:
        return super().sample_given(-noise, generator=generator)


class DecodesAnotherPrior(toys.Mixture):
    """As a subclass would that changes the prior and inherits the decoder."""

    def of_noise(self, noise: Tensor) -> Tensor:
        return (torch.special.ndtr(noise[:, 0]) < (self.prior + 1.5).sigmoid()).long()


class GeneratesTooWide(toys.Adversaries):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.generate(1.2 * torch.randn(n, self.spec.dim, generator=generator)).to(self.spec.dtype)


BROKEN: list[tuple[type[Model], str, str]] = [
    (SumsToTooMuch, "exact", "probabilities sum to 1"),
    (DoubleSigmoid, "exact", "samples follow the probabilities"),
    (PlaneWithoutLogDet, "exact", "probabilities sum to 1"),
    (LeakingMask, "exact", "conditionals see earlier dimensions only"),
    (OrderIsNone, "exact", "the order is a permutation"),
    (SeesItsBatch, "exact", "examples do not see their batch"),
    (SignsCancel, "exact", "log|det| is that of the Jacobian"),
    (WrongConstant, "exact", "log|det| is that of the Jacobian"),
    (ForgetsItsScale, "exact", "log|det| is that of the Jacobian"),
    (OtherInverse, "exact", "data come back from noise"),
    (NotOnto, "exact", "noise comes back from data"),
    (ReturnsTheForwardSign, "exact", "log-determinants of both ways are opposite"),
    (ElboAboveTheTruth, "exact", "the ELBO is the mean log-weight"),
    (ElboAboveTheTruth, "exact", "bounds lie below log p(x)"),
    (WeightsTooLarge, "lower bound", "mean weights sum to 1 over x"),
    (OneDrawForAll, "lower bound", "the bound grows with k"),
    (OnlyElboAboveTheTruth, "lower bound", "exp(ELBO) sums to at most 1 over x"),
    (OnlyElboAboveTheTruth, "lower bound", "the ELBO lies below sample frequencies"),
    (SamplesAnotherPrior, "lower bound", "samples follow the weights"),
    (PriorOfCounts, "exact", "class prior sums to 1"),
    (ClassSumsToTooMuch, "exact", "given a class, probabilities sum to 1"),
    (ForgetsTheLabel, "exact", "given a class, samples follow the probabilities"),
    (MarginalOfEqualClasses, "exact", "the marginal is the mixture of the classes"),
    (ClassWeightsTooLarge, "lower bound", "given a class, mean weights sum to 1 over x"),
    (ClassWeightsTooLarge, "lower bound", "the marginal is the mixture of the classes"),
    (MixtureForgetsTheLabel, "lower bound", "given a class, samples follow the weights"),
    (RedrawsEverything, "exact", "completions keep what is known"),
    (RedrawsEverything, "exact", "nothing unknown, nothing drawn"),
    (CompletesByCoins, "exact", "completions of nothing follow the model"),
    (CompletesIgnoringTheKnown, "exact", "completions of a beginning follow the model"),
    (ChainForgetsTheKnown, "AIS estimate", "completions of nothing follow the model"),
    (ConditionalSumsToTooMuch, "lower bound", "p(x | noise) sums to 1"),
    (DrawsAnotherConditional, "lower bound", "draws given noise follow p(x | noise)"),
    (DecodesAnotherPrior, "lower bound", "samples follow the mean of p(x | noise)"),
    (GeneratesTooWide, "none", "generated values are distributed as samples"),
    (ChainDrifts, "AIS estimate", "the chain leaves p(x) unchanged"),
    (WrongPartition, "AIS estimate", "log Z by enumerating x"),
    (WrongPartition, "AIS estimate", "log Z of the path's end"),
    (WrongPartition, "AIS estimate", "log Z inside the AIS bracket"),
    (WrongBase, "AIS estimate", "log Z of the path's base"),
    (WrongBaseSamples, "AIS estimate", "the path's base samples are exact"),
    (StepIgnoresBeta, "AIS estimate", "the path's step leaves p_beta unchanged"),
    (SweepIsNotReversible, "AIS estimate", "the path's step is reversible"),
    (UnnormalisedElboTooHigh, "AIS estimate", "exp(ELBO) sums to at most 1 over x"),
    (SamplesTheBase, "AIS estimate", "samples are near p(x)"),
    (LossCounts, "exact", "loss changes no state"),
    (LossCallsBackward, "exact", "loss changes no state"),
    (LossRemembers, "exact", "equal generators give equal losses"),
    (LossDrawsGlobally, "exact", "loss draws from its generator only"),
    (LossIsNan, "exact", "losses are finite scalars"),
    (NoGradient, "exact", "gradients reach every parameter"),
    (NoPlayer, "exact", "every parameter has a player"),
    (NeverItsTurn, "none", "training moves every player"),
    (NeverItsTurn, "none", "losses are finite scalars"),
    (StepMovesTheOther, "none", "a step changes its own player only"),
    (NeedsTheOthersGradient, "none", "a player's gradients stand alone"),
    (StateOutsideBuffers, "exact", "resumed training equals uninterrupted"),
    (UnsavedOrder, "exact", "a loaded state gives the same outputs"),
    (SamplesGlobally, "exact", "equal generators give equal draws"),
    (SamplesGlobally, "exact", "draws leave the default generator alone"),
    (SamplesFloats, "exact", "samples lie in the data space"),
    (SampleMovesTheChains, "AIS estimate", "evaluation changes no state"),
    (ScalarLogProb, "exact", "outputs have the stated form"),
    (DecodesBeyondTheData, "exact", "outputs have the stated form"),
    (NoLikelihood, "exact", "stated likelihood has its method"),
    (Raises, "exact", "density can be checked"),
]


@pytest.mark.parametrize(
    ("model", "likelihood", "name"), BROKEN, ids=lambda value: value.__name__ if isinstance(value, type) else None
)
def test_a_broken_model_fails(model: type[Model], likelihood: str, name: str) -> None:
    assert name in failures(table(model, likelihood))  # type: ignore[arg-type]


def test_every_check_has_a_model_that_fails_it() -> None:
    """A check that nothing fails proves nothing."""
    names = {check.name for model, kind in RIGHT.items() for check in table(model, kind)}
    assert names - {name for _, _, name in BROKEN} == set()


@pytest.mark.parametrize("model", [SignsCancel, WrongConstant, ForgetsItsScale])
def test_a_wrong_log_determinant_passes_every_round_trip(model: type[Model]) -> None:
    """Only the Jacobian tells: the other lines of the part pass."""
    checks = {check.name: check.passed for check in table(model, "exact")}
    assert checks["log|det| is that of the Jacobian"] is False
    assert checks["data come back from noise"] is True
    assert checks["noise comes back from data"] is True
    assert checks["log-determinants of both ways are opposite"] is True


def test_a_map_that_is_not_onto_passes_all_but_the_way_from_noise() -> None:
    checks = {check.name: check.passed for check in table(NotOnto, "exact")}
    assert checks["log|det| is that of the Jacobian"] is True
    assert checks["data come back from noise"] is True
    assert checks["noise comes back from data"] is False


class Estimated(Faulty):
    """A log-determinant that misses the truth by what it states."""

    class kind(Bijection):
        error = 0.01

        def forward(self, x: Tensor) -> Mapped:
            return 2 * x, constant(x, 2 * math.log(2) + 0.009)

        def inverse(self, z: Tensor) -> Mapped:
            return z / 2, constant(z, -2 * math.log(2) + 0.009)

        @property
        def log_det_error(self) -> float:
            return self.error


@pytest.mark.parametrize(("error", "passed"), [(0.01, True), (0.008, False), (math.inf, None)])
def test_a_stated_error_of_the_log_determinant_is_allowed(
    error: float, passed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Estimated.kind, "error", error)
    checks = {check.name: check for check in verify_model(Estimated, toys.PLANE, "exact")}
    assert checks["log|det| is that of the Jacobian"].passed is passed
    assert checks["log-determinants of both ways are opposite"].passed is passed


def test_large_instances_say_what_cannot_be_decided() -> None:
    spec = DataSpec((20,), "binary")
    checks = {check.name: check for check in verify_model(lambda: toys.Bernoullis(spec), spec, "exact")}
    assert checks["probabilities sum to 1"].passed is None
    assert "too many values" in checks["probabilities sum to 1"].note
    assert not failures(list(checks.values()))


def test_verify_config_builds_the_tiny_instance_of_the_card() -> None:
    node = {"_target_": "dgmbench.models.autoregressive.made.Made", "card": {}}
    tiny = {"shape": [5], "kind": "binary", "args": {"hidden_sizes": [6]}}
    card = replace(read_cards()["made"], tiny=(tiny,))
    checks = {check.name: check for check in verify_config({"model": node, "seed": 0}, card)}
    assert checks["probabilities sum to 1"].passed is True
    assert "all 32 values" in checks["probabilities sum to 1"].note


# --- statistics -----------------------------------------------------------------------------------------------------


def test_chi_squared_p_values_are_uniform_under_the_truth_and_tiny_off_it() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.rand(300, generator=g).square() ** 2
    p /= p.sum()
    values = []
    for _ in range(200):
        draws = torch.multinomial(p, 4000, replacement=True, generator=g)
        values.append(chi_squared(torch.bincount(draws, minlength=300), p))
    below = (torch.tensor(values)[:, None] < torch.tensor([0.05, 0.5, 0.95])).float().mean(0)
    assert torch.allclose(below, torch.tensor([0.05, 0.5, 0.95]), atol=4 * 0.5 / 200**0.5)
    q = p.roll(1)
    assert chi_squared(torch.bincount(torch.multinomial(q, 4000, True, generator=g), minlength=300), p) < 1e-9
    assert chi_squared(torch.tensor([5, 1]), torch.tensor([1.0, 0.0])) == 0.0


def test_symmetry_tells_a_cycle_from_a_reversible_walk() -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randint(3, (3000,), generator=g)
    assert symmetry(start, torch.randint(3, (3000,), generator=g), 3) > 1e-3
    assert symmetry(start, (start + 1) % 3, 3) < 1e-9
