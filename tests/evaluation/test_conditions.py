"""log Z by condition: batched brackets against enumeration, and what the evaluator makes of them."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.evaluator import validation_objective
from dgmbench.evaluation.likelihood.conditions import Conditions, brackets, exact_log_partitions
from dgmbench.evaluation.likelihood.measure import likelihood
from dgmbench.evaluation.parts import Context
from dgmbench.models.contract import HasConditions

sys.path.insert(0, str(Path(__file__).parent.parent / "models" / "boltzmann" / "machines"))
from toy_machines import CountToy

CPU = torch.device("cpu")
SCHEDULE = {"chains": 60, "temperatures": 60, "spacing": "even", "burn_in": 20}


def make(hidden=3, scale=1.0):
    toy = CountToy(DataSpec((4,), "counts"), hidden=hidden).double()
    with torch.no_grad():
        for k, p in enumerate(toy.parameters()):
            p.copy_(scale * torch.randn(p.shape, dtype=torch.float64, generator=Generator().manual_seed(k)))
    return toy


def documents(n=40, seed=0):
    return torch.randint(4, (n, 4), generator=Generator().manual_seed(seed))


def dataset():
    splits = {name: Split(documents(40, k).numpy(), None) for k, name in enumerate(("train", "valid", "test"))}
    return DataSet("toy", DataSpec((4,), "counts"), splits, "1" * 64)


class Blind(CountToy):
    """The same machine, as one too large to enumerate."""

    def annealing_path_given(self, condition):
        path = super().annealing_path_given(condition)
        path.exact_log_partition = lambda: None
        path.sample_target = lambda n, generator=None: None
        return path


def test_each_conditions_bracket_holds_its_own_log_z():
    toy = make()
    assert isinstance(toy, HasConditions)
    conditions = Conditions.of(torch.tensor([2.0, 9.0, 2.0, 5.0]))
    assert conditions.values.tolist() == [2, 5, 9]
    assert conditions.of_example.tolist() == [0, 2, 0, 1]
    assert conditions.shares.tolist() == [0.5, 0.25, 0.25]
    exact = exact_log_partitions(toy, conditions, CPU)
    for total, log_z in zip((2, 5, 9), exact, strict=True):
        alone = toy.annealing_path_given(torch.tensor([total])).exact_log_partition()
        assert float(alone) == pytest.approx(float(log_z), abs=1e-12)
        words = torch.tensor(
            [
                [a, b, c, total - a - b - c]
                for a in range(total + 1)
                for b in range(total + 1 - a)
                for c in range(total + 1 - a - b)
            ]
        )
        assert float(toy.log_prob_unnormalised(words).logsumexp(0).detach()) == pytest.approx(float(log_z), abs=1e-10)
    examples = conditions.examples(documents(), documents().sum(1).double())
    assert all((own.sum(1) == total).all() for own, total in zip(examples, (2, 5, 9), strict=True))
    for model in (toy, Blind(toy.spec).double()):
        model.load_state_dict(toy.state_dict())
        schedule = {"chains": 200, "temperatures": 100, "burn_in": 30}
        found = brackets(model, conditions, examples, None, schedule=schedule, generator=Generator().manual_seed(0))
        for log_z, sides in zip(exact.tolist(), found, strict=True):
            low, high = sides.interval()
            assert log_z - 1 < low < log_z < high < log_z + 1
            assert sides.forward.chains == 200
            assert sides.exact_start == (model is toy)


def test_the_evaluator_takes_each_examples_own_log_z():
    toy, data = make(), dataset()
    protocol = {"seed": 0, "k": 10, "ais": SCHEDULE, "max_examples": None}
    with torch.no_grad():
        found = {
            name: (m, d) for name, m, d in likelihood(toy, Context(data, protocol, "test", CPU), lambda text: None)
        }
        x = documents(40, 2)
        by_hand = [
            float(v - toy.annealing_path_given(c[None]).exact_log_partition())
            for v, c in zip(toy.log_prob_unnormalised(x), x.sum(1), strict=True)
        ]
    exact = found["log_likelihood"][0]
    assert exact.value == pytest.approx(sum(by_hand) / 40, abs=1e-9)
    for side in ("ais", "reverse_ais"):
        metric, details = found[f"log_likelihood_{side}"]
        assert abs(metric.value - exact.value) < 4 * metric.se_draws + 0.02
        assert details["log_z"] == "by condition"
        assert metric.se > metric.se_draws > 0
    assert found["log_z_gap"][0].n == 60
    shuffled = x.sum(1).roll(1)
    wrong = [
        float(v - toy.annealing_path_given(c[None]).exact_log_partition())
        for v, c in zip(toy.log_prob_unnormalised(x).detach(), shuffled, strict=True)
    ]
    assert (
        abs(sum(wrong) / 40 - exact.value) > 0.05
        or max(map(abs, (a - b for a, b in zip(wrong, by_hand, strict=True)))) > 1
    )


def test_the_perplexity_of_documents_by_hand():
    """exp(-mean log p / D), of sequences of words: without the multinomial coefficient, every document alike."""
    toy, data = make(), dataset()
    protocol = {"seed": 0, "k": 10, "ais": SCHEDULE, "max_examples": None}
    nats = []
    for words in documents(40, 2):
        total = int(words.sum())
        orders = math.factorial(total) // math.prod(math.factorial(int(n)) for n in words)
        log_z = toy.annealing_path_given(torch.tensor([total])).exact_log_partition()
        log_p = float(toy.log_prob_unnormalised(words[None]).detach() - log_z) - math.log(orders)
        nats.append(-log_p / total)
    with torch.no_grad():
        found = {
            name: (m, d) for name, m, d in likelihood(toy, Context(data, protocol, "test", CPU), lambda text: None)
        }
    exact, details = found["log_likelihood_perplexity"]
    assert exact.value == pytest.approx(math.exp(sum(nats) / 40), rel=1e-9)
    assert (exact.unit, exact.direction, exact.n) == ("perplexity", "lower", 40)
    assert details["perplexity"] == "mean over documents"
    for side in ("ais", "reverse_ais"):
        metric, _ = found[f"log_likelihood_{side}_perplexity"]
        assert abs(metric.value - exact.value) < 4 * metric.se_draws + 0.002
    # the noise of log Z reaches the perplexity through the mean of 1 / D alone
    same = torch.tensor([[3, 1, 0, 2], [0, 2, 2, 2], [6, 0, 0, 0]])
    data = DataSet("toy", DataSpec((4,), "counts"), {name: Split(same.numpy(), None) for name in data.splits}, "2" * 64)
    with torch.no_grad():
        found = {name: m for name, m, _ in likelihood(toy, Context(data, protocol, "test", CPU), lambda text: None)}
    p, log_z = found["log_likelihood_ais_perplexity"], found["log_z_ais"]
    assert p.se_draws == pytest.approx(p.value * log_z.se / 6)


def test_validation_by_condition_is_exact_or_near_it():
    toy, data = make(), dataset()
    with torch.no_grad():
        name, exact = validation_objective(toy, data, device=CPU)
        blind = Blind(toy.spec).double()
        blind.load_state_dict(toy.state_dict())
        other, estimate = validation_objective(blind, data, device=CPU)
    assert (name, other) == ("log_likelihood", "log_likelihood_ais")
    assert math.isfinite(exact.value)
    assert abs(exact.value - estimate.value) < 0.1
