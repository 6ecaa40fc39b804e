"""Traversals: one row a dimension of the code, from end to end, named after the factor that explains it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.config import compose
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.runs.run import train
from dgmbench.runs.sampling import sample_run
from dgmbench.runs.traversals import BEYOND, STEPS, traversals, variance_explained

FACTORS = (("row", 4), ("tone", 2))
SPEC = DataSpec((1, 2, 2), "real", factors=FACTORS)


class Known(Model):
    """Codes are the first three pixels, the second of them a hundredfold."""

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * torch.tensor([1.0, 100.0, 1.0])

    def decode(self, code: Tensor) -> Tensor:
        return torch.cat([code / torch.tensor([1.0, 100.0, 1.0]), 5 * code[:, :1]], 1).view(-1, 1, 2, 2)


@pytest.fixture
def batch() -> Batch:
    """The first pixel is the tone, the second half the row and half noise, the third a constant."""
    y = torch.arange(400) % 8
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0))
    row, tone = (y // 2).float(), (y % 2).float()
    return Batch(torch.stack([tone, row + row.std() * noise, 0 * row + 1, row], 1).view(-1, 1, 2, 2), y=y)


def test_each_row_varies_one_dimension_of_the_first_example(batch: Batch) -> None:
    model = Known(SPEC)
    found = traversals(model, batch, SPEC)
    codes = model.encode(batch.x)
    assert found.x.shape == (3, STEPS, 1, 2, 2)
    assert [name.split()[0] for name in found.names] == ["z0", "z1", "z2"], "the one that changes most first"
    for row, dim in enumerate((0, 1, 2)):
        again = model.encode(found.x[row])
        low, high = np.quantile(codes[:, dim].numpy(), [BEYOND, 1 - BEYOND])
        assert torch.allclose(again[:, dim], torch.linspace(low, high, STEPS), rtol=1e-4, atol=1e-4)
        others = [d for d in range(3) if d != dim]
        assert torch.allclose(again[:, others], codes[:1, others].expand(STEPS, 2))
        assert torch.allclose(found.values[row], again[:, dim], rtol=1e-4)


def test_rows_are_named_after_the_factor_that_explains_them(batch: Batch) -> None:
    names = traversals(Known(SPEC), batch, SPEC).names
    assert names[0] == "z0 tone 1.00"
    assert names[1].startswith("z1 row 0.")
    assert 0.4 < float(names[1].split()[-1]) < 0.6
    assert names[2] == "z2 unused"
    plain = traversals(Known(SPEC), Batch(batch.x), SPEC).names
    assert plain == ["z0", "z1", "z2 unused"]
    values = np.array([[0.0], [0.0], [2.0], [4.0]])
    assert variance_explained(values, np.array([0, 0, 1, 1])) == pytest.approx(9 / 11), "2.25 of 2.75"


def test_what_has_none_is_told(batch: Batch) -> None:
    with pytest.raises(UserError, match="has no traversals"):
        traversals(Model(SPEC), batch, SPEC)
    with pytest.raises(UserError, match="n must be at least 2"):
        traversals(Known(SPEC), Batch(batch.x[:1]), SPEC)


def test_from_a_run(tmp_path: Path) -> None:
    words = ["model=vae", "model.hidden_sizes=[8]", "model.latent=2", "data=shapes", "trainer.budget=3ba"]
    words += ["protocol=quick", "trainer.progress=false", f"paths.outputs={tmp_path}"]
    run = train(compose("train", words)).run
    picture, names, array = sample_run(run, n=20, show="traversals")
    assert picture.name == "best-n20-s0-traversals.png"
    assert picture.stat().st_size > 1000
    assert np.load(array)["x"].shape == (2, STEPS, 1, 16, 16)
    assert len(names.read_text().splitlines()) == 2
