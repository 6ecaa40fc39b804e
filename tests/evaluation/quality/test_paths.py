"""Perceptual path length: the mean squared speed in features, in closed form for straight pictures."""

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.parts import Context
from dgmbench.evaluation.quality.paths import path_length
from dgmbench.models.contract import Model

SPEC = DataSpec((1, 4, 4), "discrete", levels=256)
SPEED = torch.linspace(0, 30, 16).view(1, 4, 4)


class Straight(Model):
    """Pictures 100 + t a SPEED at t, with random a of variance 4."""

    def path_points(self, n: int, step: float, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        a = 2 * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
        t = torch.rand(n, 1, 1, 1, generator=generator, dtype=torch.float64)
        return 100 + t * a * SPEED, 100 + (t + step) * a * SPEED


def measured(model: Model, samples: int = 600) -> dict[str, object]:
    x = np.arange(20 * 16, dtype=np.uint8).reshape(20, 1, 4, 4)
    data = DataSet("few", SPEC, {name: Split(x, None) for name in ("train", "valid", "test")}, "0" * 8)
    protocol = {"seed": 0, "max_examples": None, "quality": {"samples": samples, "features": ["pixel"]}}
    context = Context(data, protocol, "test", torch.device("cpu"))
    return {name: (metric, details) for name, metric, details in path_length(model, context, lambda text: None)}


def test_of_straight_pictures_it_is_the_mean_squared_speed_whatever_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On values scaled to [0, 1], with a^2 of mean 4; the error is the spread over the ways."""
    wanted = 4 * float((SPEED / 255).square().sum())
    for step in (1e-3, 0.2):
        monkeypatch.setattr("dgmbench.evaluation.quality.paths.STEP", step)
        metric, details = measured(Straight(SPEC))["path_length_pixel"]  # type: ignore[misc]
        assert metric.se == pytest.approx(wanted * 2**0.5 / 600**0.5, rel=0.25), "of chi-squared numbers"
        assert abs(metric.value - wanted) < 4 * metric.se
        assert (metric.n, metric.unit, metric.direction) == (600, "features^2", "lower")
        assert (details["paths"], details["step"]) == (600, step)


def test_only_models_with_such_ways_have_one() -> None:
    assert not measured(Model(SPEC))
