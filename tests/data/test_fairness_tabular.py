"""The table with a sensitive attribute: what is known of it against its draws, and against quadrature."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from numpy.random import RandomState
from scipy.special import ndtr

from dgmbench.data import load
from dgmbench.data.fairness_tabular import DECISION, LOADINGS, NOISE, SHIFT, FairnessTabular
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def test_labels_are_the_two_factors_and_the_groups_are_as_told(config: Config, tmp_path: Path) -> None:
    data = load(config("fairness_tabular"), tmp_path)
    assert data.spec.factors == (("sensitive", 2), ("target", 2))
    assert data.spec.num_classes == 4
    part = data.splits["train"]
    x, (s, t) = np.asarray(part.x[:]), np.unravel_index(part.y[:], (2, 2))
    assert x.shape == (5000, 10)
    assert abs(s.mean() - 0.5) < 4.5 * 0.5 / 5000**0.5
    for group, rate in enumerate(FairnessTabular().target_rates()):
        own = t[s == group]
        assert abs(own.mean() - rate) < 4.5 * math.sqrt(rate * (1 - rate) / len(own))
    apart = x[s == 1].mean(0) - x[s == 0].mean(0)
    error = x.std(0) * math.sqrt(4 / 5000)
    assert (np.abs(apart - SHIFT) < 4.5 * error).all()
    assert not np.array_equal(x[:1000], np.asarray(data.splits["valid"].x[:]))


def test_the_joint_density_is_that_of_the_process_by_quadrature_over_the_merits() -> None:
    nodes, weights = hermegauss(40)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3)
    of_grid = np.log(weights / math.sqrt(2 * math.pi))
    log_w = (of_grid[:, None, None] + of_grid[:, None] + of_grid).reshape(-1)
    reader = FairnessTabular(bias=0.8)
    x = RandomState(0).normal(size=(2, 10))
    for row, found in zip(x, reader.log_joint(x), strict=True):
        for s in (0, 1):
            apart = (row - s * SHIFT - grid @ LOADINGS) / NOISE
            of_x = -0.5 * (apart**2).sum(1) - 10 * math.log(NOISE * math.sqrt(2 * math.pi)) - math.log(2)
            p = ndtr((grid @ DECISION + 0.8 * (s - 0.5)) / NOISE)
            wanted = [np.logaddexp.reduce(of_x + log_w + np.log(np.maximum(q, 1e-300))) for q in (1 - p, p)]
            np.testing.assert_allclose(found[s], wanted, rtol=1e-3)


def test_the_record_says_how_well_the_best_rules_do(config: Config, tmp_path: Path) -> None:
    """The rule that takes the more probable value is right as often as it expects to be."""
    reader = FairnessTabular()
    remarks = reader.read(tmp_path).remarks
    part = load(config("fairness_tabular"), tmp_path).splits["test"]
    x, (s, t) = np.asarray(part.x[:], dtype=np.float64), np.unravel_index(part.y[:], (2, 2))
    joint = np.exp(reader.log_joint(x))
    for name, of, truth in (("sensitive", joint.sum(2), s), ("target", joint.sum(1), t)):
        right = of.argmax(1) == truth
        assert abs(right.mean() - remarks[f"best_{name}_accuracy"]) < 4.5 * right.std() / len(x) ** 0.5
    assert remarks["test_log_likelihood_nats"] == pytest.approx(np.log(joint.sum((1, 2))).mean())


def test_without_bias_the_decisions_do_not_depend_on_the_group() -> None:
    assert FairnessTabular(bias=0.0).target_rates() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("settings", "sentence"), [({"train": 0}, "data.train is 0"), ({"bias": -1.0}, "data.bias=")])
def test_what_does_not_fit_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        FairnessTabular(**settings)
