"""The RBM whose weights are a function of coordinates: the chain rule, the function at every pair, fewer parameters."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.digits import Digits
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.models.boltzmann.aprbm import Aprbm, places
from dgmbench.models.boltzmann.estimators import FPCD, PCD, Estimator
from dgmbench.models.boltzmann.rbm import Rbm


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def bits(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def make(shape: tuple[int, ...] = (6,), hidden: int = 4, estimator: Estimator | None = None) -> Aprbm:
    torch.manual_seed(0)
    model = Aprbm(DataSpec(shape, "binary"), hidden=hidden, width=5, weight_std=1.0, estimator=estimator).double()
    with torch.no_grad():
        for k, p in enumerate((model.visible_bias, model.hidden_bias)):
            p.copy_(torch.randn(p.shape, generator=seeded(k), dtype=torch.float64))
    return model


def test_the_gradient_is_the_chain_rule_through_the_exact_gradient_in_the_weights() -> None:
    """d log p / dW = <v h'>_data - <v h'>_model by enumeration of a 6-4 machine, times dW / dtheta, entry by entry."""
    model = make()
    data = bits(6)[torch.randint(64, (10,), generator=seeded())]
    v, h = bits(6), bits(4)
    with torch.no_grad():
        w = model.weight
        joint = (v @ w @ h.t() + (v @ model.visible_bias)[:, None] + h @ model.hidden_bias).flatten().softmax(0)
        joint = joint.view(64, 16)
        posterior = (data @ w + model.hidden_bias).sigmoid()
        in_weights = data.t() @ posterior / len(data) - v.t() @ joint @ h
    expected = {name: torch.zeros_like(p) for name, p in model.network.named_parameters()}
    for i, j in itertools.product(range(6), range(4)):
        entry = model.network(model.visible_places[i : i + 1], model.hidden_places[j : j + 1])[0, 0]
        for (name, _), part in zip(
            expected.items(), torch.autograd.grad(entry, list(model.network.parameters())), strict=True
        ):
            expected[name] += in_weights[i, j] * part
    log_p = model.log_prob_unnormalised(data.to(torch.uint8)).mean() - (-model.free_energy(v)).logsumexp(0)
    found = torch.autograd.grad(log_p, list(model.network.parameters()))
    for name, gradient in zip(expected, found, strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-10, msg=name)
    # and a contrastive estimate reaches the network through its weights alone
    model.loss("model", Batch(data.to(torch.uint8)), seeded())[0].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_the_weights_are_the_function_at_every_pair_and_permuted_places_permute_the_columns() -> None:
    model = make((1, 2, 3))
    assert model.visible_places.tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    assert places((1, 1)).shape == (1, 1)
    one, net = model.weight, model.network
    for i, j in itertools.product(range(6), range(4)):
        inner = (model.visible_places[i] @ net.of_visible + model.hidden_places[j] @ net.of_hidden + net.phase).sin()
        by_hand = (net.inner.weight @ inner + net.inner.bias).tanh() @ net.outer
        assert float(one[i, j]) == pytest.approx(float(by_hand), abs=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    model.hidden_places.copy_(model.hidden_places[order])
    torch.testing.assert_close(model.weight, one[:, order])
    assert float((one[:, 0] - one[:, 1]).abs().max()) > 1e-3
    assert torch.equal(make((1, 2, 3)).hidden_places, make((1, 2, 3)).hidden_places), "the same places every time"


@torch.no_grad()
def test_it_is_the_rbm_of_its_weights() -> None:
    model, rbm = make(), Rbm(DataSpec((6,), "binary"), hidden=4).double()
    for name in ("weight", "visible_bias", "hidden_bias"):
        getattr(rbm, name).copy_(getattr(model, name))
    x = bits(6).to(torch.uint8)
    torch.testing.assert_close(model.log_prob_unnormalised(x), rbm.log_prob_unnormalised(x))
    torch.testing.assert_close(model.log_partition(), rbm.log_partition())


@torch.no_grad()
def test_fast_weights_lie_over_the_networks_parameters() -> None:
    model = make(estimator=FPCD(chains=5))
    fast = [torch.full_like(p, 0.1) for p in model.overlaid().values()]
    overlaid = model.couplings(fast)
    for p in model.overlaid().values():
        p.add_(0.1)
    for one, other in zip(overlaid, model.couplings(), strict=True):
        torch.testing.assert_close(one, other)


def test_it_has_fewer_parameters_and_learns_more_than_the_base_rates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = Digits(size=8).read(tmp_path)
    x, held_out = (torch.from_numpy(data.parts[split].x >= 8).to(torch.uint8) for split in ("train", "valid"))
    spec, g = DataSpec((1, 8, 8), "binary"), seeded()
    model = Aprbm(spec, hidden=60, width=24, estimator=PCD(chains=50))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters < sum(p.numel() for p in Rbm(spec, hidden=60).parameters()) / 3
    model.initialise(Batch(x), g)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(250):
        batch = Batch(x[torch.arange(50 * step, 50 * step + 50) % len(x)])
        optimiser.zero_grad()
        model.loss("model", batch, g)[0].backward()
        optimiser.step()
        model.after_step("model", batch, g)
    with torch.no_grad():
        sides = bracket(model.annealing_path(), x[:25], chains=50, temperatures=150, burn_in=30, generator=g)
        unnormalised = float(model.log_prob_unnormalised(held_out).mean())
        base = float(model.base().log_prob(model.flatten(held_out)).mean())
    assert not sides.wide
    assert unnormalised - sides.interval()[1] > base + 1
    assert math.isfinite(base)


def test_bad_values_are_refused() -> None:
    with pytest.raises(UserError, match="width"):
        Aprbm(DataSpec((4,), "binary"), width=0)
    with pytest.raises(UserError, match=r"models binary data, but these are real 2"):
        Aprbm(DataSpec((2,), "real"))
