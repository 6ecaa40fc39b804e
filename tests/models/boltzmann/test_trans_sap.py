"""Tempered transitions leave a machine's distribution as it is, and cross between modes."""

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.dbm import Dbm
from dgmbench.models.boltzmann.tempering import TemperedTransitions

SPEC = DataSpec((4,), "binary")


def seeded(seed=0):
    return Generator().manual_seed(seed)


def make(scale=1.5, **args):
    estimator = TemperedTransitions(**({"temperatures": 6, "lowest": 0.2, "chains": 50} | args))
    dbm = Dbm(SPEC, hidden_sizes=(3, 2), pretraining=0.0, estimator=estimator).double()
    g = seeded()
    with torch.no_grad():
        for p in dbm.overlaid().values():
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return dbm


def test_a_transition_leaves_the_exact_marginals_unchanged(states, chi_squared, index):
    """From exact draws of the even layers: moved, neither all accepted nor all refused, and distributed as before."""
    dbm = make()
    even, now, n = states(6), dbm.couplings(), 60_000
    with torch.no_grad():
        p = (-now.free_energy(even)).softmax(0)
    drawn = torch.multinomial(p, n, replacement=True, generator=seeded(1))
    moved, accepted = dbm.estimator.transition(now, even[drawn], seeded(2))
    assert 0.2 < accepted.mean() < 0.9
    assert torch.equal(moved[accepted == 0], even[drawn][accepted == 0])
    assert (index(moved) != drawn).double().mean() > 0.1
    counts = torch.bincount(index(moved), minlength=64).double()
    common = p * n >= 5
    counts, p = (torch.cat([each[common], each[~common].sum()[None]]) for each in (counts, p))
    assert chi_squared(counts, p) < 5


def test_particles_cross_to_another_mode():
    """Two modes, all on and all off, that Gibbs steps do not leave."""
    dbm = make(chains=200, temperatures=30, lowest=0.05, k=1)
    with torch.no_grad():
        for weight in dbm.weights:
            weight.fill_(3.0)
        for n, bias in enumerate(dbm.biases):
            bias.fill_((-4.5, -9.0, -4.5)[n])
    estimator, now, g = dbm.estimator, dbm.couplings(), seeded(3)
    estimator.chain.fill_(0.0)
    plain = now.gibbs(estimator.chain.clone(), 15, g)
    for _ in range(15):
        estimator.after_step(dbm, estimator.chain, g)
    assert plain.mean() < 0.05
    assert 0.25 < estimator.chain.mean() < 0.75
    assert 0 < estimator.accepted < 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"lowest": 1.0}, "model.estimator.lowest=1.0 must be at least 0 and less than 1"),
        ({"temperatures": 1}, "model.estimator.temperatures=1 must be at least 2"),
    ],
)
def test_temperatures_that_go_nowhere_are_refused(args, sentence):
    with pytest.raises(UserError, match=sentence):
        TemperedTransitions(**args)
