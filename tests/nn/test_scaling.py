"""Raw values to the interval of a network and back."""

import pytest
import torch

from dgmbench.data import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.scaling import Scaling


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_comes_back_and_what_lies_between_goes_to_the_nearest(levels: int) -> None:
    scaling = Scaling(DataSpec((1,), "discrete", levels=levels))
    x = torch.arange(levels, dtype=torch.uint8)[:, None]
    u = scaling(x)
    assert (float(u.min()), float(u.max())) == (-1, 1)
    for shift in (-0.49, 0.0, 0.49):
        assert torch.equal(scaling.inverse(u + shift * 2 / (levels - 1)), x)
    assert torch.equal(scaling.inverse(torch.tensor([[-9.0], [9.0], [torch.inf]])).flatten().long(),
                       torch.tensor([0, levels - 1, levels - 1]))  # fmt: skip


def test_a_row_of_values_is_one_value_an_example() -> None:
    scaling = Scaling(DataSpec((1,), "discrete", levels=3))
    assert scaling.inverse(torch.tensor([-1.0, 0.2, 0.9])).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="1 of 2 examples"):
        scaling.inverse(torch.tensor([0.0, torch.nan]))


def test_nan_never_becomes_a_level() -> None:
    u = torch.zeros(5, 1, 2, 2)
    u[3, 0, 1, 1] = u[4, 0, 0, 0] = torch.nan
    for kind in ("binary", "discrete"):
        with pytest.raises(UserError, match="2 of 5 examples have values that are NaN"):
            Scaling(DataSpec((1, 2, 2), kind, levels=256)).inverse(u)
    real = Scaling(DataSpec((1, 2, 2), "real")).inverse(u)  # keeps them, for whoever measures to see
    assert int(real.isnan().sum()) == 2
