"""Two domains: each picture of the digits once, as it is or as its negative, and labels that say both."""

from pathlib import Path

import numpy as np
import pytest

from dgmbench.data.digits import Digits
from dgmbench.data.two_domains import DigitsTwoDomains


@pytest.mark.parametrize(("size", "top"), [(8, 16), (32, 255)])
def test_every_picture_is_in_one_domain_and_can_be_turned_back(size: int, top: int) -> None:
    plain = Digits(size=size).read(Path())  # type: ignore[arg-type]
    both = DigitsTwoDomains(size=size).read(Path())  # type: ignore[arg-type]
    assert both.spec.factors == (("domain", 2), ("digit", 10))
    assert both.spec.num_classes == 20
    assert both.spec.levels == top + 1
    for split, part in both.parts.items():
        domain, digit = np.unravel_index(part.y, (2, 10))
        assert (digit == plain.parts[split].y).all()
        turned = domain[:, None, None, None] == 1
        assert (np.where(turned, top - part.x, part.x) == plain.parts[split].x).all()
        assert part.x.dtype == np.uint8
        counts = np.bincount(part.y, minlength=20).reshape(2, 10)
        assert (counts[0] - counts[1] >= 0).all()
        assert (counts[0] - counts[1] <= 1).all()


def test_domains_are_told_by_their_brightness_and_another_draw_takes_others() -> None:
    train = DigitsTwoDomains().read(Path()).parts["train"]
    domain = np.asarray(train.y) // 10
    assert ((train.x.mean((1, 2, 3)) > 8) == (domain == 1)).all()
    other = np.asarray(DigitsTwoDomains(draw=1).read(Path()).parts["train"].y) // 10
    assert 0.4 < (domain == other).mean() < 0.6  # by chance
