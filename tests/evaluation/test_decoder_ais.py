"""Annealing over a decoder's noise, against evidence in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Generator, Tensor, nn

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.evaluation.likelihood import decoder_measure
from dgmbench.evaluation.likelihood.decoder_ais import (
    Annealing,
    _Tempered,
    annealed,
    annealed_back,
    sigmoid_schedule,
    tuned_steps,
)
from dgmbench.evaluation.likelihood.decoder_measure import (
    ACCEPTANCE_OFF,
    BLUR_SIGMAS,
    LEAST_CHAINS,
    SIGMAS,
    Decoder,
)
from dgmbench.evaluation.likelihood.sigma import TOLERANCE
from dgmbench.models.contract import CanGenerate, HasDecoder, Model
from dgmbench.models.gan.gan import Gan
from dgmbench.models.gan.vae_gan import VaeGan
from dgmbench.models.moment_matching.gmmn import Gmmn
from dgmbench.models.vae.iwae import Iwae
from dgmbench.models.vae.vae import Vae
from dgmbench.nn.hmc import ACCEPTANCE, at, move

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class LinearDecoder(Model):
    """x ~ N(W z + b, s^2 I), z ~ N(0, I): p(x) = N(b, W W' + s^2 I)."""

    def __init__(self, dim: int = 5, latent: int = 3, sigma: float = 0.6, seed: int = 0) -> None:
        super().__init__(DataSpec((dim,), "real"))
        self.noise_dim, self.sigma = latent, sigma
        self.weight = nn.Parameter(torch.randn(dim, latent, generator=seeded(seed), dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(dim, generator=seeded(seed + 1), dtype=torch.float64))

    def evidence(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(self.spec.dim, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x.double()).detach()

    def posterior_sample(self, x: Tensor, generator: Generator) -> Tensor:
        precision = self.weight.T @ self.weight / self.sigma**2 + torch.eye(self.noise_dim, dtype=torch.float64)
        covariance = torch.linalg.inv(precision)
        mean = (x.double() - self.bias) @ self.weight @ covariance / self.sigma**2
        noise = torch.randn(len(x), self.noise_dim, generator=generator, dtype=torch.float64)
        return (mean + noise @ torch.linalg.cholesky(covariance).T).detach()

    def log_prob_given(self, x: Tensor, noise: Tensor) -> Tensor:
        error = (x.double() - noise @ self.weight.T - self.bias) / self.sigma
        return -0.5 * error.square().sum(1) - self.spec.dim * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))

    def sample_given(self, noise: Tensor, *, generator: Generator | None = None) -> Tensor:
        centre = noise @ self.weight.T + self.bias
        return (
            (centre + self.sigma * torch.randn(centre.shape, generator=generator, dtype=centre.dtype)).detach().float()
        )

    def decoder(self) -> Decoder:
        return Decoder(
            self.noise_dim, self.log_prob_given, lambda z, g: self.sample_given(z, generator=g), torch.float64
        )


class LinearGenerator(LinearDecoder):
    """The same without its noise on x: an implicit model."""

    log_prob_given = sample_given = None  # type: ignore[assignment]

    def generate(self, noise: Tensor) -> Tensor:
        return noise @ self.weight.T + self.bias


def run(model: LinearDecoder, x: Tensor, annealing: Annealing, seed: int = 0):
    decoder, g, n = model.decoder(), seeded(seed), len(x)
    rows = annealing.chains * n
    given = decoder.given(x, annealing.chains)
    steps = tuned_steps(given, decoder.noise(rows, g), n, annealing, g)
    return steps, annealed(given, decoder.noise(rows, g), n, steps, annealing, g)


@pytest.fixture(scope="module")
def examples():
    """A model, 60 examples of its own, and the noise that each was made from."""
    model = LinearDecoder()
    z = torch.randn(60, 3, generator=seeded(5), dtype=torch.float64)
    return model, model.sample_given(z, generator=seeded(6)), z


def test_annealing_finds_the_evidence_of_a_linear_gaussian_decoder(examples) -> None:
    model, x, _ = examples
    _, runs = run(model, x, Annealing(48, sigmoid_schedule(120), 4))
    exact = model.evidence(x)
    error = runs.variance().sqrt()
    z = (runs.log_mean() - exact) / error
    assert float(error.max()) < 0.3
    assert float(z.abs().max()) < 4.5
    # and the errors claimed are the errors made: z has mean 0 and variance 1
    assert abs(float(z.mean())) < 4.5 / math.sqrt(60)
    assert 0.5 < float(z.square().mean()) < 1.8
    assert 0.5 < float(runs.acceptance.mean()) < 0.8


def test_both_directions_enclose_the_evidence_in_expectation_and_close_with_more_temperatures(examples) -> None:
    model, x = examples[0], examples[1][:30]
    exact = model.evidence(x)
    gaps = []
    for temperatures in (4, 16, 64):
        annealing = Annealing(4, sigmoid_schedule(temperatures), 4)
        below, above = [], []
        for seed in range(8):
            steps, runs = run(model, x, annealing, seed)
            exact_z = model.posterior_sample(x, seeded(100 + seed))
            back = annealed_back(model.decoder().given(x, 4), exact_z, steps, annealing, seeded(200 + seed))
            below.append(float((runs.log_mean() - exact).mean()))
            above.append(float((-back.log_mean() - exact).mean()))
        low, high = torch.tensor(below), torch.tensor(above)
        errors = low.std() / 8**0.5, high.std() / 8**0.5
        assert low.mean() < 4.5 * errors[0]
        assert high.mean() > -4.5 * errors[1]
        if temperatures == 4:  # here the bounds are strict
            assert low.mean() + 4.5 * errors[0] < 0 < high.mean() - 4.5 * errors[1]
        gaps.append(float(high.mean() - low.mean()))
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0


def test_mean_weights_are_the_evidence_and_its_inverse(examples) -> None:
    model, x, _ = examples
    x = x[:4]
    exact, chains = model.evidence(x), 1000
    annealing = Annealing(chains, sigmoid_schedule(150), 3)
    steps, runs = run(model, x, annealing)
    many = x.repeat(chains, 1)  # chains from one start would not be independent
    starts = model.posterior_sample(many, seeded(1))
    alone = Annealing(1, annealing.betas, 3)
    given = model.decoder().given(many, 1)
    back = annealed_back(given, starts, steps.repeat(1, chains), alone, seeded(2)).log_weights.view(chains, 4)
    for ratio in ((runs.log_weights - exact).exp(), (back + exact).exp()):
        assert float(ratio.std()) < 2.5  # light tails, or the next line would mean nothing
        assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / math.sqrt(chains)).all()


