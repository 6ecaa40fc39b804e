"""Samples under the grammar that made the data, and labels by Bayes' rule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Generator, Tensor

from dgmbench.config import config_dir
from dgmbench.data import DataSet, load
from dgmbench.data.grammar import ENGLISH
from dgmbench.evaluation.parts import Context
from dgmbench.evaluation.quality.classification import classification
from dgmbench.evaluation.quality.oracle import against_oracle
from dgmbench.models.contract import Model
from dgmbench.nn.labels import marginal, start_class_prior


def context(name: str) -> Context:
    data = load(yaml.safe_load((config_dir() / "data" / f"{name}.yaml").read_text()), Path("unused"))
    return Context(data, {"seed": 0, "max_examples": None}, "test", torch.device("cpu"))


def test_the_oracle_of_its_own_sentences_is_the_entropy() -> None:
    place = context("text_small")
    x = torch.from_numpy(place.data.splits["test"].x)
    found = {name: metric for name, metric, _ in against_oracle(x, place)}
    assert found["oracle_possible"].value == 1
    nll = found["oracle_nll"]
    assert nll.se is not None
    assert abs(nll.value - ENGLISH.entropy()) < 5 * nll.se
    words = np.array(place.data.spec.vocabulary)[x[0].numpy()]
    sentence = [str(word) for word in words if word != words[x[0].numpy() == 0][0]]
    assert place.data.oracle(x[:1].numpy())[0] == pytest.approx(ENGLISH.log_prob(sentence))


def test_the_oracle_knows_what_cannot_be() -> None:
    place = context("text_small")
    x = torch.from_numpy(place.data.splits["test"].x)[:300]
    shuffled = x.flip(1).roll(-1, 1)  # ends first
    found = {name: metric for name, metric, _ in against_oracle(torch.cat([x, shuffled]), place)}
    assert found["oracle_possible"].value == pytest.approx(0.5)
    alone = {name: metric for name, metric, _ in against_oracle(x, place)}
    assert found["oracle_nll"].value == pytest.approx(alone["oracle_nll"].value)
    assert [name for name, _, _ in against_oracle(shuffled, place)] == ["oracle_possible"]


def test_replies_are_judged_under_the_first_turns_that_they_were_drawn_under() -> None:
    place = context("dialogues")
    rows = place.chunks.beside(0, 500).index
    assert rows is not None
    x = torch.from_numpy(place.data.splits["test"].x[rows.numpy()])
    found = {name: metric for name, metric, _ in against_oracle(x, place)}
    assert found["conditional_oracle_possible"].value == 1
    nll = found["conditional_oracle_nll"]
    assert nll.se is not None
    assert abs(nll.value - place.data.meta["remarks"]["entropy_nats"]) < 4 * nll.se
    others = {name: metric for name, metric, _ in against_oracle(x.roll(1, 0), place)}
    assert others["conditional_oracle_possible"].value < 0.5, "replies to other turns"


def test_data_without_an_oracle_say_nothing() -> None:
    place = context("digits_binary")
    assert list(against_oracle(torch.from_numpy(place.data.splits["test"].x), place)) == []


class Gaussians(Model):
    """p(x | y) around a centre for each label."""

    def __init__(self, data: DataSet) -> None:
        super().__init__(data.spec)
        start_class_prior(self, data.spec)
        train = data.splits["train"]
        assert train.y is not None
        x = torch.from_numpy(train.x).flatten(1).float()
        y = torch.from_numpy(train.y)
        self.centres = torch.stack([x[y == label].mean(0) for label in range(data.spec.num_classes or 0)])

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            return marginal(lambda label: self.log_prob(x, label), self.class_log_prior, len(x))
        return -(x.flatten(1).float() - self.centres[y]).square().sum(1)


class Classifies(Gaussians):
    def classify(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.spec.num_classes or 0)  # always the first label


class Bounded(Gaussians):
    def elbo(self, x: Tensor, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return super().log_prob(x, y)

    log_prob = None  # type: ignore[assignment]


def error(model: Model, place: Context) -> tuple[float, Any]:
    ((name, metric, details),) = classification(model, place, lambda text: None)
    assert name == "classification_error"
    return metric.value, details["by"]


def test_bayes_rule_is_the_nearest_centre() -> None:
    place = context("digits")
    model, test = Gaussians(place.data), place.data.splits["test"]
    x = torch.from_numpy(test.x).flatten(1).float()
    nearest = torch.cdist(x, model.centres).argmin(1)
    value, by = error(model, place)
    assert value == pytest.approx(float((nearest != torch.from_numpy(test.y)).double().mean()))
    assert 0.02 < value < 0.3
    assert by == "log p(x | y) + log p(y)"
    bounded, by = error(Bounded(place.data), place)
    assert bounded == value
    assert by.startswith("elbo")


def test_a_classifier_of_the_models_own_comes_first() -> None:
    place = context("digits")
    value, by = error(Classifies(place.data), place)
    assert value == pytest.approx(float((place.data.splits["test"].y != 0).mean()))
    assert by == "classify"


def test_models_and_data_without_labels_are_not_classified() -> None:
    digits, text = context("digits"), context("text_small")
    assert list(classification(Model(digits.data.spec), digits, lambda text: None)) == []
    assert list(classification(Gaussians(digits.data), text, lambda text: None)) == []
