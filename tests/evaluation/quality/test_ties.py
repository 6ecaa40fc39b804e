"""Distances that are equal count as equal: against exact integer arithmetic, and wherever the origin lies."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgmbench.config import compose, resolve
from dgmbench.data import load
from dgmbench.evaluation.quality.feature_set import Distances
from dgmbench.evaluation.quality.memorisation import memorisation
from dgmbench.evaluation.quality.prdc import Neighbourhoods, jackknifed_neighbourhoods


def exact_distances(x: Tensor, y: Tensor) -> Tensor:
    """Of integer values, int64."""
    return (x[:, None].long() - y[None].long()).square().sum(-1)


def exact_measures(x: Tensor, y: Tensor, k: int = 5) -> dict[str, float]:
    """The five measures of integer values, without any rounding."""
    rr, ff, rf = exact_distances(x, x), exact_distances(y, y), exact_distances(x, y)
    near_x, near_y = rr.sort(1).values, ff.sort(1).values
    inside = rf <= near_x[:, k, None]
    pairs = ((near_x[:, 1], rf.amin(1)), (near_y[:, 1], rf.amin(0)))
    told = torch.cat([(own < other).double() + 0.5 * (own == other).double() for own, other in pairs])
    return {
        "precision": float(inside.any(0).double().mean()),
        "recall": float((rf <= near_y[:, k]).any(1).double().mean()),
        "density": int(inside.sum()) / (k * len(y)),
        "coverage": float(inside.any(1).double().mean()),
        "two_sample": float(told.mean()),
    }


def exact_memorisation(train: Tensor, held_out: Tensor, samples: Tensor) -> float:
    """The excess share of training examples among the nearest ones of integer values."""
    both = exact_distances(samples, torch.cat([train, held_out]))
    nearest = (both == both.amin(1, keepdim=True)).double()
    p = float((nearest[:, : len(train)].sum(1) / nearest.sum(1)).mean())
    p_0 = len(train) / both.shape[1]
    return (p - p_0) / (1 - p_0)


@pytest.fixture(scope="module", params=["digits_binary", "digits"])
def splits(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    data = load(resolve(compose("train", ["model=made", f"data={request.param}"]))["data"], Path())
    return {name: torch.from_numpy(split.x).flatten(1) for name, split in data.splits.items()}


# as they are, with rounding in every value, and with a shift that single precision holds in its last digits only
PLACES = [(1.0, 0.0), (255.0, 0.0), (16.0, 1.0), (255.0, 7.0)]


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(("levels", "shift"), PLACES)
def test_measures_of_pixels_are_those_of_integer_arithmetic(
    splits: dict[str, Tensor], levels: float, shift: float, single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if single:
        monkeypatch.setattr("dgmbench.evaluation.quality.feature_set.DOUBLE", 0)
    train, valid, test = (splits[name] for name in ("train", "valid", "test"))
    a, b, c = (part.float() / levels + shift for part in (train, valid, test))
    found = jackknifed_neighbourhoods(c[: len(b)], b)
    assert found.means() == pytest.approx(exact_measures(test[: len(valid)], valid), abs=1e-9)
    assert memorisation(a, c, b).excess == pytest.approx(exact_memorisation(train, test, valid), abs=1e-9)
    errors = jackknifed_neighbourhoods(test[: len(valid)].double(), valid.double())
    assert [m.se for m in found] == pytest.approx([m.se for m in errors], abs=1e-9)


def test_shares_of_a_tie_leave_nothing_to_notice_where_nothing_is_memorised() -> None:
    excess, claimed = [], []
    for seed in range(60):
        x = (torch.rand((800, 16), generator=torch.Generator().manual_seed(seed)) < 0.3).float()
        found = memorisation(x[:450], x[450:600], x[600:])
        excess.append(found.excess)
        claimed.append(found.se)
    spread = float(np.std(excess, ddof=1))
    # giving a tie of the least distances to chance would find +0.17, twelve standard errors
    assert abs(np.mean(excess)) < 4 * spread / math.sqrt(60)
    # the relative error of a standard deviation from 60 values is 9%
    assert spread / np.sqrt(np.mean(np.square(claimed))) == pytest.approx(1, abs=0.36)


def test_the_error_under_chance_is_the_variance_over_all_ways_to_choose_the_training_set() -> None:
    generator = torch.Generator().manual_seed(0)
    pool, samples = (torch.randint(0, 3, (n, 2), generator=generator).float() for n in (9, 5))
    values, claimed = [], []
    for number in range(2**9):
        chosen = torch.tensor([number >> i & 1 for i in range(9)], dtype=torch.bool)
        if chosen.sum() == 6:
            found = memorisation(pool[chosen], pool[~chosen], samples)
            values.append(found.excess)
            claimed.append(found.se)
    assert len(values) == 84
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert claimed == pytest.approx([np.std(values)] * 84)


def test_more_samples_than_a_block_of_distances_holds() -> None:
    train, held_out, samples = (
        torch.randint(0, 4, (n, 5), generator=torch.Generator().manual_seed(n)) for n in (300, 200, 1100)
    )
    found = memorisation(train.float(), held_out.float(), samples.float())
    assert found.excess == pytest.approx(exact_memorisation(train, held_out, samples), abs=1e-9)


def test_constant_features_say_nothing() -> None:
    same = torch.full((40, 3), 0.3)
    found = jackknifed_neighbourhoods(same, same[:30])
    assert found.means() == {"precision": 1, "recall": 1, "density": 8, "coverage": 1, "two_sample": 0.5}
    copies = memorisation(same, same[:20], same[:10])
    assert (copies.excess, copies.se, copies.distance_ratio) == (pytest.approx(0), pytest.approx(0), None)


def test_what_is_further_than_rounding_is_further() -> None:
    x, y = torch.zeros((1, 2)), torch.tensor([[1.0, 0.0], [1 + 1e-5, 0.0], [1 + 2**-22, 0.0]])
    distances = Distances.between(x, y)
    ((_, found),) = distances.of(x, y)
    reach = distances.reach(x, found.min(1).values)
    assert (found <= reach[:, None]).tolist() == [[True, False, True]]


# ---------------------------------------------------------------------- the jackknife


def without(x: Tensor, which: int) -> Tensor:
    return torch.cat([x[:which], x[which + 1 :]])


def sets(kind: str) -> tuple[Tensor, Tensor, int]:
    g = torch.Generator().manual_seed(1)
    if kind == "ties":
        return torch.randint(0, 3, (40, 4), generator=g), torch.randint(0, 4, (35, 4), generator=g), 3
    n, m, d, k = {"plane": (30, 40, 2, 3), "space": (30, 23, 8, 5), "no further neighbour": (6, 6, 2, 5)}[kind]
    x, y = torch.randn((n, d), generator=g), torch.randn((m, d), generator=g) + 0.7
    return (1e4 * x).round().long(), (1e4 * y).round().long(), k


@pytest.mark.parametrize("kind", ["plane", "space", "ties"])
def test_errors_are_those_of_leaving_out_each_example_in_turn(kind: str) -> None:
    x, y, k = sets(kind)
    found = jackknifed_neighbourhoods(x.double(), y.double(), k=k)
    assert found.means() == pytest.approx(exact_measures(x, y, k), abs=1e-12)
    left = [[exact_measures(without(x, i), y, k) for i in range(len(x))]]
    left.append([exact_measures(x, without(y, j), k) for j in range(len(y))])
    for name in Neighbourhoods._fields:
        variance = sum((len(each) - 1) * np.var([values[name] for values in each]) for each in left)
        assert getattr(found, name).se == pytest.approx(math.sqrt(variance), rel=1e-9, abs=1e-12), name


def test_the_last_neighbour_has_none_beyond() -> None:
    x, y, k = sets("no further neighbour")
    found = jackknifed_neighbourhoods(x.double(), y.double(), k=k)
    assert found.means() == pytest.approx(exact_measures(x, y, k), abs=1e-12)
    assert all(math.isfinite(measure.se) for measure in found)
