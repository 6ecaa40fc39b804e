"""Fast weights."""

import copy
import io

import torch
from torch import Generator

from dgmbench.data.spec import Batch
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.estimators import FPCD, PCD

PARTS = ("weight", "visible_bias", "hidden_bias")


def data():
    return torch.randint(2, (9, 4), generator=Generator().manual_seed(5)).to(torch.uint8)


def step(rbm, lr, seed):
    rbm.zero_grad()
    rbm.loss("model", Batch(data()), Generator().manual_seed(seed))[0].backward()
    with torch.no_grad():
        for p in rbm.parameters():
            p -= lr * p.grad
    rbm.after_step("model", Batch(data()), Generator().manual_seed(seed))


def test_two_updates_by_hand(make_rbm):
    """Fast <- 19/20 fast + fast_rate g with the gradient g that moves the slow weights; chains move under the sum."""
    lr, fast_rate = 0.1, 0.3
    rbm = make_rbm(4, 3, estimator=FPCD(chains=6, fast_rate=fast_rate))
    rbm.initialise(Batch(data()), Generator().manual_seed(0))
    v = data().double()
    slow = [getattr(rbm, part).detach().clone() for part in PARTS]
    fast = [torch.zeros_like(part) for part in slow]
    chain = rbm.estimator.chain.clone()
    for update in (1, 2):
        positive = torch.sigmoid(v @ slow[0] + slow[2])
        negative = torch.sigmoid(chain @ (slow[0] + fast[0]) + slow[2] + fast[2])
        ascent = [
            v.T @ positive / 9 - chain.T @ negative / 6,
            v.mean(0) - chain.mean(0),
            positive.mean(0) - negative.mean(0),
        ]
        slow = [part + lr * g for part, g in zip(slow, ascent, strict=True)]
        fast = [19 / 20 * part + fast_rate * g for part, g in zip(fast, ascent, strict=True)]
        weight, a, b = (s + f for s, f in zip(slow, fast, strict=True))
        g = Generator().manual_seed(update)
        h = (torch.rand(6, 3, dtype=torch.float64, generator=g) < torch.sigmoid(chain @ weight + b)).double()
        chain = (torch.rand(6, 4, dtype=torch.float64, generator=g) < torch.sigmoid(h @ weight.T + a)).double()
        step(rbm, lr, update)
        for part, s, f in zip(PARTS, slow, fast, strict=True):
            torch.testing.assert_close(getattr(rbm, part).detach(), s, rtol=0, atol=1e-12)
            torch.testing.assert_close(getattr(rbm.estimator, f"fast_{part}"), f, rtol=0, atol=1e-12)
        assert torch.equal(rbm.estimator.chain, chain)
    assert fast[0].abs().max() > 0.01


def test_fast_weights_change_the_chains_transition_but_not_the_positive_statistics(make_rbm, states):
    rbm = make_rbm(4, 3, estimator=FPCD(chains=6))
    rbm.initialise(Batch(data()), Generator().manual_seed(0))
    v, h = states(4), states(3)

    def positive():
        """The data's term of the loss, and its gradient."""
        _, logs = rbm.loss("model", Batch(data()), Generator())
        return logs["free_energy_data"], torch.autograd.grad(rbm.free_energy(data().double()).mean(), rbm.weight)[0]

    def transition(couplings):
        def likelihood(logits, s):
            p = logits.sigmoid()
            return torch.where(s[None].bool(), p[:, None], 1 - p[:, None]).prod(-1)

        return likelihood(couplings.hidden_logits(v), h) @ likelihood(couplings.visible_logits(h), v)

    before, slow = positive(), transition(rbm.couplings().detached())
    gradient = torch.autograd.grad(rbm.loss("model", Batch(data()), Generator())[0], rbm.weight)[0]
    with torch.no_grad():
        for fast in rbm.estimator.fast():
            fast.copy_(torch.randn(fast.shape, dtype=torch.float64, generator=Generator().manual_seed(1)))
    after, overlaid = positive(), transition(rbm.couplings(rbm.estimator.fast()).detached())
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert (slow - overlaid).abs().max() > 0.1
    moved = torch.autograd.grad(rbm.loss("model", Batch(data()), Generator())[0], rbm.weight)[0]
    logits = rbm.couplings(rbm.estimator.fast()).detached().hidden_logits(rbm.estimator.chain)
    old = rbm.couplings().detached().hidden_logits(rbm.estimator.chain)
    change = rbm.estimator.chain.T @ (logits.sigmoid() - old.sigmoid()) / 6
    torch.testing.assert_close(moved - gradient, change, rtol=0, atol=1e-12)


