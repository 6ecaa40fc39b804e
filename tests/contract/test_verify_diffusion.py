"""``verify`` of diffusion models, whose weights over paths have heavy tails: right ones never fail, broken ones do."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.config.cards import read_cards
from dgmbench.data.spec import DataSpec
from dgmbench.verify import Check, bounds, density, means, verify_config
from dgmbench.verify.check import chi_squared
from dgmbench.verify.subject import Subject
from dgmbench.verify.support import Support, support_of

from .diffusion import LINE, Diffusion, log_normal

PLANE = DataSpec((2,), "real")
BITS = DataSpec((1, 2, 2), "binary")
LEVELS = DataSpec((2,), "discrete", levels=4)
SUM, FOLLOW = "mean weights sum to 1 over x", "samples follow the weights"
BELOW, FREQUENCIES = "exp(ELBO) sums to at most 1 over x", "the ELBO lies below sample frequencies"


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_default_dtype(torch.float32)


@cache
@torch.enable_grad()
def fitted(spec: DataSpec, seed: int, steps: int) -> dict[str, Tensor]:
    """Parameters after 300 updates."""
    subject = Subject(lambda: Diffusion(spec, steps=steps), spec, "lower bound", seed)
    model = subject.model()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(300):
        optimiser.zero_grad()
        model.loss("model", subject.data, subject.generator("fit", step))[0].backward()
        optimiser.step()
    return model.state_dict()


def sums(kind: type[Diffusion], spec: DataSpec, weights: str, seed: int, steps: int = 100) -> dict[str, Check]:
    """The lines of the sums over x: at random parameters, large random ones, or fitted ones."""
    subject = Subject(lambda: kind(spec, steps=steps), spec, "lower bound", seed)
    model = subject.model()
    if weights == "fitted":
        model.load_state_dict(fitted(spec, seed, steps))
    elif weights == "large":
        for p in model.parameters():
            p.data.mul_(4)
    with torch.no_grad():
        return {check.name: check for check in bounds.sums(subject, model)}


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(means, "MOST", 2**13)
    monkeypatch.setattr(means, "LEAST", 16)
    monkeypatch.setattr(bounds, "MOST", 2**13)
    monkeypatch.setattr(density, "SAMPLES", 2000)


# --- p(x), computed in another way ---------------------------------------------------------------------------------


def rao_blackwell(model: Diffusion, support: Support, n: int) -> Tensor:
    """p of each cell, as the mean of p(x_0 | x_1) over draws of x_1, which are n."""
    x1, x0 = model.first(n, torch.Generator().manual_seed(1)), model.scaled(support.x)
    each = [model.log_observation(x0, part[:, None].expand(-1, len(x0), -1)) for part in x1.split(500)]
    return support.probabilities(torch.cat(each).logsumexp(0) - math.log(n))


@pytest.mark.parametrize("spec", [LINE, BITS], ids=str)
@pytest.mark.parametrize("weights", ["random", "fitted"])
@torch.no_grad()
def test_what_the_model_samples_has_the_probability_that_its_last_step_says(spec: DataSpec, weights: str) -> None:
    model = Subject(lambda: Diffusion(spec), spec, "lower bound", 5).model()
    if weights == "fitted":
        model.load_state_dict(fitted(spec, 5, 100))
    x = model.sample(3000, generator=torch.Generator().manual_seed(2))
    support = support_of(spec, x, points=600)
    assert isinstance(support, Support)
    p = rao_blackwell(model, support, 2000)
    assert float(p.sum()) == pytest.approx(1, abs=5e-3)
    assert chi_squared(support.counts(x)[0], p, variance=p / 2000) > 1e-4


# --- right models --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("spec", "weights", "seed"),
    [
        (LINE, "random", 0),
        (LINE, "large", 1),
        (LINE, "fitted", 2),
        (PLANE, "random", 3),
        (PLANE, "fitted", 5),
        (BITS, "random", 6),
        (BITS, "fitted", 7),
        (LEVELS, "random", 8),
        (LEVELS, "fitted", 9),
    ],
    ids=lambda value: str(value),
)
def test_a_right_model_never_fails(spec: DataSpec, weights: str, seed: int) -> None:
    checks = sums(Diffusion, spec, weights, seed)
    assert not [check for check in checks.values() if check.passed is False]
    if checks[SUM].passed is None:
        assert "tails are too heavy" in checks[SUM].note
        assert checks[FOLLOW].passed is None


@pytest.mark.usefixtures("_small")
def test_a_fitted_model_is_decided_and_a_hopeless_one_says_why() -> None:
    checks = sums(Diffusion, LINE, "fitted", 2)
    assert all(check.passed for check in checks.values())
    checks = sums(Diffusion, BITS, "random", 6)
    assert {name: check.passed for name, check in checks.items()} == {
        SUM: None,
        FOLLOW: None,
        BELOW: None,
        FREQUENCIES: None,
    }
    assert "vacuous" in checks[BELOW].note
    assert "leans on" in checks[FOLLOW].note


def test_a_model_of_a_family_of_its_own_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a node and a card, as ``dgm verify`` does; in fewer steps."""
    monkeypatch.setattr(means, "MOST", 2**13)
    torch.set_default_dtype(torch.float32)
    tiny = {"shape": [1, 1, 2], "kind": "binary", "args": {"steps": 10}}
    card = replace(read_cards()["vae"], name="diffusion", family="other", tiny=(tiny,))
    node = {"_target_": f"{Diffusion.__module__}.Diffusion", "card": {}}
    checks = verify_config({"model": node, "seed": 0}, card)
    assert not [check for check in checks if check.passed is False]
    assert {SUM, FOLLOW, BELOW, FREQUENCIES} <= {check.name for check in checks}


# --- broken models -------------------------------------------------------------------------------------------------


class OtherPrior(Diffusion):
    """Weights of a prior with half the variance of the one that is sampled; they sum to 1 all the same."""

    def log_prior(self, x: Tensor) -> Tensor:
        return log_normal(x, torch.zeros(()), torch.tensor(0.5))


class NoPrior(Diffusion):
    """Forgets log p(x_T)."""

    def log_prior(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[:-1])


class OneStepShort(Diffusion):
    """Returns what has one step of noise left."""

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return self.first(n, generator).to(self.spec.dtype)


class WeightsTooSmall(Diffusion):
    """Falls short of every p(x) by a tenth, which a fitted model's effective weights can tell."""

    def log_prior(self, x: Tensor) -> Tensor:
        return super().log_prior(x) - 0.1


@pytest.mark.parametrize(
    ("kind", "name"), [(OtherPrior, FOLLOW), (NoPrior, SUM), (OneStepShort, FOLLOW), (WeightsTooSmall, SUM)]
)
def test_a_broken_model_fails_where_it_can_be_decided(
    kind: type[Diffusion], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 20 steps, after which x_T is no noise yet, so that its prior matters for x_0."""
    monkeypatch.setattr(means, "MOST", 2**15)
    assert not [check for check in sums(Diffusion, LINE, "fitted", 2, 20).values() if not check.passed]
    assert sums(kind, LINE, "fitted", 2, 20)[name].passed is False
