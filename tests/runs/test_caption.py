"""A caption of the user's own: pictures under it, and sentences in place of what does not work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.data.shapes_captions import ShapesCaptions
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import decode_tokens
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.runs import sampling
from dgmbench.runs.load import Run


class Echo(Model):
    """Pictures that are as bright as the first word's number."""

    def sample(
        self, n: int, y: Tensor | None = None, *, given: Tensor | None = None, generator: object = None
    ) -> Tensor:
        bright = torch.zeros(n) if given is None else given[:, 0]
        return bright.view(-1, 1, 1, 1).expand(-1, *self.spec.shape).to(torch.uint8)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = ShapesCaptions(train=2, valid=2, test=2).read(tmp_path).spec

    def make(of: DataSpec = spec, **arguments: Any) -> tuple[Path, ...]:
        run = Run(tmp_path, Echo(of), of, {"names": {"data": "toy"}}, None, "best", torch.device("cpu"))
        monkeypatch.setattr(sampling, "load_run", lambda *_, **__: run)
        return sampling.sample_run(tmp_path, n=3, accelerator="cpu", **arguments)

    make.spec = spec  # type: ignore[attr-defined]
    return make


def test_pictures_of_a_caption(made: Any) -> None:
    picture, array = made(caption="There is a small red circle")
    assert picture.name == "best-n3-s0-there-is-a-small-red-circle.png"
    found = np.load(array)
    assert decode_tokens(found["given"], made.spec.given) == ["there is a small red circle"]
    assert found["x"].shape == (3, 3, 32, 32)
    assert (found["x"] == made.spec.given.vocabulary.index("there")).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"caption": "a blue elephant"}, "elephant"),
        ({"caption": ""}, "caption= has no words"),
        ({"caption": "a circle", "show": "interpolations"}, "caption= is for samples"),
        ({"caption": "a circle", "of": DataSpec((3, 4, 4), "binary")}, "trained on data without captions"),
        (
            {"caption": "a circle", "of": DataSpec((3, 4, 4), "binary", given=DataSpec((2,), "binary"))},
            "the conditions of these data are no sentences",
        ),
    ],
)
def test_captions_that_do_not_work(made: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**arguments)