def test_a_move_leaves_the_tempered_posterior_unchanged(examples) -> None:
    model, x, _ = examples
    n, beta = 40_000, 1.0
    one = x[:1].repeat(n, 1)
    start = model.posterior_sample(one, seeded(0))
    given = model.decoder().given(one, 1)
    state, accepted = move(_Tempered(given, beta), at(start, given), torch.full((n,), 0.33).double(), 3, seeded(1))
    assert 0.3 < float(accepted.mean()) < 0.95  # so that the Metropolis step has something to do
    assert float((state.z != start).any(1).double().mean()) == pytest.approx(float(accepted.mean()), abs=0.02)
    again = model.posterior_sample(one, seeded(2))
    for moment in (lambda z: z, lambda z: z[:, :, None] * z[:, None, :]):
        a, b = moment(state.z).flatten(1), moment(again).flatten(1)
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all()


def test_orbits_that_diverge_are_refused() -> None:
    def steep(z: Tensor) -> Tensor:
        return -z.square().sum(1).exp()

    state = at(torch.zeros(20, 2, dtype=torch.float64), steep)
    after, accepted = move(_Tempered(steep, 1.0), state, torch.full((20,), 30.0).double(), 5, seeded())
    assert torch.equal(after.z, state.z)
    assert float(accepted.max()) == 0.0
    assert torch.isfinite(after.value).all()


# ---------------------------------------------------------------------- the part of the evaluation


def dataset(x: np.ndarray, spec: DataSpec) -> DataSet:
    split = Split(x, None)
    return DataSet("toy", spec, {"train": split, "valid": split, "test": split}, "1" * 64)


def measured(model: Model, data: DataSet, **changes):
    settings = {"examples": 30, "chains": 16, "temperatures": 60, "leapfrog": 4} | changes
    protocol = {"seed": 0, "k": 3, "ais": {}, "max_examples": None, "decoder_ais": settings}
    one = Evaluator(data, protocol, split="test", rule="best", averaged=False, device=CPU)
    return one.measure(model)


