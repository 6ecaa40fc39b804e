"""The use of codes against counts by hand, and its standard error against fresh sets of examples."""

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml

from dgmbench.config import config_dir
from dgmbench.data import load
from dgmbench.evaluation.codes.usage import code_usage, usage
from dgmbench.evaluation.parts import Context
from dgmbench.models.contract import Model


class Halves(Model):
    """Names a picture's mean level and its first pixel."""

    code_books: ClassVar = {"level": 17, "corner": 34}

    def code_maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"level": x.float().mean((1, 2, 3)).round().long()[:, None], "corner": x[:, :, :1, :2].long()}


def test_perplexity_and_share_by_hand() -> None:
    perplexity, _, used = usage(torch.tensor([[0, 0], [0, 5]]), 8)
    assert perplexity == pytest.approx(4 / 3**0.75)
    assert used == 0.25
    assert usage(torch.arange(8).view(8, 1), 8)[0] == pytest.approx(8)


def test_the_standard_error_is_that_of_fresh_examples() -> None:
    g = torch.Generator().manual_seed(0)
    kinds = torch.tensor(
        [[0.5, 0.3, 0.1, 0.1], [0.0, 0.1, 0.1, 0.8]]
    )  # an example is of one kind, all its places alike
    found = []
    for _ in range(300):
        kind = torch.randint(2, (200,), generator=g)
        found.append(usage(torch.multinomial(kinds[kind], 6, replacement=True, generator=g), 4))
    values, errors = (torch.tensor([each[i] for each in found]) for i in (0, 1))
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=4 / math.sqrt(2 * 300))


def test_it_is_measured_of_models_with_codes_alone() -> None:
    data = load(yaml.safe_load((config_dir() / "data" / "digits.yaml").read_text()), Path("unused"))
    context = Context(data, {"seed": 0, "max_examples": None}, "test", torch.device("cpu"))
    found = {
        name: (metric, details) for name, metric, details in code_usage(Halves(data.spec), context, lambda t: None)
    }
    assert list(found) == ["level_perplexity", "level_usage", "corner_perplexity", "corner_usage"]
    x = torch.as_tensor(data.splits["test"].x)
    assert found["corner_usage"][0].value == len(x[:, :, :1, :2].unique()) / 34
    assert found["level_perplexity"][1]["codes"] == 17
    assert found["corner_perplexity"][1]["places"] == 2
    assert list(code_usage(Model(data.spec), context, lambda t: None)) == []
