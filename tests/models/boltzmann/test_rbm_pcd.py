"""Persistent chains."""

import copy
import io
from itertools import product

import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.boltzmann.estimators import CD, PCD
from dgmbench.models.boltzmann.rbm import Rbm

SPEC = DataSpec((4,), "binary")


def data(seed=0):
    return torch.randint(2, (50, 4), generator=Generator().manual_seed(seed)).to(torch.uint8)


def train(rbm, optimiser, first, last):
    for step in range(first, last):
        g = Generator().manual_seed(step)
        x = data()[torch.randint(50, (7,), generator=g)]
        optimiser.zero_grad()
        rbm.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
        rbm.after_step("model", Batch(x), g)


def start(estimator):
    torch.manual_seed(0)
    rbm = Rbm(SPEC, hidden=3, estimator=estimator)
    rbm.initialise(Batch(data()), Generator().manual_seed(0))
    return rbm, torch.optim.SGD(rbm.parameters(), lr=0.1, momentum=0.5)


def test_chains_persist_over_steps_epochs_and_a_resume():
    whole, optimiser = start(PCD(chains=20))
    train(whole, optimiser, 0, 30)
    first, optimiser = start(PCD(chains=20))
    train(first, optimiser, 0, 11)
    file = io.BytesIO()
    torch.save([first.state_dict(), optimiser.state_dict()], file)
    file.seek(0)
    second, optimiser = start(PCD(chains=20))
    second.estimator.chain.fill_(0.5)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved[0])
    optimiser.load_state_dict(saved[1])
    train(second, optimiser, 11, 30)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert "estimator.chain" in whole.state_dict()


def test_loss_uses_the_chains_as_they_are_and_moves_nothing():
    rbm, _ = start(PCD(chains=20))
    chain = rbm.estimator.chain.clone()
    loss, logs = rbm.loss("model", Batch(data()), Generator())
    torch.testing.assert_close(loss, rbm.free_energy(data().float()).mean() - rbm.free_energy(chain).mean())
    assert torch.equal(chain, rbm.estimator.chain)
    assert not any(value.requires_grad for value in logs.values())


def test_chains_are_independent_of_the_batch():
    rbm, _ = start(PCD(chains=20))
    other = copy.deepcopy(rbm)
    rbm.after_step("model", Batch(data()[:5]), Generator().manual_seed(1))
    other.after_step("model", Batch(1 - data()), Generator().manual_seed(1))
    assert torch.equal(rbm.estimator.chain, other.estimator.chain)
    assert len(rbm.estimator.chain) == 20


def test_at_learning_rate_zero_long_run_frequencies_match_the_enumerated_model(make_rbm, states, index, chi_squared):
    rbm = make_rbm(4, 3, estimator=PCD(chains=20_000))
    rbm.initialise(Batch(data()), Generator().manual_seed(0))
    for step in range(60):
        rbm.after_step("model", Batch(data()[:2]), Generator().manual_seed(step))
    p = torch.softmax(rbm.log_prob_unnormalised(states(4)).detach(), 0)
    assert chi_squared(torch.bincount(index(rbm.estimator.chain), minlength=16), p) < 4


def test_with_a_decaying_rate_pcd_ends_nearer_the_maximum_likelihood_than_cd_1():
    """Bars and stripes on 3 x 3 pixels: 14 patterns, against the exact gradient from the same start."""
    rows = [torch.tensor(bits).view(3, 1).expand(3, 3) for bits in product((0, 1), repeat=3)]
    x = torch.unique(torch.stack([m.flatten() for row in rows for m in (row, row.T)]), dim=0).to(torch.uint8)
    assert len(x) == 14
    updates, found = 400, {}
    for name, estimator in {"exact": CD(), "cd": CD(), "pcd": PCD(chains=100)}.items():
        torch.manual_seed(0)
        g = Generator().manual_seed(0)
        rbm = Rbm(DataSpec((9,), "binary"), hidden=8, estimator=estimator, weight_std=0.3)
        rbm.initialise(Batch(x), g)
        optimiser = torch.optim.SGD(rbm.parameters(), lr=0.5)
        numbers = torch.arange(512)[:, None] >> torch.arange(9) & 1
        for update in range(updates):
            optimiser.param_groups[0]["lr"] = 0.5 * (1 - update / updates)
            optimiser.zero_grad()
            if name == "exact":
                loss = rbm.log_prob_unnormalised(numbers).logsumexp(0) - rbm.log_prob_unnormalised(x).mean()
            else:
                loss = rbm.loss("model", Batch(x), g)[0]
            loss.backward()
            optimiser.step()
            rbm.after_step("model", Batch(x), g)
        found[name] = float(rbm.log_prob_unnormalised(x).detach().double().mean() - rbm.log_partition())
    assert found["pcd"] > found["cd"], found
    assert abs(found["exact"] - found["pcd"]) < 0.5 * abs(found["exact"] - found["cd"]), found
