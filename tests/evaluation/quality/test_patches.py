"""Samples beside one picture: the distance of their patches by hand, and how much they vary."""

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.evaluator import Evaluator, validation_objective
from dgmbench.evaluation.quality.patches import diversity, patch_distance, patches_of
from dgmbench.models.contract import Model

SPEC = DataSpec((1, 12, 15), "discrete", levels=256)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_patches_are_the_squares_of_seven_pixels_at_every_second() -> None:
    x = random(2, 11, 9)
    wanted = [x[:, i : i + 7, j : j + 7].flatten() for i in (0, 2, 4) for j in (0, 2)]
    torch.testing.assert_close(patches_of(x), torch.stack(wanted).double())
    assert patches_of(random(3, 4, 9)).shape[1] == 3 * 16, "smaller pictures have smaller patches"


def test_the_distance_is_the_energy_distance_of_all_pairs_at_both_sizes() -> None:
    a, b = random(1, 30, 28), random(1, 28, 31, seed=1)

    def mean(x: Tensor, y: Tensor) -> float:
        return sum(float((p - q).norm()) for p in x for q in y) / (len(x) * len(y))

    def distance(x: Tensor, y: Tensor) -> float:
        return 2 * mean(x, y) - mean(x, x) - mean(y, y)

    def halved(x: Tensor) -> Tensor:
        even = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        return even.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))

    whole, half = (distance(*map(patches_of, pair)) for pair in ((a, b), (halved(a), halved(b))))
    assert patch_distance(a, b) == pytest.approx((whole + half) / 2, rel=1e-6)
    small = a[:, :20], b[:, :20]
    assert patch_distance(*small) == pytest.approx(distance(*map(patches_of, small)), rel=1e-6), "is not halved"


def test_it_is_zero_for_the_same_patches_anywhere_and_grows_with_what_differs() -> None:
    x = random(3, 16, 16)
    tiled = torch.cat([x, x], 2)
    assert patch_distance(x, x) == pytest.approx(0, abs=1e-7)
    assert patch_distance(x, x + 0.1) < patch_distance(x, x + 0.3)
    assert patch_distance(tiled, tiled.roll(2, 2)) < 0.2 * patch_distance(tiled, random(3, 16, 32, seed=2))


def test_diversity_is_the_pixels_deviation_over_the_pictures() -> None:
    picture = random(1, 6, 6)
    copies = picture.expand(4, -1, -1, -1)
    assert diversity(copies, picture) == 0
    shifted = torch.stack([picture - 0.2, picture + 0.2])
    assert diversity(shifted, picture) == pytest.approx(0.2 * math.sqrt(2) / float(picture.std()), rel=1e-6)


class Noisy(Model):
    """The picture with noise of a certain width."""

    def __init__(self, x: np.ndarray, width: float) -> None:
        super().__init__(SPEC)
        self.x, self.width = torch.from_numpy(x).float(), width

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        noise = self.width * torch.randn((n, *SPEC.shape), generator=generator)
        return (self.x + noise).round().clamp(0, 255).to(torch.uint8)


def test_a_model_of_one_picture_is_measured_by_its_patches_alone() -> None:
    x = np.random.RandomState(0).randint(60, 200, (1, *SPEC.shape)).astype(np.uint8)
    data = DataSet("one", SPEC, {split: Split(x, None) for split in ("train", "valid", "test")}, "0" * 8)
    protocol = {"seed": 0, "max_examples": None, "quality": {"samples": 30, "features": None}, "k": 5}
    protocol |= {"decoder_ais": {"examples": 0}, "parzen": {"samples": 0}, "parts": []}
    cpu = torch.device("cpu")
    values = {}
    for width in (0.0, 5.0, 40.0):
        model = Noisy(x, width)
        found = Evaluator(data, protocol, split="test", rule="best", averaged=False, device=cpu).measure(model)
        assert set(found) == {"patch_energy_distance", "sample_diversity"}
        (distance, details), (varied, _) = found["patch_energy_distance"], found["sample_diversity"]
        assert (distance.n, distance.unit, distance.direction) == (30, "scaled pixels", "lower")
        assert (details["patch"], details["samples"]) == (7, 30)
        name, metric = validation_objective(model, data, device=cpu)
        assert (name, metric.n) == ("patch_energy_distance", 20)
        assert abs(metric.value - distance.value) < 5 * math.hypot(metric.se or 0, distance.se or 0) + 1e-12
        values[width] = distance.value, varied.value
    assert values[0.0] == (pytest.approx(0, abs=1e-7), 0)
    assert values[5.0][0] < values[40.0][0]
    assert values[5.0][1] == pytest.approx(5 / x.std(), rel=0.1)


class Broken(Noisy):
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        from dgmbench.nn.scaling import Scaling

        return Scaling(SPEC).inverse(torch.full((n, *SPEC.shape), math.nan))


def test_samples_that_are_nan_have_no_distance() -> None:
    x = np.zeros((1, *SPEC.shape), np.uint8)
    data = DataSet("one", SPEC, {split: Split(x, None) for split in ("train", "valid", "test")}, "0" * 8)
    name, metric = validation_objective(Broken(x, 0.0), data, device=torch.device("cpu"))
    assert name == "patch_energy_distance"
    assert math.isnan(metric.value)
    assert "NaN" in (metric.note or "")