def test_a_decoder_gets_its_evidence_with_gap_and_acceptance(examples) -> None:
    model, x, _ = examples
    found = measured(model, dataset(x.numpy(), model.spec), examples=60)
    value, protocol = found["decoder_ais"]
    exact = model.evidence(x)
    assert value.kind == "lower bound"
    assert value.se_draws is not None
    assert value.se is not None
    assert abs(value.value - float(exact.mean())) < 4.5 * value.se_draws
    assert value.se_draws < value.se == pytest.approx(float(exact.std()) / math.sqrt(60), rel=0.1)
    assert value.n == 60
    assert protocol["decoder_ais"]["chains"] == 16
    gap = found["decoder_ais_gap"][0]
    assert gap.se is not None
    assert -4.5 * gap.se < gap.value < 0.5
    assert 1 < found["decoder_ais_ess"][0].value <= 16
    assert 0.4 < found["decoder_ais_acceptance"][0].value < 0.9


def test_an_implicit_model_gets_the_evidence_at_the_best_sigma_and_not_that_of_a_grid() -> None:
    dim = 100
    own = LinearDecoder(dim, latent=1, sigma=0.5)
    x = own.sample_given(torch.randn(40, 1, generator=seeded(5), dtype=torch.float64), generator=seeded(6))

    def evidence(sigma: float) -> float:
        return float(LinearDecoder(dim, latent=1, sigma=sigma).evidence(x).mean())

    top = minimize_scalar(lambda t: -evidence(math.exp(t)), bounds=(-2, 1), method="bounded")
    spread = float(x.double().var(0, correction=0).mean().sqrt())
    assert -top.fun - max(evidence(spread * sigma) for sigma in SIGMAS) > 3
    assert -top.fun - max(evidence(spread * sigma) for sigma in BLUR_SIGMAS) > 10

    found = measured(
        LinearGenerator(dim, latent=1),
        dataset(x.numpy(), own.spec),
        examples=40,
        temperatures=100,
        chains=8,
        leapfrog=2,
    )
    sigma, protocol = found["blurred_ais_sigma"]
    value = found["blurred_ais"][0]
    assert sigma.note is None
    # the runs that sigma is chosen by are short and of few chains: their noise comes on top of the tolerance
    slack = TOLERANCE + 0.3
    assert evidence(sigma.value) > -top.fun - slack
    assert abs(value.value + top.fun) < slack + 4.5 * value.se_draws
    assert value.kind == "estimate"
    assert value.note == f"of samples blurred by sigma = {sigma.value:.3g} data units"
    assert protocol["sigma"] == {"from": 0.01, "to": 1.0, "tolerance": TOLERANCE, "split": "valid", "examples": 40}


def test_samples_that_are_not_finite_leave_no_likelihood_and_say_so() -> None:
    model = LinearGenerator()
    with torch.no_grad():
        model.bias[0] = math.nan
    x = np.random.RandomState(0).randn(20, 5).astype(np.float32)
    found = measured(model, dataset(x, model.spec), temperatures=5, chains=2, leapfrog=1)
    assert set(found) == {"blurred_ais", "blurred_ais_sigma"}
    for metric, _ in found.values():
        assert metric.as_dict()["value"] is None
        assert metric.note == "no sigma of the grid gives the held-out examples a finite likelihood"
    assert found["blurred_ais"][1]["decoder_ais"]["examples"] == 20  # there are no more


def test_a_wide_gap_is_noted(examples) -> None:
    model, x, _ = examples
    found = measured(model, dataset(x.numpy(), model.spec), temperatures=1, chains=2)
    assert found["decoder_ais_gap"][0].value > 1
    assert "wide" in (found["decoder_ais"][0].note or "")


