"""log Z step by step: exact for every step, or annealed for some of them; both against loops over frames."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.data.dataset import DataSet, Split
from dgmbench.data.spec import DataSpec
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.models.boltzmann.couplings import GeometricPath
from dgmbench.models.boltzmann.rtrbm import Rtrbm

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "boltzmann" / "machines"))
from small_sequences import randomised, step_log_prob

CPU = torch.device("cpu")
SCHEDULE = {"chains": 8, "temperatures": 60, "spacing": "even", "burn_in": 20}
PROTOCOL: dict[str, Any] = {
    "seed": 0, "k": 1, "max_examples": None, "ais": SCHEDULE, "quality": {"samples": 20, "features": None},
}  # fmt: skip


def data(lengths: bool) -> DataSet:
    rng, spec = np.random.RandomState(0), DataSpec((4, 3), "binary", lengths=lengths)
    splits = {}
    for name, n in (("train", 20), ("valid", 15), ("test", 15)):
        length = rng.randint(1, 5, n) if lengths else np.full(n, 4)
        x = (rng.rand(n, 4, 3) < 0.4).astype(np.uint8)
        x[np.arange(4) >= length[:, None]] = 0
        splits[name] = Split(x, None, None, length.astype(np.int64) if lengths else None)
    return DataSet("steps", spec, splits, "hash")


def model(spec: DataSpec) -> Rtrbm:
    torch.manual_seed(0)
    return randomised(Rtrbm(spec, hidden=2, sample_steps=5), 0.5).float()  # type: ignore[return-value]


def by_hand(model: Rtrbm, part: Split) -> list[list[float]]:
    """log p of every frame that counts, example by example."""
    found = []
    with torch.no_grad():
        for i, x in enumerate(torch.from_numpy(part.x).float()):
            steps = 4 if part.length is None else int(part.length[i])
            r, own = model.initial.sigmoid(), []
            for v in x[:steps]:
                b = model.hidden_bias + r @ model.recurrent
                own.append(float(step_log_prob(v, model.weight, model.visible_bias, b)))
                r = (v @ model.weight + b).sigmoid()
            found.append(own)
    return found


def measured(data: DataSet, model: Rtrbm) -> dict[str, Any]:
    evaluator = Evaluator(data, PROTOCOL, split="test", rule="best", averaged=False, device=CPU)
    return {name: (metric, protocol) for name, (metric, protocol) in evaluator.measure(model).items()}


@pytest.mark.parametrize("lengths", [False, True])
def test_every_step_is_counted_once_with_its_own_log_z(lengths: bool) -> None:
    set_ = data(lengths)
    machine = model(set_.spec)
    each, found = by_hand(machine, set_.splits["test"]), measured(set_, machine)
    frames = [value for own in each for value in own]
    assert found["log_likelihood"][0].value == pytest.approx(np.mean([sum(own) for own in each]), abs=1e-5)
    per_step = found["log_likelihood_per_step"][0]
    assert (per_step.value, per_step.n, per_step.kind) == (
        pytest.approx(np.mean(frames), abs=1e-5),
        len(frames),
        "exact",
    )
    assert not [name for name in found if name.startswith("log_likelihood_bits")]
    name, objective = validation_objective(machine, set_, device=CPU)
    wanted = np.mean([value for own in by_hand(machine, set_.splits["valid"]) for value in own])
    assert (name, objective.value) == ("log_likelihood_per_step", pytest.approx(wanted, abs=1e-5))


def test_annealed_steps_bracket_the_exact_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    set_ = data(lengths=True)
    machine = model(set_.spec)
    frames = [value for own in by_hand(machine, set_.splits["test"]) for value in own]
    monkeypatch.setattr(GeometricPath, "exact_log_partition", lambda path: None)
    found = measured(set_, machine)
    assert "log_likelihood" not in found
    metric, protocol = found["log_likelihood_ais_per_step"]
    assert protocol["steps"] == {"random": 24, "of": len(frames)}
    assert (metric.n, metric.unit) == (24, "nats/step")
    assert abs(metric.value - np.mean(frames)) < 4 * metric.se
    nats = found["log_likelihood_ais"][0]
    assert nats.value == pytest.approx(metric.value * len(frames) / 15)
    assert nats.se == pytest.approx(metric.se * len(frames) / 15)
    low, high = (found[f"log_likelihood_{side}_per_step"][0].value for side in ("reverse_ais", "ais"))
    assert abs(high - low) < 0.1
    assert validation_objective(machine, set_, device=CPU)[0] == "log_likelihood_ais_per_step"
