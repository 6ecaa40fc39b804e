"""The Boltzmann machine with lateral couplings against enumeration of all its units."""

import itertools

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import bracket
from dgmbench.models.boltzmann.bm import Bm, symmetric
from dgmbench.models.boltzmann.estimators import CD, NCE, PCD, Estimator, RatioMatching
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.boltzmann.whole_path import WholePath

VISIBLE, HIDDEN = 4, 2


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def bits(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def make(*, hidden: int = HIDDEN, visible_lateral: float = 1.0, hidden_lateral: float = 1.0, **settings: object) -> Bm:
    exactly: dict[str, object] = {"mean_field_steps": 300, "tolerance": 0.0, "sample_steps": 20}
    model = Bm(DataSpec((VISIBLE,), "binary"), hidden=hidden, **exactly | settings).double()  # type: ignore[arg-type]
    scales = {"visible_lateral": visible_lateral, "hidden_lateral": hidden_lateral}
    with torch.no_grad():
        for k, (name, p) in enumerate(model.overlaid().items()):
            p.copy_(scales.get(name, 1.0) * torch.randn(p.shape, generator=seeded(k), dtype=torch.float64))
    return model


def joint_log_weights(model: Bm) -> Tensor:
    """-E of all states (2^V, 2^H), pair by pair of units."""
    v, h = bits(VISIBLE), bits(model.weight.shape[1])
    value = (v @ model.weight @ h.t()) + (v @ model.visible_bias)[:, None] + (h @ model.hidden_bias)[None]
    below = [(i, j) for i in range(VISIBLE) for j in range(i)]
    for (i, j), coupling in zip(below, model.visible_lateral, strict=True):
        value = value + (coupling * v[:, i] * v[:, j])[:, None]
    below = [(i, j) for i in range(h.shape[1]) for j in range(i)]
    for (i, j), coupling in zip(below, model.hidden_lateral, strict=True):
        value = value + (coupling * h[:, i] * h[:, j])[None]
    return value


def raw(v: Tensor) -> Tensor:
    return v.to(torch.uint8)


def every_state(model: Bm) -> Tensor:
    """Visible and hidden units side by side, in the order of ``joint_log_weights`` flattened."""
    v, h = bits(VISIBLE), bits(model.weight.shape[1])
    return torch.cat([v.repeat_interleave(len(h), 0), h.repeat(len(v), 1)], 1)


def test_the_energy_and_log_z_by_enumeration() -> None:
    model = make()
    by_hand = joint_log_weights(model).flatten()
    torch.testing.assert_close(-model.couplings().free_energy(every_state(model)), by_hand)
    path = model.annealing_path()
    assert float(path.exact_log_partition() - by_hand.logsumexp(0).detach()) == pytest.approx(0, abs=1e-10)
    assert torch.equal(symmetric(torch.tensor([1.0, 2.0, 3.0]), 3), torch.tensor([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]]))


def code(states: Tensor) -> Tensor:
    return (states @ 2.0 ** torch.arange(states.shape[1] - 1, -1, -1, dtype=states.dtype)).long()


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_sweep_there_and_back_is_reversible_and_there_alone_is_not(beta: float) -> None:
    """Flows p(x) T(x, y) of 6 units in equilibrium, counted: leaving p as it is takes equal row and column sums,
    reversibility that the counts are symmetric (Bowker's test).
    """
    model, n, g = make(), 60_000, seeded(1)
    every, path = every_state(model), model.annealing_path()
    log_p = path.log_unnormalised(every, beta)
    p = log_p.softmax(0)
    start = torch.multinomial(p, n, replacement=True, generator=seeded())
    torch.testing.assert_close(log_p, beta * joint_log_weights(model).detach().flatten())  # the base is at 0

    def flows(after: Tensor) -> Tensor:
        return torch.bincount(64 * start + code(after), minlength=64 * 64).view(64, 64).double()

    def bowker(count: Tensor) -> float:
        """(statistic - degrees of freedom) / its standard deviation."""
        both, apart = (count + count.t()).triu(1), (count - count.t()).triu(1)
        some = both > 10
        return float(((apart[some].square() / both[some]).sum() - some.sum()) / (2 * some.sum()).double().sqrt())

    there_and_back = flows(path.transition(every[start], beta, generator=g))
    ones = torch.full((n, 1), beta, dtype=torch.float64)
    there = flows(model.couplings().sweep(every[start], every[start][:, :0], ones, g)[0])
    for count in (there_and_back, there):  # what comes is as frequent as what goes
        expected = n * p
        statistic = ((count.sum(0) - expected).square() / expected)[expected > 5]
        assert abs(float(statistic.sum()) - len(statistic)) < 4 * (2 * len(statistic)) ** 0.5
    assert abs(bowker(there_and_back)) < 4
    assert bowker(there) > 8


