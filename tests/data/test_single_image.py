"""One photograph that is all three splits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dgmbench.data import load
from dgmbench.data.single_image import SingleImage
from dgmbench.errors import UserError

from .conftest import Config


@pytest.mark.parametrize(("picture", "number"), [("china", 0), ("flower", 1)])
def test_it_is_the_centre_of_the_photograph_in_every_split(picture: str, number: int, config: Config) -> None:
    data = load(config("single_image", picture=picture, size=[48, 60]), Path("nowhere"))
    photograph = load_sample_images().images[number]
    middle = Image.fromarray(photograph[:, 53:587])  # 427 * 60 / 48 = 534 of 640 columns
    wanted = np.asarray(middle.resize((60, 48), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    for part in data.splits.values():
        assert part.x.shape == (1, 3, 48, 60)
        assert (part.x[0] == wanted).all()
    assert any("alike" in note for note in data.meta["notes"])
    assert data.meta["split"]["test"]["origin"].endswith(picture)


def test_the_whole_photograph_can_be_had() -> None:
    part = SingleImage(size=(427, 640)).read(Path()).parts["train"]
    assert (np.asarray(part.x)[0].transpose(1, 2, 0) == load_sample_images().images[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"picture": "chain"}, "china"),
        ({"size": 7}, r"from \[8,8\]"),
        ({"size": (428, 640)}, r"\[428, 640\] must be from"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SingleImage(**arguments)  # type: ignore[arg-type]
