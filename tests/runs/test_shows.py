"""What ``dgm sample show=...`` can show, and ``show=styles``: one noise a row, one class a column."""

import re
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Generator

from dgmbench.command import main as cli
from dgmbench.config import config_dir
from dgmbench.config.schemas import Sampling
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.vae.ssvae import Ssvae
from dgmbench.runs.shows import SHOWN, styles

SPEC = DataSpec((1, 4, 4), "binary", num_classes=3)
X = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)


def make(variant: str) -> Ssvae:
    torch.manual_seed(0)
    return Ssvae(SPEC, variant=variant, hidden_sizes=(8,), latent=2)  # type: ignore[arg-type]


def test_everything_that_can_be_shown_can_be_asked_for_and_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    ways = {*SHOWN, "samples", "predictions", "alignments", "traversals"}
    assert set(get_args(get_type_hints(Sampling)["show"])) == ways
    with pytest.raises(SystemExit):
        cli.main(["sample", "--help"])
    (listed,) = re.findall(r"\[show=([\w|\s]+)\]", capsys.readouterr().out)
    assert set(re.split(r"[|\s]+", listed)) == ways
    explained = (config_dir() / "sample.yaml").read_text()
    assert all(re.search(rf"\b{way}\b", explained) for way in ways)


def test_a_row_has_one_noise_under_every_class() -> None:
    model = make("m2")
    found = styles(model, Batch(X), SPEC, Generator().manual_seed(1))
    assert found.shape == (5, 3, 1, 4, 4)
    for label in range(3):
        alone = model.sample(5, torch.full((5,), label), generator=Generator().manual_seed(1))
        assert torch.equal(found[:, label], alone)
    assert (found[:, 0] != found[:, 1]).any()
    # without what the decoder sees of the class, a row would be one picture
    with torch.no_grad():
        first = next(m for m in model.top.decoder.modules() if isinstance(m, torch.nn.Linear))  # type: ignore[union-attr]
        first.weight[:, 2:] = 0
    same = styles(model, Batch(X), SPEC, Generator().manual_seed(1))
    assert torch.equal(same, same[:, :1].expand_as(same))
    assert SHOWN["styles"] is styles


def test_a_model_without_classes_says_so() -> None:
    with pytest.raises(UserError, match="neither mixes styles"):
        styles(make("m1"), Batch(X), SPEC, Generator())
