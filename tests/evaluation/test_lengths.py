"""Sequences of different lengths: no number changes with the padding, and steps are counted."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.config.files import import_from
from dgmbench.data import BatchStream, DataSet, load
from dgmbench.evaluation.evaluator import Evaluator, validation_objective

import_from([Path(__file__).parents[1] / "my_given"])
my_sequences: Any = importlib.import_module("my_sequences")

CPU = torch.device("cpu")
PROTOCOL: dict[str, Any] = {"seed": 0, "k": 1, "max_examples": None, "quality": {"samples": 300, "features": None}}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[DataSet]:
    """The same sequences in arrays of 5 and of 9 steps."""
    cfg = {"name": "runs", "_target_": "my_sequences.Runs"}
    return [load({**cfg, "padding": padding}, tmp_path_factory.mktemp("root")) for padding in (0, 4)]


def model(data: DataSet) -> Any:
    found = my_sequences.Chain(data.spec)
    with torch.no_grad():
        found.start.fill_(0.3)
        found.follow.copy_(torch.tensor([-1.0, 0.7]))
        found.rule.copy_(torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0)))
    return found


def measured(data: DataSet) -> dict[str, Any]:
    evaluator = Evaluator(data, PROTOCOL, split="test", rule="best", averaged=False, device=CPU)
    return {name: metric for name, (metric, _) in evaluator.measure(model(data)).items()}


def test_no_number_changes_with_the_padding(sets: list[DataSet]) -> None:
    short, long = (measured(data) for data in sets)
    assert short.keys() == long.keys()
    for name in short:
        for key in ("value", "se", "n"):
            # sums of float32 over another number of zeros round differently
            assert getattr(short[name], key) == pytest.approx(getattr(long[name], key), rel=1e-6, abs=1e-7), name
    objectives = [validation_objective(model(data), data, device=CPU)[1].value for data in sets]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-6)
    batches = [BatchStream(data, batch_size=40, seed=0).batch(2) for data in sets]
    assert torch.equal(batches[0].length, batches[1].length)
    losses = [
        float(model(data).loss("model", batch, torch.Generator())[0].detach())
        for data, batch in zip(sets, batches, strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-7)


def test_numbers_against_loops_over_the_steps_that_count(sets: list[DataSet]) -> None:
    part, found = sets[1].splits["test"], measured(sets[1])
    chain = model(sets[1])
    start, follow = torch.sigmoid(torch.tensor(0.3)).item(), torch.sigmoid(torch.tensor([-1.0, 0.7])).tolist()
    nats, squares, wrong, labelled = [], [], 0, 0
    for x, y, length in zip(part.x, part.y, part.length, strict=True):
        total = square = 0.0
        for t in range(length):
            p = start if t == 0 else follow[x[t - 1]]
            total += np.log(p if x[t] else 1 - p)
            square += (p - x[t]) ** 2
            if y[t] >= 0:
                labelled += 1
                wrong += int(chain.rule[int(x[t - 1]) if t else 0, int(x[t])].argmax() != y[t])
        nats.append(total)
        squares.append(square / length)
    assert found["log_likelihood"].value == pytest.approx(np.mean(nats), abs=1e-6)
    per_step = found["log_likelihood_per_step"]
    assert (per_step.value, per_step.n) == (
        pytest.approx(np.sum(nats) / part.length.sum(), abs=1e-6),
        part.length.sum(),
    )
    assert per_step.direction == "higher"
    assert found["reconstruction_mse"].value == pytest.approx(np.mean(squares), abs=1e-6)
    error = found["classification_error"]
    assert (error.value, error.n, error.unit) == (pytest.approx(wrong / labelled), labelled, "share of steps")
    assert sets[1].unlabelled("test") == part.length.sum() - labelled
    assert not {"log_likelihood_bits_per_dim"} & found.keys()
