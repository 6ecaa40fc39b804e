"""Coupled adaptive simulated tempering: its weights are partition functions, its kernel keeps p(x, k), it mixes."""

import math

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.dbm import Dbm
from dgmbench.models.boltzmann.tempering import CAST


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(sizes=(6, 4, 3), scale=0.8, **args):
    estimator = CAST(**({"chains": 50, "temperatures": 4, "lowest": 0.1} | args))
    dbm = Dbm(DataSpec(sizes[:1], "binary"), hidden_sizes=sizes[1:], pretraining=0.0, estimator=estimator).double()
    g = seeded()
    with torch.no_grad():
        for p in dbm.overlaid().values():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return dbm


def log_partitions(dbm):
    """Log Z of every temperature, by enumeration of the machine whose parameters all carry the factor."""
    found = []
    for beta in dbm.estimator.betas:
        weight, a, b = (beta * each.detach() for each in dbm.couplings())
        found.append(Couplings(weight, a, b).log_partition())
    return torch.stack(found)


def test_weights_adapt_to_the_partition_functions():
    """Ten machines of their own noise; the mean of their weights within four standard errors."""
    found = []
    for seed in range(10):
        dbm = make(chains=100, steady=30, step=1.0)
        estimator, g, now = dbm.estimator, seeded(seed), dbm.couplings().detached()
        estimator.initialise(dbm, g)
        for _ in range(400):
            estimator.temper(now, g)
            estimator.adapt()
        found.append(estimator.log_g - estimator.log_g[0])
    weights, exact = torch.stack(found), log_partitions(dbm)
    error = (weights.mean(0) - (exact - exact[0])).abs()[1:]
    se = weights.std(0)[1:] / math.sqrt(10)
    assert (error < 4 * se).all()
    assert (se < 0.1).all()
    assert (exact[-1] - exact[0]).abs() > 1


def test_with_frozen_weights_the_kernel_keeps_states_and_temperatures(states, chi_squared, index):
    """2-1-1 units, from exact draws of (v, h, k) under weights that are not the partition functions."""
    n = 60_000
    dbm = make(sizes=(2, 1, 1), scale=1.5, chains=n, temperatures=3)
    estimator, now, x = dbm.estimator, dbm.couplings(), states(4)
    even, odd = x[:, :3], x[:, 3:]  # v and h2 are carried, h1 is the rest
    estimator.log_g.copy_(torch.tensor([0.0, 0.7, 0.4]))
    with torch.no_grad():
        energy = now.tempered_energy(even, odd)
        p = (-estimator.betas[:, None] * energy - estimator.log_g[:, None]).flatten().softmax(0)
    drawn = torch.multinomial(p, n, replacement=True, generator=seeded(1))
    estimator.level.copy_(drawn // 16)
    estimator.tempering.copy_(even[drawn % 16])
    estimator.tempering_rest.copy_(odd[drawn % 16])
    estimator.temper(now, seeded(2))
    after = 16 * estimator.level + index(torch.cat([estimator.tempering, estimator.tempering_rest], 1))
    assert ((after // 16) != (drawn // 16)).double().mean() > 0.2
    assert chi_squared(torch.bincount(after, minlength=48).double(), p) < 5


def test_coupled_particles_reach_both_modes_and_others_do_not():
    """All on and all off are equally likely, and Gibbs steps do not lead from one to the other."""
    dbm = make(sizes=(4, 3, 2), chains=100, temperatures=10, lowest=0.05, steady=50)
    with torch.no_grad():
        for weight in dbm.weights:
            weight.fill_(3.0)
        for n, bias in enumerate(dbm.biases):
            bias.fill_((-4.5, -9.0, -4.5)[n])
    estimator, g = dbm.estimator, seeded(3)
    estimator.initialise(dbm, g)
    estimator.chain.fill_(0.0)
    estimator.tempering.fill_(0.0)
    plain = dbm.couplings().gibbs(estimator.chain.clone(), 200, g)
    for _ in range(200):
        estimator.after_step(dbm, estimator.chain, g)
    assert plain.mean() < 0.1
    assert 0.3 < estimator.chain.mean() < 0.7


def test_states_and_weights_are_kept():
    dbm, other = make(), make()
    g = seeded(1)
    dbm.estimator.initialise(dbm, g)
    for _ in range(3):
        dbm.estimator.after_step(dbm, dbm.estimator.chain, g)
    other.load_state_dict(dbm.state_dict())
    for model in (dbm, other):
        model.estimator.after_step(model, model.estimator.chain, seeded(2))
    for name, value in dbm.estimator.state_dict().items():
        assert torch.equal(value, other.estimator.state_dict()[name])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"lowest": 1.0}, "model.estimator.lowest=1.0 must be at least 0 and less than 1"),
        ({"temperatures": 1}, "model.estimator.temperatures=1 must be at least 2"),
        ({"steady": 0}, "model.estimator.steady=0 must be at least 1"),
    ],
)
def test_temperatures_that_go_nowhere_are_refused(args, sentence):
    with pytest.raises(UserError, match=sentence):
        CAST(**args)
