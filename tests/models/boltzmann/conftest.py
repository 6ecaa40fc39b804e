"""Enumerable machines in float64."""

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.rbm import Rbm


@pytest.fixture
def states() -> Callable[[int], Tensor]:
    """All states of n binary units, (2^n, n) float64."""
    return lambda n: torch.tensor(list(product((0.0, 1.0), repeat=n)), dtype=torch.float64).view(-1, n)


@pytest.fixture
def make_rbm() -> Callable[..., Rbm]:
    """An RBM in float64 with normal parameters."""

    def make(
        visible: int,
        hidden: int,
        *,
        scale: float = 1.0,
        seed: int = 0,
        estimator: Estimator | None = None,
        **args: object,
    ) -> Rbm:
        g = torch.Generator().manual_seed(seed)
        rbm = Rbm(DataSpec((visible,), "binary"), hidden=hidden, estimator=estimator, **args).double()  # type: ignore[arg-type]
        with torch.no_grad():
            for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias):
                p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
        return rbm

    return make


@pytest.fixture
def chi_squared() -> Callable[[Tensor, Tensor], float]:
    """(statistic - degrees of freedom) / its standard deviation, of counts (n,) against probabilities (n,)."""

    def score(counts: Tensor, p: Tensor) -> float:
        expected = p * counts.sum()
        statistic = ((counts - expected) ** 2 / expected).sum()
        dof = len(p) - 1
        return float((statistic - dof) / (2 * dof) ** 0.5)

    return score


@pytest.fixture
def index() -> Callable[[Tensor], Tensor]:
    """Row number in ``states(n)`` of binary states (b, n)."""

    def number(v: Tensor) -> Tensor:
        powers: Sequence[int] = [2**k for k in reversed(range(v.shape[1]))]
        return (v.long() * torch.tensor(powers)).sum(1)

    return number
