"""The tail index against generalised Pareto draws of known index, and weights whose tail is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import genpareto

from dgmbench.data import DataSet, DataSpec, Split
from dgmbench.evaluation.evaluator import Evaluator
from dgmbench.evaluation.likelihood.tails import effective_draws, heavy_tail, pareto_index, tail_index, tail_size
from dgmbench.models.contract import Model


def pareto(index: float, n: int, columns: int) -> torch.Tensor:
    draws = genpareto.rvs(index, scale=2.0, size=(n, columns), random_state=np.random.RandomState(0))
    return torch.from_numpy(draws)


@pytest.mark.parametrize("index", [-0.3, 0.0, 0.3, 0.7, 1.2])
@pytest.mark.parametrize("n", [20, 500])
def test_the_index_of_generalised_pareto_draws(index: float, n: int) -> None:
    found = pareto_index(pareto(index, n, 300).sort(0).values)
    # the deviation of the best estimate is (1 + k) / sqrt(n); of few, all draw the index down a little
    deviation = (1 + max(index, 0.0)) / math.sqrt(n)
    assert abs(float(found.mean()) - index) < 4 * deviation / math.sqrt(300) + 1.2 / n
    assert 0.6 * deviation < float(found.std()) < 1.4 * deviation


def test_the_index_is_a_likelihood_s_and_has_no_scale() -> None:
    draws = pareto(0.5, 2000, 1).sort(0).values
    most_likely, _, _ = genpareto.fit(draws[:, 0].numpy(), floc=0)
    assert float(pareto_index(draws)) == pytest.approx(most_likely, abs=0.01)
    assert float(pareto_index(1e6 * draws)) == pytest.approx(float(pareto_index(draws)), rel=1e-9)


@pytest.mark.parametrize(("s", "t", "index"), [(1.0, 1.0, 0.0), (1.0, 1.25, 1 - 1.25**-2), (1.0, 2.0, 0.75)])
def test_weights_of_a_narrow_proposal(s: float, t: float, index: float) -> None:
    """z ~ N(0, s^2) for N(0, t^2): the weights' tail has the index 1 - s^2 / t^2."""
    z = s * torch.randn((100_000, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_weights = 0.5 * (z / s).square() - 0.5 * (z / t).square() - math.log(t / s)
    found = tail_index(log_weights + 1000)  # the scale of weights does not matter
    if index == 0:
        assert (found == 0).all()  # equal weights have no tail
        assert effective_draws(log_weights).tolist() == pytest.approx([100_000] * 8)
    else:
        assert float(found.mean()) == pytest.approx(index, abs=0.12)  # slowly reached: the tail has a logarithm in it


def test_what_has_no_tail_to_fit() -> None:
    assert [tail_size(k) for k in (24, 25, 100, 225, 10_000)] == [4, 5, 20, 45, 300]
    assert torch.isnan(tail_index(torch.zeros(24, 2))).all()
    assert torch.isnan(tail_index(torch.full((100, 2), -math.inf))).all()
    weights = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    assert float(effective_draws(weights.log())) == pytest.approx(16 / 10)


class Narrow(Model):
    """A proposal N(0, 1) for N(0, t^2), whose weights have the index 1 - 1 / t^2; log p(x) = 0."""

    def __init__(self, t: float) -> None:
        super().__init__(DataSpec((2,), "binary"))
        self.t = t

    def log_weights(self, x: torch.Tensor, k: int, *, generator: torch.Generator | None = None) -> torch.Tensor:
        z = torch.randn((k, len(x)), generator=generator, dtype=torch.float64)
        return 0.5 * z.square() - 0.5 * (z / self.t).square() - math.log(self.t)


@pytest.mark.parametrize(("t", "heavy"), [(1.1, False), (1.3, False), (4.0, True)])
def test_bounds_say_whether_their_weights_can_be_trusted(t: float, heavy: bool) -> None:
    split = Split(np.zeros((150, 2), np.uint8), None)
    data = DataSet("toy", DataSpec((2,), "binary"), {"train": split, "valid": split, "test": split}, "1" * 64)
    protocol = {"seed": 0, "k": [1, 20, 2000], "max_examples": None}
    evaluator = Evaluator(data, protocol, split="test", rule="best", averaged=False, device=torch.device("cpu"))
    found = evaluator.measure(Narrow(t))
    names = [f"iw_bound_k{k}{what}" for k in (1, 20, 2000) for what in ("", "_bits_per_dim", "_ess", "_tail_index")]
    assert set(found) == set(names) - {"iw_bound_k1_ess"}
    for name, (metric, _) in found.items():
        assert ("heavy tails: the index" in (metric.note or "")) == heavy, name
    index = found["iw_bound_k20_tail_index"]
    assert index[0].value == pytest.approx(1 - t**-2, abs=0.15)  # of all 2000 draws
    assert (index[1]["k"], index[1]["draws"]) == (20, 2000)
    if not heavy:  # 1 / E w^2, for weights of mean 1
        assert found["iw_bound_k2000_ess"][0].value == pytest.approx(2000 * t * math.sqrt(2 - t**2), rel=0.1)
    else:
        assert found["iw_bound_k2000"][0].value < 0
    assert found["iw_bound_k20_ess"][0].value < 20


def test_chance_alone_gives_no_warning() -> None:
    """Of light tails a few indices of twenty weights lie above the limit, but not many by two deviations."""
    log_weights = torch.randn((100, 400), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    index = tail_index(log_weights)
    assert (index > 0.7).any()
    assert heavy_tail(index, 100) is None
    some = torch.cat([torch.full((380,), 0.2), torch.full((21,), 1.6)])
    assert "above 0.7 for 21 of 401 examples" in (heavy_tail(some, 100) or "")
    assert heavy_tail(some[:-1], 100) is None
    assert heavy_tail(None, 10) is None