def test_the_gradient_is_the_moments_of_data_less_those_of_the_model() -> None:
    """Without couplings among the hidden units mean field is exact, and so is the gradient with exact particles."""
    model = make(hidden=3, hidden_lateral=0.0)
    data = bits(VISIBLE)[torch.randint(16, (20,), generator=seeded())]
    log_weights = joint_log_weights(model)
    log_p = log_weights.logsumexp(1) - log_weights.logsumexp((0, 1))
    exact = torch.autograd.grad(-log_p[code(data)].mean(), list(model.overlaid().values()))

    now, p = model.couplings(), log_weights.detach().flatten().softmax(0)
    loss = model.positive(now, data).mean() - p @ now.free_energy(every_state(model))
    found = torch.autograd.grad(loss, list(model.overlaid().values()))
    for name, one, other in zip(model.overlaid(), found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=name)


def test_the_bound_is_below_log_p_and_tight_without_couplings_of_hidden_units() -> None:
    for lateral, hidden in ((0.0, 3), (1.5, 3)):
        model = make(hidden=hidden, hidden_lateral=lateral)
        exact = joint_log_weights(model).logsumexp(1).detach()
        gap = exact - model.elbo_unnormalised(raw(bits(VISIBLE))).detach()
        assert float(gap.min()) > -1e-9
        assert (float(gap.max()) < 1e-6) == (lateral == 0.0)


def test_without_lateral_couplings_it_is_the_restricted_machine() -> None:
    model = make(hidden=3, visible_lateral=0.0, hidden_lateral=0.0)
    rbm = Rbm(DataSpec((VISIBLE,), "binary"), hidden=3).double()
    rbm.load_state_dict({k: v for k, v in model.state_dict().items() if "lateral" not in k}, strict=False)
    x = raw(bits(VISIBLE))
    torch.testing.assert_close(model.elbo_unnormalised(x), rbm.log_prob_unnormalised(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(model.annealing_path().exact_log_partition(), rbm.log_partition(), rtol=0, atol=1e-10)
    torch.testing.assert_close(model.encode(x), rbm.encode(x), rtol=0, atol=1e-7)


@torch.no_grad()
def test_annealing_brackets_log_z_from_data_and_forward_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(hidden=3)
    model.base_logits.copy_(torch.tensor([0.5, -0.5, 0.0, 1.0]))
    exact = float(model.annealing_path().exact_log_partition())
    monkeypatch.setattr(WholePath, "sample_target", lambda self, n, generator=None: None)
    path = model.annealing_path()
    assert path.state_from(raw(bits(VISIBLE)), generator=seeded())[:, :VISIBLE].equal(bits(VISIBLE))
    found = bracket(path, raw(bits(VISIBLE)), chains=200, temperatures=50, burn_in=10, generator=seeded())
    low, high = found.interval()
    assert exact - 0.5 < low < exact < high < exact + 0.5
    assert not found.exact_start


@pytest.mark.parametrize("estimator", [CD(k=2), PCD(k=1, chains=50)])
def test_it_learns_couplings_that_no_hidden_unit_carries(estimator: Estimator) -> None:
    """Two bits that are always alike, two that never are: the lateral weights say so."""
    torch.manual_seed(0)
    g, model = seeded(), Bm(DataSpec((4,), "binary"), hidden=1, estimator=estimator)
    first = torch.randint(2, (100, 2), generator=g)
    x = torch.stack([first[:, 0], first[:, 0], first[:, 1], 1 - first[:, 1]], 1).to(torch.uint8)
    model.initialise(Batch(x), g)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(100):
        optimiser.zero_grad()
        model.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        model.after_step("model", Batch(x), g)
    path = model.annealing_path()
    bound = model.elbo_unnormalised(x).detach().mean() - path.exact_log_partition()
    assert -2 * 0.6931 - 0.5 < float(bound) < -2 * 0.6931  # two bits of entropy, four without couplings
    lateral = symmetric(model.visible_lateral, 4)
    assert lateral[0, 1] > 2 > -2 > lateral[2, 3]
    samples = model.sample(200, generator=g)
    assert float((samples[:, 0] == samples[:, 1]).double().mean()) > 0.8


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="bm models binary data, but these are real 2"):
        Bm(DataSpec((2,), "real"))
    for estimator in (NCE(), RatioMatching()):
        with pytest.raises(UserError, match=r"which lateral couplings among them only let one bound; use"):
            make(estimator=estimator)
