"""Examples whose label is not known are left out of what looks at labels, and counted; the rest is as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.evaluation.features.classifier import Classifier
from dgmbench.models.contract import Model
from dgmbench.nn.labels import marginal

CPU = torch.device("cpu")
SPEC = DataSpec((5,), "binary", num_classes=3)
PROTOCOL: dict[str, Any] = {"seed": 0, "k": 1, "max_examples": None, "quality": {"samples": 60, "features": []}}


class Coins(Model):
    """p(x | y): coins of another side for each class; codes are the values themselves."""

    def __init__(self, *, certain: bool = True) -> None:
        super().__init__(SPEC)
        self.register_buffer("class_log_prior", torch.tensor([0.5, 0.3, 0.2]).log())
        self.p = torch.tensor([0.2, 0.5, 0.9])
        if certain:
            self.log_prob = self._log_prob

    def _log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        def given(label: Tensor) -> Tensor:
            p, ones = self.p[label], x.float().sum(1)
            return ones * p.log() + (5 - ones) * (1 - p).log()

        return marginal(given, self.class_log_prior, len(x)) if y is None else given(y)

    def encode(self, x: Tensor) -> Tensor:
        return x.float()


def data(*, unknown: float) -> DataSet:
    splits = {}
    for number, split in enumerate(("train", "valid", "test")):
        random = np.random.RandomState(number)
        y = random.randint(3, size=130)
        x = (random.rand(130, 5) < np.array([0.2, 0.5, 0.9])[y][:, None]).astype(np.uint8)
        splits[split] = Split(x, np.where(random.rand(130) < unknown, -1, y))
    return DataSet("toy", SPEC, splits, f"{unknown}")


def measured(found: DataSet, **changes: Any) -> dict[str, Any]:
    evaluator = Evaluator(found, PROTOCOL | changes, split="test", rule="best", averaged=False, device=CPU)
    return evaluator.measure(Coins())


def test_numbers_of_labels_are_those_of_the_labelled_examples() -> None:
    some, every = data(unknown=0.4), data(unknown=0.0)
    known = {split: part.y >= 0 for split, part in some.splits.items()}
    alone = replace(every, splits={s: Split(p.x[known[s]], p.y[known[s]]) for s, p in every.splits.items()})
    found, wanted = measured(some), measured(alone)
    skipped = int((~known["test"]).sum())
    assert 30 < skipped < 80
    for name in ("log_likelihood_given_y", "classification_error", "linear_probe_error", "nearest_neighbour_error"):
        metric, protocol = found[name]
        assert (metric.value, metric.n) == (wanted[name][0].value, 130 - skipped), name
        assert protocol["unlabelled"] == skipped
        assert "unlabelled" not in wanted[name][1]
    assert found["linear_probe_error"][1]["probe_unlabelled"] == int((~known["train"]).sum())
    whole = measured(every)["log_likelihood"][0]
    assert found["log_likelihood"][0].value == whole.value  # of all examples
    assert found["log_likelihood"][0].n == 130


def test_so_many_labelled_examples_are_drawn_of_the_labelled_ones() -> None:
    metric, _ = measured(data(unknown=0.7), max_examples=20)["classification_error"]
    assert metric.n == 20


def test_a_split_without_any_label_has_no_such_numbers() -> None:
    found = data(unknown=0.4)
    found.splits["test"].y[:] = -1
    names = measured(found).keys()
    assert "log_likelihood" in names
    assert not {"log_likelihood_given_y", "classification_error", "linear_probe_error"} & names


def test_the_feature_classifier_learns_from_labelled_examples(tmp_path: Path) -> None:
    """Where those tell the classes apart, it does so on all."""
    few = data(unknown=0.5)
    for part in few.splits.values():
        part.x[:, :3] = part.y[:, None] == np.arange(3)  # unknown ones look like no class
    net = Classifier(SPEC, width=2, images=6000)
    net.prepare(few, None, lambda text: None)
    assert net.accuracy == {"valid": 1.0, "test": 1.0}
    few.splits["valid"].y[:] = -1
    again = Classifier(SPEC, width=2, images=100)
    again.prepare(replace(few, content_hash="other"), None, lambda text: None)
    assert again.accuracy.keys() == {"test"}


@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_unlabelled_examples_are_counted(unknown: float) -> None:
    found = data(unknown=unknown)
    for split in ("train", "valid", "test"):
        assert found.unlabelled(split) == (found.splits[split].y < 0).sum()
