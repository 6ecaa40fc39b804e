"""Noise-contrastive estimation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from dgmbench.data.spec import Batch
from dgmbench.models.boltzmann.estimators import NCE


def noise_log_p(rbm, v):
    return -F.binary_cross_entropy_with_logits(rbm.base_logits.expand_as(v), v, reduction="none").sum(1)


def expected_objective(rbm, v, data):
    """E_data log(1 + exp(-G)) + nu E_noise log(1 + exp(G)), written from the definition of the two classes."""
    nu = rbm.estimator.nu
    log_model = -rbm.free_energy(v) - rbm.estimator.log_z
    log_noise = noise_log_p(rbm, v)
    both = torch.logaddexp(log_model, log_noise + math.log(nu))
    return -(data * (log_model - both)).sum() - nu * (log_noise.exp() * (log_noise + math.log(nu) - both)).sum()


@pytest.fixture
def generating(make_rbm, states):
    """An RBM that generates the data, with the data's means as noise and its exact log Z."""

    def make(nu):
        rbm = make_rbm(5, 3, estimator=NCE(nu=nu))
        p = torch.softmax(rbm.log_prob_unnormalised(states(5)).detach(), 0)
        rbm.base_logits.copy_(torch.logit(p @ states(5)))
        with torch.no_grad():
            rbm.estimator.log_z.copy_(rbm.log_partition())
        return rbm, p

    return make


@pytest.mark.parametrize("nu", [1, 5])
def test_gradient_of_the_expected_objective_vanishes_at_the_generating_machine(generating, states, nu):
    rbm, p = generating(nu)
    parameters = list(rbm.parameters())
    assert len(parameters) == 4
    for gradient in torch.autograd.grad(expected_objective(rbm, states(5), p), parameters):
        assert gradient.abs().max() < 1e-12
    with torch.no_grad():
        rbm.estimator.log_z += 0.1
    moved = torch.autograd.grad(expected_objective(rbm, states(5), p), parameters)
    assert all(gradient.abs().max() > 1e-3 for gradient in moved)


@pytest.mark.parametrize("nu", [1, 5])
def test_the_loss_is_an_unbiased_estimate_of_the_expected_objective(generating, states, nu):
    rbm, p = generating(nu)
    with torch.no_grad():
        rbm.weight.mul_(0.5)
        expected = expected_objective(rbm, states(5), p)
        g = Generator().manual_seed(0)
        values = []
        for _ in range(200):
            rows = torch.multinomial(p, 200, replacement=True, generator=g)
            values.append(rbm.loss("model", Batch(states(5)[rows]), g)[0])
    values = torch.stack(values)
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(len(values))


def test_nce_recovers_the_distribution_and_log_z(generating, make_rbm, states):
    _, p = generating(1)
    rbm = make_rbm(5, 3, scale=0.3, seed=1, estimator=NCE(nu=5))
    v, g = states(5), Generator().manual_seed(0)
    x = v.repeat_interleave((20_000 * p).round().long(), 0)
    rbm.initialise(Batch(x), g)
    optimiser, updates = torch.optim.Adam(rbm.parameters(), lr=0.05), 900
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - update / updates)
        rows = torch.randint(len(x), (500,), generator=g)
        optimiser.zero_grad()
        rbm.loss("model", Batch(x[rows]), g)[0].backward()
        optimiser.step()
    log_p = (rbm.log_prob_unnormalised(v) - rbm.log_partition()).detach()
    assert float((p * (p.log() - log_p)).sum()) < 0.01
    assert abs(rbm.estimator.log_z.detach() - rbm.log_partition()) < 0.05


def test_log_z_starts_at_the_value_for_independent_units(make_rbm):
    rbm = make_rbm(5, 3, estimator=NCE())
    with torch.no_grad():
        rbm.weight.zero_()
    rbm.initialise(Batch(torch.ones(4, 5, dtype=torch.uint8)), Generator())
    assert abs(rbm.estimator.log_z.detach() - rbm.log_partition()) < 1e-12
    assert any(p is rbm.estimator.log_z for p in rbm.players()["model"])
