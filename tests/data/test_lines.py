"""Batches made of blocks in which one factor varies."""

from collections import Counter

import numpy as np
import pytest
import torch

from dgmbench.data.lines import Lines, lines_of
from dgmbench.data.policy import BatchPolicy, Places, places
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

FACTORS = (("row", 3), ("tone", 2), ("column", 4))
SPEC = DataSpec((1, 4, 4), "binary", factors=FACTORS)
SIZES = tuple(size for _, size in FACTORS)


def labels() -> np.ndarray:
    """Two thirds of all combinations, some of them unknown."""
    y = np.random.RandomState(0).permutation(24)
    return np.where(np.arange(24) < 16, y, -1)


def made(block: int = 3, batch_size: int = 12, **settings: int) -> Lines:
    found = places(BatchPolicy(varied=block), labels(), SPEC, **{"world_size": 1, "seed": 7, **settings},
                   batch_size=batch_size)  # fmt: skip
    assert isinstance(found, Lines)
    return found


def test_a_block_is_of_examples_that_differ_in_one_factor_alone() -> None:
    y = labels()
    index = made().index(0, 12 * 100).numpy()
    assert (y[index] >= 0).all()
    values = np.stack(np.unravel_index(y[index], SIZES), 1).reshape(-1, 3, 3)
    differ = (values != values[:, :1]).any(1)
    assert (differ.sum(1) == 1).all()
    share = differ.mean(0)
    assert (np.abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / 400)).all(), "every factor as often as any other"


def test_every_block_varies_the_factor_that_is_asked_for() -> None:
    """All of its lines come, and no other factor differs within a block."""
    y = labels()
    settings = {"batch_size": 12, "world_size": 1, "seed": 7}
    found = places(BatchPolicy(varied=3, factor="tone"), y, SPEC, **settings)
    assert isinstance(found, Lines)
    values = np.stack(np.unravel_index(y[found.index(0, 600).numpy()], SIZES), 1).reshape(-1, 3, 3)
    differ = (values != values[:, :1]).any(1)
    assert (differ == [False, True, False]).all()
    assert len(np.unique(values[:, 0, [0, 2]], axis=0)) == len(lines_of(y, SPEC, 1))
    with pytest.raises(UserError, match="did you mean tone"):
        places(BatchPolicy(varied=3, factor="tune"), y, SPEC, **settings)


def test_a_block_repeats_an_example_only_where_its_line_has_no_other() -> None:
    y = labels()
    lines = {tuple(sorted(line)) for k in range(3) for line in lines_of(y, SPEC, k)}
    of = {example: [line for line in lines if example in line] for example in range(24)}
    for block in made().index(0, 300).view(-1, 3).tolist():
        (line,) = [line for line in of[block[0]] if set(block) <= set(line)]
        assert max(Counter(block).values()) == (2 if len(line) == 2 else 1)


def test_lines_are_all_examples_that_agree_in_the_other_factors() -> None:
    y = labels()
    values = np.stack(np.unravel_index(y[:16], SIZES), 1)
    for k in range(3):
        found = {tuple(sorted(line)) for line in lines_of(y, SPEC, k)}
        wanted = set()
        for i in range(16):
            same = [j for j in range(16) if np.array_equal(np.delete(values[i], k), np.delete(values[j], k))]
            wanted |= {tuple(same)} if len(same) > 1 else set()
        assert found == wanted
    assert set(made().examples.tolist()) <= set(range(16))


def test_places_depend_on_the_seed_and_their_number_alone() -> None:
    whole = made().index(0, 60)
    parts = torch.cat([made().index(a, b) for a, b in ((0, 7), (7, 12), (12, 41), (41, 60))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, made(seed=8).index(0, 60))
    assert torch.equal(whole, made(world_size=2).index(0, 60))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 10}, "trainer.batch_size=9"),
        ({"world_size": 3}, "on each of 3 processes"),
        ({"block": 1}, "at least 2"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        made(**settings)


def test_data_without_factors_or_lines_are_refused() -> None:
    with pytest.raises(UserError, match="known factors"):
        Lines(2, labels(), DataSpec((3,), "real"), batch_size=4, world_size=1, seed=0)
    with pytest.raises(UserError, match="differ in one factor alone"):
        Lines(2, np.array([0, 9, 18]), SPEC, batch_size=4, world_size=1, seed=0)
    assert isinstance(places(BatchPolicy(balanced="row"), labels(), SPEC, batch_size=4, world_size=1, seed=0), Places)
