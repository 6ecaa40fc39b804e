"""Many domains: each picture of the digits once, in colours from which the grey picture can be had back."""

from pathlib import Path

import numpy as np
import pytest

from dgmbench.data.digits import Digits
from dgmbench.data.many_domains import STYLES, DigitsManyDomains


@pytest.mark.parametrize(("size", "top"), [(8, 16), (32, 255)])
def test_every_picture_is_in_one_style_and_can_be_read_back(size: int, top: int) -> None:
    plain = Digits(size=size).read(Path())  # type: ignore[arg-type]
    many = DigitsManyDomains(size=size).read(Path())  # type: ignore[arg-type]
    assert many.spec.factors == (("domain", 4), ("digit", 10))
    assert many.spec.shape == (3, size, size)
    assert many.spec.class_names is not None
    assert many.spec.class_names[27] == "7, blue on white"
    for split, part in many.parts.items():
        domain, digit = np.unravel_index(part.y, (4, 10))
        assert (digit == plain.parts[split].y).all()
        for k, (ink, ground) in enumerate(STYLES.values()):
            x, grey = part.x[domain == k], plain.parts[split].x[domain == k]
            for channel, (full, empty) in enumerate(zip(ink, ground, strict=True)):
                wanted = {(1, 0): grey, (0, 1): top - grey, (0, 0): 0 * grey, (1, 1): 0 * grey + top}[full, empty]
                assert (x[:, channel] == wanted[:, 0]).all()
        counts = np.bincount(part.y, minlength=40).reshape(4, 10)
        assert (np.diff(counts, axis=0) <= 0).all()
        assert (counts[0] - counts[3] <= 1).all()


def test_another_draw_puts_others_into_each_style() -> None:
    first, other = (np.asarray(DigitsManyDomains(draw=k).read(Path()).parts["train"].y) // 10 for k in (0, 1))
    assert 0.2 < (first == other).mean() < 0.3  # by chance
