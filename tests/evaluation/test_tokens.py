"""What is measured of models of tokens, against sums written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.evaluation.likelihood.units import nats_per_token, perplexity
from dgmbench.evaluation.sample_distance import energy_distance, one_hot_distance, pixel_energy_distance
from dgmbench.models.contract import Model

CPU = torch.device("cpu")
PROTOCOL: dict[str, Any] = {"seed": 0, "k": 10, "ais": {"chains": 5, "temperatures": 20}, "max_examples": None}
SPEC = DataSpec((5,), "tokens", 4, end=0)


def data(n: int = 230) -> DataSet:
    rng = np.random.RandomState(0)
    x = rng.randint(1, 4, (n, 5))
    x[np.arange(5) >= rng.randint(0, 6, (n, 1))] = 0
    split = Split(x.astype(np.int64), None)
    return DataSet("toy", SPEC, {"train": split, "valid": split, "test": split}, "1" * 64)


class Coin(Model):
    """Each token ends the sentence with probability 0.2, or is one of three others."""

    def log_prob(self, x: Tensor) -> Tensor:
        words = (x != 0).double().sum(1)
        return words * math.log(0.8 / 3) + (words < 5) * math.log(0.2)


class Speaker(Model):
    """An autoencoder that says the first token wrong and knows the probability of what it says."""

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        wrong = x.clone()
        wrong[:, 0] = (x[:, 0] + 1) % 4
        wrong[:, 4] = 1  # after the end of most sentences, where nothing is asked
        return wrong

    def reconstruction_log_prob(self, x: Tensor) -> Tensor:
        return -0.5 - 0.1 * (x != 0).double().sum(1)


def measure(model: Model, found: DataSet) -> dict[str, Any]:
    evaluator = Evaluator(found, PROTOCOL, split="test", rule="best", averaged=False, device=CPU)
    return {name: metric for name, (metric, _) in evaluator.measure(model).items()}


def test_a_perplexity_beyond_all_numbers_is_none() -> None:
    tokens = torch.tensor([2.0, 2.0])
    beyond = perplexity(nats_per_token(torch.tensor([-3000.0, -3000.0]), tokens, "exact"))
    assert beyond.as_dict()["value"] is None
    assert "exp(1500 nats/token) is beyond all numbers" in beyond.note
    impossible = perplexity(nats_per_token(torch.tensor([-1.0, -math.inf]), tokens, "exact"))
    assert impossible.as_dict()["value"] is None
    assert impossible.note == "1 of 2 values are not finite"


def test_the_error_over_draws_goes_through_to_the_perplexity() -> None:
    values, tokens = torch.tensor([-4.0, -6.0, -5.0]), torch.tensor([2.0, 3.0, 5.0])
    variance = torch.tensor([0.01, 0.04, 0.04])
    found = perplexity(nats_per_token(values, tokens, "lower bound", variance))
    assert found.kind == "upper bound"
    assert found.se_draws == pytest.approx(math.exp(1.5) * 0.3 / 10)


def test_perplexity_is_exp_of_all_nats_over_all_tokens() -> None:
    found = data()
    x = found.splits["test"].x
    words = (x != 0).sum(1)
    tokens = words + (words < 5)
    metrics = measure(Coin(SPEC), found)
    nats = -Coin(SPEC).log_prob(torch.from_numpy(x)).numpy()
    p = metrics["log_likelihood_perplexity"]
    assert p.value == pytest.approx(math.exp(nats.sum() / tokens.sum()))
    assert (p.kind, p.direction, p.unit, p.n) == ("exact", "lower", "perplexity", tokens.sum())
    assert "log_likelihood_bits_per_dim" not in metrics


def test_a_lower_bound_gives_an_upper_bound_of_the_perplexity() -> None:
    metric = nats_per_token(torch.tensor([-2.0, -4.0]), torch.tensor([1, 2]), "lower bound")
    assert (metric.value, metric.kind, metric.direction, metric.n) == (2.0, "upper bound", "lower", 3)
    assert metric.se == pytest.approx(0.0)  # both have 2 nats a token
    assert perplexity(metric).value == pytest.approx(math.exp(2.0))
    assert nats_per_token(torch.tensor([-2.0]), torch.tensor([2]), "exact").se is None


def test_the_standard_error_of_nats_per_token_is_that_of_repetitions() -> None:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (4000, 100), generator=rng)
    values = -tokens * (1 + 0.3 * torch.randn(4000, 100, generator=rng)) - 2 * torch.rand(4000, 100, generator=rng)
    found = [nats_per_token(v, t, "exact") for v, t in zip(values, tokens, strict=True)]
    spread = torch.tensor([metric.value for metric in found]).std()
    stated = torch.tensor([metric.se for metric in found]).mean()
    assert stated == pytest.approx(float(spread), rel=0.06)


def test_reconstructions_of_an_autoencoder_of_sentences() -> None:
    found = data()
    x = found.splits["test"].x
    words = (x != 0).sum(1)
    tokens = words + (words < 5)
    metrics = measure(Speaker(SPEC), found)
    assert set(metrics) == {"reconstruction_log_prob", "reconstruction_nll_per_token", "reconstruction_token_error"}
    nll = metrics["reconstruction_nll_per_token"]
    assert nll.value == pytest.approx((0.5 + 0.1 * words).sum() / tokens.sum())
    assert (nll.kind, nll.direction, nll.unit) == ("estimate", "lower", "nats/token")
    last = (tokens == 5) & (x[:, 4] != 1)
    assert metrics["reconstruction_token_error"].value == pytest.approx(((1 + last) / tokens).mean())
    name, metric = validation_objective(Speaker(SPEC), found, device=CPU)
    assert name == "reconstruction_log_prob"
    assert metric.value == pytest.approx(-0.5 - 0.1 * words.mean())


def test_tokens_are_compared_as_one_hot_vectors() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(4, (60, 5), generator=g), torch.randint(3, (50, 5), generator=g)
    hot_a, hot_b = (torch.nn.functional.one_hot(v, 4).flatten(1).double() for v in (a, b))
    assert torch.allclose(one_hot_distance(a, b), torch.cdist(hot_a, hot_b))
    metric = pixel_energy_distance(a, b, SPEC)
    value, se, se_draws = (float(each) for each in energy_distance(hot_a, hot_b))
    assert (metric.value, metric.se, metric.se_draws) == pytest.approx((value, se, se_draws))
    assert metric.unit == "one-hot tokens"
