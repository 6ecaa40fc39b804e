"""``dgm sample truncation=``: the model draws from a part of its latent space, and the file says so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dgmbench.data import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.models.gan.biggan import BigGan
from dgmbench.runs import sampling
from dgmbench.runs.load import Run


class Wide(Model):
    """Samples as large as the truncation."""

    reach = 9.0

    def sample(self, n: int, y: None = None, *, generator: torch.Generator | None = None) -> torch.Tensor:
        return torch.full((n, *self.spec.shape), self.reach)

    def truncate(self, truncation: float, generator: torch.Generator | None = None) -> None:
        self.reach = truncation


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    def load(model: Model) -> None:
        run = Run(tmp_path, model, model.spec, {}, None, "best", torch.device("cpu"))
        monkeypatch.setattr(sampling, "load_run", lambda *_, **__: run)

    return load


def test_samples_are_drawn_at_it_and_named_by_it(of: object, tmp_path: Path) -> None:
    of(Wide(DataSpec((4,), "real")))  # type: ignore[operator]
    *_, array = sampling.sample_run(tmp_path, n=3, truncation=0.5, accelerator="cpu")
    assert "trunc0.5" in array.name
    assert (np.load(array)["x"] == 0.5).all()


def test_a_model_without_is_refused(of: object, tmp_path: Path) -> None:
    of(Model(DataSpec((4,), "real")))  # type: ignore[operator]
    with pytest.raises(UserError, match=r"truncation=0.5: Model does not draw samples at a truncation"):
        sampling.sample_run(tmp_path, n=3, truncation=0.5, accelerator="cpu")


def test_biggan_measures_its_statistics_there() -> None:
    """As setting the attribute and measuring does."""
    torch.manual_seed(0)
    spec = DataSpec((1, 16, 16), "discrete", levels=17, num_classes=3)
    model = BigGan(spec, channels=1, embedding=2, latent=6)
    other = BigGan(spec, channels=1, embedding=2, latent=6)
    other.load_state_dict(model.state_dict())
    model.eval().truncate(0.3, torch.Generator().manual_seed(1))
    other.eval().truncation = 0.3
    before = {name: value.clone() for name, value in other.state_dict().items()}
    other.stand(torch.Generator().manual_seed(1))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(UserError, match=r"truncation"):
        model.truncate(0.0)
