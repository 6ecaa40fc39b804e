"""Conditional data: every example is measured under its own condition, and samples are drawn under them."""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.config.files import import_from
from dgmbench.data import BatchStream, DataSet, DataSpec, load
from dgmbench.errors import UserError
from dgmbench.evaluation.chunks import CHUNK, Chunks
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.evaluation.likelihood import bounds
from dgmbench.models.conditions import under
from dgmbench.verify.support import all_states

import_from([Path(__file__).parents[1] / "my_given"])
my_given: Any = importlib.import_module("my_given")

CPU = torch.device("cpu")
PROTOCOL: dict[str, Any] = {"seed": 0, "k": 64, "max_examples": None, "quality": {"samples": 400, "features": []}}
STATES = all_states(4, 2, torch.uint8).reshape(16, 1, 2, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    cfg = {"name": "bits_given", "_target_": "my_given.Bits", "n": 500}
    return load(cfg, tmp_path_factory.mktemp("root"))


def measured(model: Any, data: DataSet, **changes: Any) -> dict[str, Any]:
    evaluator = Evaluator(data, PROTOCOL | changes, split="test", rule="best", averaged=False, device=CPU)
    return evaluator.measure(model)


def pixels(data: DataSet) -> Any:
    model = my_given.Pixels(data.spec)
    with torch.no_grad():
        model.logits.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    return model


def enumerated(model: Any, x: Tensor, given: Tensor) -> Tensor:
    """log p(x | c) from a table of all 16 pictures under each of the 4 conditions, normalised here."""
    table = torch.empty(4, 16, dtype=torch.float64)
    for c in range(4):
        p = model.logits[c].double().sigmoid()
        bits = STATES.flatten(1).double()
        weight = (p**bits * (1 - p) ** (1 - bits)).prod(1)
        table[c] = (weight / weight.sum()).log()
    number = (x.flatten(1).long() * torch.tensor([8, 4, 2, 1])).sum(1)
    return table[given[:, 0].long() + 2 * given[:, 1].long(), number]


@torch.no_grad()
def test_the_conditional_log_likelihood_is_the_enumeration_s(data: DataSet) -> None:
    model, test = pixels(data), data.splits["test"]
    found = measured(model, data)
    truth = enumerated(model, torch.from_numpy(test.x), torch.from_numpy(test.given))
    metric = found["conditional_log_likelihood"][0]
    assert metric.value == pytest.approx(float(truth.mean()), abs=1e-6)
    assert metric.se == pytest.approx(float(truth.std()) / math.sqrt(len(truth)), rel=1e-5)
    assert found["conditional_log_likelihood_bits_per_dim"][0].value == pytest.approx(-metric.value / 4 / math.log(2))
    assert "log_likelihood" not in found
    name, objective = validation_objective(model, data, device=CPU)
    valid = data.splits["valid"]
    truth = enumerated(model, torch.from_numpy(valid.x), torch.from_numpy(valid.given))
    assert (name, objective.value) == ("conditional_log_likelihood", pytest.approx(float(truth.mean()), abs=1e-6))


@torch.no_grad()
def test_under_permuted_conditions_data_are_less_probable_if_the_model_looks_at_them(data: DataSet) -> None:
    model = pixels(data)
    with torch.no_grad():
        p = torch.from_numpy(my_given.probabilities(np.array([[c % 2, c // 2] for c in range(4)])))
        model.logits.copy_(torch.logit(p))  # the truth
    test = data.splits["test"]
    own = enumerated(model, torch.from_numpy(test.x), torch.from_numpy(test.given))
    # the expectation over another example's condition, which is drawn independently of x
    every = torch.stack([enumerated(model, torch.from_numpy(test.x), torch.from_numpy(c)[None].expand(len(test.x), 2))
                         for c in test.given])  # fmt: skip
    expected, spread = float((own - every.mean(0)).mean()), float(every.std()) / math.sqrt(len(own))
    found = measured(model, data)
    gain, permuted = (found[f"conditional_log_likelihood_{name}"][0] for name in ("gain", "permuted"))
    assert abs(gain.value - expected) < 4 * spread
    assert gain.value > 4 * gain.se
    assert gain.value == pytest.approx(found["conditional_log_likelihood"][0].value - permuted.value)
    with torch.no_grad():
        model.logits.copy_(model.logits.mean(0, keepdim=True).expand(4, 4).contiguous())
    assert measured(model, data)["conditional_log_likelihood_gain"][0].value == pytest.approx(0.0, abs=1e-9)


@torch.no_grad()
def test_bounds_are_under_the_own_condition_and_below_the_enumeration(data: DataSet) -> None:
    model = my_given.Mixture(data.spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    test = data.splits["test"]
    x, given = torch.from_numpy(test.x), torch.from_numpy(test.given)
    joint = model.joint(x, given).double()
    q = (x.flatten(1).float() @ model.posterior).log_softmax(1).double()
    truth, bound = joint.logsumexp(1).mean(), (q.exp() * (joint - q)).sum(1).mean()
    found = measured(model, data)
    elbo, weighted = found["conditional_elbo"][0], found["conditional_iw_bound_k64"][0]
    assert abs(elbo.value - float(bound)) < 4 * elbo.se_draws
    assert float(bound) < float(truth) - 0.05
    assert weighted.value == pytest.approx(float(truth), abs=0.02)
    chunks = Chunks(data, "test", seed=0)
    values = bounds.importance_weighted_bounds(model, chunks.permuted(), [64])[64].values
    assert abs(float(values.mean() - truth)) > 0.1


def test_permuted_conditions_are_those_of_others_in_one_cycle(data: DataSet) -> None:
    chunks = Chunks(data, "test", seed=0, limit=150)
    own, others = (list(each.batches()) for each in (chunks, chunks.permuted()))
    for a, b in zip(own, others, strict=True):
        assert torch.equal(a.x, b.x)
    given = [torch.cat([batch.given for batch in each]) for each in (own, others)]
    assert not torch.equal(*given)
    for each in given:
        each.copy_(each[each.long().mul(torch.tensor([2, 1])).sum(1).argsort()])
    assert torch.equal(*given)  # the same conditions over all


def test_samples_are_drawn_under_the_conditions_of_the_split(data: DataSet) -> None:
    chunks = Chunks(data, "test", seed=0)
    n = 2 * data.size("test") + 7
    beside = chunks.beside(0, n)
    assert torch.equal(beside.index[: data.size("test")].sort().values, torch.arange(data.size("test")))
    assert torch.equal(beside.index[data.size("test") : -7], beside.index[: data.size("test")])
    assert torch.equal(beside.given, torch.from_numpy(data.splits["test"].given)[beside.index])
    later = chunks.beside(100, 5)
    assert torch.equal(later.index, beside.index[100:105])

    class Echo(my_given.Pixels):  # type: ignore[misc, name-defined]  # whose samples say what they were given
        def sample(self, n: int, y: Tensor | None = None, *, given: Tensor, generator: Any = None) -> Tensor:
            assert len(given) == n
            return given.repeat(1, 2).reshape(n, 1, 2, 2)

    model, evaluator = Echo(data.spec), Evaluator(
        data, PROTOCOL, split="test", rule="best", averaged=False, device=CPU
    )  # fmt: skip
    drawn = evaluator.context.draw(model, 600, lambda text: None)
    own = evaluator.context.few(600).beside(0, 600).given
    assert torch.equal(drawn.flatten(1)[:, :2], own)


def test_batches_carry_the_conditions_of_their_examples(data: DataSet) -> None:
    for resident in (False, True):
        batch = BatchStream(data, batch_size=30, seed=0, resident=resident).batch(3)
        part = data.splits["train"]
        assert torch.equal(batch.given, torch.from_numpy(part.given[batch.index.numpy()]))
        assert torch.equal(batch.x, torch.from_numpy(part.x[batch.index.numpy()]))


def test_a_model_that_takes_no_condition_is_refused_and_others_are_left_alone(data: DataSet) -> None:
    class Blind(my_given.Pixels):  # type: ignore[misc, name-defined]
        def log_prob(self, x: Tensor) -> Tensor:
            return x.flatten(1).double().sum(1)

    with pytest.raises(UserError, match=r"Blind.log_prob does not take given="):
        measured(Blind(data.spec), data)
    model = Blind(data.spec)
    batch = next(Chunks(data, "test", seed=0).batches())
    assert under(model, batch._replace(given=None)) is model
    assert len(batch.x) == CHUNK


def test_a_spec_with_a_condition_is_another_space() -> None:
    plain, given = DataSpec((2,), "real"), DataSpec((3,), "tokens", 5)
    spec = DataSpec((2,), "real", given=given)
    assert spec != plain
    assert DataSpec(**spec.as_dict()) == spec
    assert spec != DataSpec((2,), "real", given=DataSpec((4,), "tokens", 5))
    assert {spec: 1}[DataSpec((2,), "real", given=given)] == 1
    assert plain.as_dict() == {"shape": [2], "kind": "real", "levels": None, "num_classes": None}
