"""Disentanglement in the evaluator: of models that encode, on data with factors, and only there."""

from pathlib import Path

import numpy as np
import torch
import yaml

from dgmbench.config import config_dir
from dgmbench.data import DataSet, load
from dgmbench.evaluation.codes.measure import disentanglement
from dgmbench.evaluation.parts import Context
from dgmbench.models.contract import Model

NAMES = ["mig", "beta_vae_score", "factor_vae_score", "dci_disentanglement", "dci_completeness", "dci_informativeness"]


def data_set(name: str) -> DataSet:
    return load(yaml.safe_load((config_dir() / "data" / f"{name}.yaml").read_text()), Path("unused"))


class Knowing(Model):
    """Encodes a picture of shapes by looking its factors up."""

    def __init__(self, data: DataSet) -> None:
        super().__init__(data.spec)
        sizes = [size for _, size in data.spec.factors or ()]
        self.codes = {
            x.tobytes(): np.array(np.unravel_index(y, sizes), np.float32)
            for part in data.splits.values()
            for x, y in zip(part.x, part.y, strict=True)
        }

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.codes[image.tobytes()] for image in x.numpy()]))


def test_a_model_that_knows_the_factors_scores_high() -> None:
    data = data_set("shapes")
    context = Context(data, {"seed": 0, "max_examples": None}, "test", torch.device("cpu"))
    found = {
        name: (metric, details) for name, metric, details in disentanglement(Knowing(data), context, lambda t: None)
    }
    assert list(found) == [*NAMES, "sap"]
    for name in NAMES:
        assert found[name][0].value > 0.9, name
        assert found[name][0].n == data.size("test")
        assert found[name][1]["factors"] == ["shape", "scale", "angle", "x", "y"]
    assert found["mig"][1]["bins"] == 20


def test_nothing_is_said_where_there_are_no_factors_or_no_codes() -> None:
    digits = data_set("digits_binary")
    context = Context(digits, {"seed": 0, "max_examples": None}, "test", torch.device("cpu"))
    assert list(disentanglement(Knowing(data_set("shapes")), context, lambda t: None)) == []
    shapes = data_set("shapes")
    context = Context(shapes, {"seed": 0, "max_examples": None}, "test", torch.device("cpu"))
    assert list(disentanglement(Model(shapes.spec), context, lambda t: None)) == []


def test_codes_that_cannot_be_judged_get_a_note_and_no_number() -> None:
    data = data_set("shapes")
    few = Context(data, {"seed": 0, "max_examples": 50}, "test", torch.device("cpu"))
    [(name, metric, _)] = disentanglement(Knowing(data), few, lambda t: None)
    assert (name, metric.as_dict()["value"]) == ("mig", None)
    assert metric.note == "Disentanglement needs at least one factor that varies and 100 examples, not 5 and 50."
    lost = Knowing(data)
    lost.codes = {key: code * np.nan for key, code in lost.codes.items()}
    whole = Context(data, {"seed": 0, "max_examples": None}, "test", torch.device("cpu"))
    [(_, metric, _)] = disentanglement(lost, whole, lambda t: None)
    assert "NaN or infinite" in (metric.note or "")