def test_few_effective_chains_and_strange_acceptance_are_noted(examples, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = examples
    data = dataset(x.numpy(), model.spec)
    good = measured(model, data)
    assert good["decoder_ais_ess"][0].value > LEAST_CHAINS
    assert [good[name][0].note for name in ("decoder_ais", "decoder_ais_ess", "decoder_ais_acceptance")] == [None] * 3
    few = measured(model, data, chains=3, temperatures=8)
    ess = few["decoder_ais_ess"][0]
    assert ess.value < LEAST_CHAINS
    assert ess.note == f"{ess.value:.1f} effective chains an example"
    assert ess.note in (few["decoder_ais"][0].note or "")
    for step, side in ((1e-3, 1), (1.9, -1)):  # moves that go nowhere: too short, or refused
        monkeypatch.setattr(
            decoder_measure, "tuned_steps", lambda *a, step=step: torch.full((60, a[2]), step, dtype=torch.float64)
        )
        found = measured(model, data)
        acceptance = found["decoder_ais_acceptance"][0]
        assert side * (acceptance.value - ACCEPTANCE) > ACCEPTANCE_OFF
        assert acceptance.note == f"acceptance {acceptance.value:.2f}, not 0.65"
        assert acceptance.note in (found["decoder_ais"][0].note or "")
        monkeypatch.undo()


def test_models_without_a_decoder_and_protocols_without_examples_have_no_such_number(examples) -> None:
    model, x, _ = examples
    data = dataset(x.numpy(), model.spec)
    assert not measured(Model(model.spec), data)
    assert not measured(model, data, examples=0)


# ---------------------------------------------------------------------- the models that have decoders

BINARY = DataSpec((4,), "binary")
DECODERS = {
    "vae": lambda: Vae(BINARY, hidden_sizes=(8,), latent=2),
    "iwae": lambda: Iwae(BINARY, hidden_sizes=(8,), latent=(2, 1), upper_sizes=(4,), k=2),
}


@pytest.mark.parametrize("name", DECODERS)
def test_the_mean_over_noise_is_p_of_x(name: str) -> None:
    torch.manual_seed(0)
    model = DECODERS[name]().double()
    assert isinstance(model, HasDecoder)
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # a proposal near the prior has weights with light tails
            scales = {"encoder": 0.05, "upwards": 0.05, "downwards": 0.3}
            parameter.normal_(0, scales.get(key.split(".")[0], 0.8))
        x = (torch.arange(16)[:, None] >> torch.arange(4) & 1).to(torch.uint8)
        draws = 4000
        noise = torch.randn(draws, model.noise_dim, generator=seeded(), dtype=torch.float64)
        each = torch.stack([model.log_prob_given(one.expand(draws, -1), noise) for one in x], 1).exp()
        torch.testing.assert_close(each.sum(1), torch.ones(draws).double())
        weights = model.log_weights(x, 20_000, generator=seeded(1)).exp()
        error = (each.var(0) / draws + weights.var(0) / 20_000).sqrt()
        assert ((each.mean(0) - weights.mean(0)).abs() < 4.5 * error).all()
        # one noise: draws follow the conditional
        many = model.sample_given(noise[:1].expand(draws, -1), generator=seeded(2))
        frequency = torch.bincount((many.long() * torch.tensor([1, 2, 4, 8])).sum(1), minlength=16) / draws
        p = each[0]
        assert ((frequency - p).abs() < 4.5 * (p * (1 - p) / draws).sqrt() + 1e-9).all()


GENERATORS = {
    "gan": lambda spec: Gan(spec, latent=2, hidden_sizes=(8,)),
    "truncated gan": lambda spec: Gan(spec, latent=2, hidden_sizes=(8,), truncation=0.6),
    "conditional gan": lambda spec: Gan(spec, latent=2, hidden_sizes=(8,), conditional=True),
    "vae_gan": lambda spec: VaeGan(spec, latent=2, hidden_sizes=(8,)),
    "gmmn": lambda spec: Gmmn(spec, latent=2, hidden_sizes=(8,)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_values_are_distributed_as_samples(name: str) -> None:
    torch.manual_seed(0)
    spec = DataSpec((3,), "discrete", levels=5, num_classes=3)
    model = GENERATORS[name](spec).eval()
    assert isinstance(model, CanGenerate)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1.0)
        if "conditional" in name:
            model.class_log_prior.copy_(torch.tensor([0.6, 0.3, 0.1]).log())
        n = 20_000
        noise = torch.randn(n, model.noise_dim, generator=seeded(1))
        raw = model.generate(noise)
        assert raw.shape == (n, 3)
        made = raw.round().clamp(0, 4).long()
        drawn = model.sample(n, generator=seeded(2)).long()
        a, b = (torch.bincount(x @ torch.tensor([1, 5, 25]), minlength=125).double() for x in (made, drawn))
        seen = a + b >= 10
        statistic = float(((a - b)[seen].square() / (a + b)[seen]).sum())
        cells = int(seen.sum())
        assert cells > 5
        assert statistic < cells + 5 * math.sqrt(2 * cells)
    noise = noise[:5].requires_grad_()
    (gradient,) = torch.autograd.grad(model.generate(noise).sum(), noise)
    assert (gradient[:, :2].abs().sum() > 0).all()