def test_the_chains_move_under_the_sum_of_slow_and_fast_weights(make_rbm, states, index, chi_squared):
    rbm = make_rbm(4, 3, estimator=FPCD(chains=20_000, decay=1.0, fast_rate=0.0))
    rbm.initialise(Batch(data()), Generator().manual_seed(0))
    with torch.no_grad():
        for fast in rbm.estimator.fast():
            fast.copy_(torch.randn(fast.shape, dtype=torch.float64, generator=Generator().manual_seed(2)))
    for seed in range(60):
        rbm.after_step("model", Batch(data()), Generator().manual_seed(seed))
    both = Couplings(*(getattr(rbm, p).detach() + getattr(rbm.estimator, f"fast_{p}") for p in PARTS))
    p = torch.softmax(-both.free_energy(states(4)), 0)
    counts = torch.bincount(index(rbm.estimator.chain), minlength=16)
    assert chi_squared(counts, p) < 4
    assert chi_squared(counts, torch.softmax(-rbm.free_energy(states(4)).detach(), 0)) > 20


def test_fast_rate_zero_equals_pcd_step_for_step(make_rbm):
    fast = make_rbm(4, 3, estimator=FPCD(chains=6, fast_rate=0.0))
    plain = make_rbm(4, 3, estimator=PCD(chains=6))
    for rbm in (fast, plain):
        rbm.initialise(Batch(data()), Generator().manual_seed(0))
    for seed in range(20):
        a, b = (rbm.loss("model", Batch(data()), Generator())[0] for rbm in (fast, plain))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        for rbm in (fast, plain):
            step(rbm, 0.1, seed)
        for part in PARTS:
            torch.testing.assert_close(getattr(fast, part), getattr(plain, part), rtol=0, atol=1e-12)
        assert torch.equal(fast.estimator.chain, plain.estimator.chain)


def test_fast_weights_survive_a_resume(make_rbm):
    rbm = make_rbm(4, 3, estimator=FPCD(chains=6, fast_rate=0.3))
    rbm.initialise(Batch(data()), Generator().manual_seed(0))
    for seed in range(4):
        step(rbm, 0.1, seed)
    file = io.BytesIO()
    torch.save(rbm.state_dict(), file)
    file.seek(0)
    resumed = make_rbm(4, 3, seed=1, estimator=FPCD(chains=6, fast_rate=0.3))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    whole = copy.deepcopy(rbm)
    for seed in range(4, 9):
        step(whole, 0.1, seed)
        step(resumed, 0.1, seed)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_fast_weights_of_a_centred_machine_act_in_its_coordinates(make_rbm, states):
    """The overlay is added to the centred parameters, so that the sum is a centred machine with the same offsets."""
    rbm = make_rbm(4, 3, centred=True, estimator=FPCD())
    other = copy.deepcopy(rbm)
    with torch.no_grad():
        for part, fast in zip(PARTS, rbm.estimator.fast(), strict=True):
            fast.copy_(torch.randn(fast.shape, dtype=torch.float64, generator=Generator().manual_seed(3)))
            getattr(other, part).add_(fast)
    combined = rbm.couplings(rbm.estimator.fast()).free_energy(states(4))
    torch.testing.assert_close(combined, other.free_energy(states(4)), rtol=0, atol=1e-12)
