from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.data import BatchStream, DataSpec, evaluation_batches, load, spec_from_card
from dgmbench.data.digits import enlarge
from dgmbench.data.tabular import resolution
from dgmbench.data.toy2d import DENSITIES
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
NOWHERE = Path("/nonexistent")  # embedded sets need no folder


def test_digits_are_scikit_learns(config: Config) -> None:
    from sklearn.datasets import load_digits

    digits = load(config("digits"), NOWHERE)
    assert digits.spec == DataSpec((1, 8, 8), "discrete", levels=17, num_classes=10)
    assert {split: len(part) for split, part in digits.splits.items()} == {"train": 1258, "valid": 180, "test": 359}
    bunch = load_digits()
    original = {
        tuple(image.ravel().astype(int)): label for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    everything = [(x, y) for part in digits.splits.values() for x, y in zip(part.x, part.y, strict=True)]
    assert len(everything) == 1797
    assert all(original[tuple(x.ravel().tolist())] == y for x, y in everything)


def test_the_split_depends_on_the_data_config_alone(config: Config) -> None:
    first, same = load(config("digits"), NOWHERE), load(config("digits"), NOWHERE)
    other = load(config("digits", split_seed=1), NOWHERE)
    assert first.content_hash == same.content_hash != other.content_hash
    assert first.meta["split_hash"] == same.meta["split_hash"] != other.meta["split_hash"]
    assert first.meta["split"]["train"]["count"] == 1258


def test_digits_binary_thresholds_at_eight(config: Config) -> None:
    grey, binary = load(config("digits"), NOWHERE), load(config("digits_binary"), NOWHERE)
    assert binary.spec == DataSpec((1, 8, 8), "binary", num_classes=10)
    for split in ("train", "valid", "test"):
        assert np.array_equal(binary.splits[split].x, grey.splits[split].x >= 8)
        assert binary.splits[split].x.dtype == np.uint8
    assert binary.meta["split_hash"] == grey.meta["split_hash"]


def test_dynamic_digits_average_to_their_grey_levels(config: Config) -> None:
    grey = load(config("digits"), NOWHERE)
    dynamic = load(config("digits_binary", binarise="dynamic"), NOWHERE)
    assert dynamic.spec.kind == "binary"
    assert len({grey.content_hash, dynamic.content_hash, load(config("digits_binary"), NOWHERE).content_hash}) == 3
    assert load(config("digits_binary", binarise="dynamic", split_seed=1), NOWHERE).content_hash != dynamic.content_hash
    draws = 200
    mean = sum(
        next(evaluation_batches(dynamic, "test", batch_size=100, seed=seed)).x[:5].float() for seed in range(draws)
    )
    p = torch.tensor(grey.splits["test"].x[:5]) / 16
    assert torch.all((mean / draws - p).abs() <= 5 * (p * (1 - p) / draws).sqrt())
    batch = BatchStream(dynamic, batch_size=30, seed=0).batch(0)
    assert batch.x.dtype == torch.uint8
    assert batch.x.max() == 1


def test_thresholding_any_grey_set(config: Config) -> None:
    binary = load(config("digits32", binarise="threshold"), NOWHERE)
    assert binary.spec == DataSpec((1, 32, 32), "binary", num_classes=10)
    assert np.array_equal(binary.splits["test"].x, load(config("digits32"), NOWHERE).splits["test"].x >= 128)


def test_digits32_is_the_bilinear_enlargement(config: Config) -> None:
    from torch.nn.functional import interpolate

    digits, large = load(config("digits"), NOWHERE), load(config("digits32"), NOWHERE)
    assert large.spec == DataSpec((1, 32, 32), "discrete", levels=256, num_classes=10)
    small = torch.tensor(digits.splits["valid"].x).double()
    expected = interpolate(small, size=(32, 32), mode="bilinear", align_corners=False) * 255 / 16
    assert (torch.tensor(large.splits["valid"].x).double() - expected).abs().max() <= 0.5 + 1e-9
    assert enlarge(np.full((1, 1, 8, 8), 16, np.uint8)).min() == 255


def test_digits_come_in_two_sizes(config: Config) -> None:
    with pytest.raises(UserError, match=r"data\.size=16 must be one of 8, 32"):
        load(config("digits", size=16), NOWHERE)


@pytest.mark.parametrize(
    ("option", "value"), [("valid", -1), ("test", "many"), ("valid", 1.5), ("test", True), ("split_seed", -1)]
)
def test_impossible_splits_are_refused(config: Config, option: str, value: Any) -> None:
    with pytest.raises(
        UserError, match=rf"The {option} split is {value!r}|data\.{option}={str(value).lower()} must be"
    ):
        load(config("digits", **{option: value}), NOWHERE)


def test_a_split_that_leaves_nothing_is_refused(config: Config) -> None:
    with pytest.raises(UserError, match="leaves none of 1797 for training"):
        load(config("digits", valid=0.6, test=0.4), NOWHERE)
    with pytest.raises(UserError, match="The valid split is empty"):
        load(config("digits", valid=0), NOWHERE)


@pytest.mark.parametrize("density", sorted(DENSITIES))
def test_toy_densities(config: Config, density: str) -> None:
    toy = load(config("toy2d", density=density), NOWHERE)
    assert toy.spec == DataSpec((2,), "real", num_classes=DENSITIES[density][1])
    x, y = toy.splits["train"].x, toy.splits["train"].y
    assert x.shape == (10_000, 2)
    assert x.dtype == np.float32
    assert np.abs(x).max() < 6
    assert toy.content_hash == load(config("toy2d", density=density), NOWHERE).content_hash
    assert toy.content_hash != load(config("toy2d", density=density, seed=1), NOWHERE).content_hash
    counts = np.bincount(y, minlength=DENSITIES[density][1])
    share = 1 / len(counts)
    assert np.abs(counts / len(y) - share).max() < 5 * (share * (1 - share) / len(y)) ** 0.5


def test_checkerboard_fills_the_dark_squares_evenly(config: Config) -> None:
    x = load(config("toy2d", density="checkerboard", train=20_000), NOWHERE).splits["train"].x
    cells = np.floor((x + 4) / 2).astype(int)
    assert np.all(cells.sum(1) % 2 == 0)
    assert len(np.unique(cells, axis=0)) == 8
    assert np.abs(((x + 4) / 2 % 1).mean(0) - 0.5).max() < 5 * (1 / 12 / 20_000) ** 0.5


def test_rings_and_gaussians_lie_where_they_should(config: Config) -> None:
    rings = load(config("toy2d", density="rings"), NOWHERE).splits["test"]
    assert np.abs(np.linalg.norm(rings.x, axis=1) - 0.75 * (rings.y + 1)).max() < 0.5
    gaussians = load(config("toy2d", density="eight_gaussians"), NOWHERE).splits["test"]
    for component in range(8):
        centre = 2.8 * np.array([np.cos(component * np.pi / 4), np.sin(component * np.pi / 4)])
        points = gaussians.x[gaussians.y == component]
        assert np.abs(points.mean(0) - centre).max() < 5 * 0.35 / len(points) ** 0.5


def test_unknown_density_and_table_name_the_nearest(config: Config) -> None:
    with pytest.raises(UserError, match="no toy density 'moon'; did you mean moons"):
        load(config("toy2d", density="moon"), NOWHERE)
    with pytest.raises(UserError, match="did you mean wine"):
        load(config("tabular", table="wines"), NOWHERE)
    with pytest.raises(UserError, match=r"data\.test is 0"):
        load(config("toy2d", test=0), NOWHERE)


@pytest.mark.parametrize(("table", "columns"), [("wine", 13), ("breast_cancer", 30), ("diabetes", 9), ("iris", 4)])
def test_tables_are_standardised_by_their_training_rows(config: Config, table: str, columns: int) -> None:
    data = load(config("tabular", table=table), NOWHERE)
    assert data.spec.shape == (columns,)
    train = data.splits["train"].x.astype(np.float64)
    assert np.abs(train.mean(0)).max() < 1e-6
    assert np.abs(train.std(0) - 1).max() < 1e-6
    assert all(len(np.unique(column)) > 20 for column in train.T)
    assert data.content_hash == load(config("tabular", table=table), NOWHERE).content_hash


def test_table_noise_stays_within_the_resolution(config: Config) -> None:
    from sklearn.datasets import load_diabetes

    data = load(config("tabular", table="diabetes"), NOWHERE)
    assert data.meta["remarks"]["dropped"] == ["sex"]
    assert data.spec.num_classes is None
    record = data.meta["remarks"]["columns"]
    mean, scale, step = (np.array([column[key] for column in record]) for key in ("mean", "scale", "resolution"))
    restored = data.splits["test"].x.astype(np.float64) * scale + mean
    raw = np.delete(load_diabetes(scaled=False).data, 1, axis=1)
    nearest = np.abs(raw[None] - restored[:, None]) - step / 2
    assert np.all((nearest < 1e-4).all(2).any(1))  # each row is some original row, moved by half a step at most


def test_resolution_of_a_column() -> None:
    assert resolution(np.array([1.5, 2.3, 0.9])) == pytest.approx(0.2)
    assert resolution(np.array([5.0, 20.0, 15.0])) == 5
    assert resolution(np.array([0.001, 0.1, 2.0])) == pytest.approx(0.001)


@pytest.mark.parametrize("name", ["digits", "digits_binary", "digits32"])
@pytest.mark.parametrize("binarise", ["threshold", "dynamic"])
def test_the_card_announces_what_is_loaded(config: Config, name: str, binarise: str) -> None:
    for cfg in (config(name), config(name, binarise=binarise)):
        assert spec_from_card(cfg) == load(cfg, NOWHERE).spec


def test_unknown_options_and_modes_are_refused(config: Config) -> None:
    with pytest.raises(UserError, match="no data setting 'vaild'; did you mean valid"):
        load(config("digits", vaild=0.2), NOWHERE)
    with pytest.raises(UserError, match="did you mean threshold"):
        load(config("digits", binarise="treshold"), NOWHERE)
    with pytest.raises(UserError, match=r"data=digits_binary is binary; for grey levels choose data=digits\."):
        load(config("digits_binary", binarise="none"), NOWHERE)
    with pytest.raises(UserError, match="takes grey levels, but toy2d is real 2"):
        load(config("toy2d", binarise="dynamic"), NOWHERE)
    with pytest.raises(UserError, match="did you mean Digits"):
        load(config("digits", _target_="dgmbench.data.digits.Didgets"), NOWHERE)
    with pytest.raises(UserError, match="is no data reader"):
        load(config("digits", _target_="dgmbench.data.spec.DataSpec"), NOWHERE)


def test_a_wrong_card_is_noticed(config: Config) -> None:
    cfg = config("toy2d")
    cfg["card"]["shape"] = [3]
    with pytest.raises(UserError, match="card of data=toy2d announces real 3, but its reader gives real 2"):
        load(cfg, NOWHERE)
