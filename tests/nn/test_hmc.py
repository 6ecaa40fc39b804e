"""Hamiltonian Monte Carlo: reversible, accurate to the second order, and of the right distribution."""

import math

import torch
from torch import Generator

from dgmbench.nn.hmc import LogDensity, adapted, leapfrog, move


def banana(z):
    """Two dimensions that are not Gaussian."""
    return -0.5 * z[:, 0].square() - 2.0 * (z[:, 1] - 0.5 * z[:, 0].square()).square()


def start(n=64):
    g = Generator().manual_seed(0)
    z, p = (torch.randn(n, 2, dtype=torch.float64, generator=g) for _ in range(2))
    return LogDensity(banana), z, p


def test_leapfrog_comes_back_when_the_momentum_is_reversed():
    target, z, p = start()
    step = torch.full((64, 1), 0.1, dtype=torch.float64)
    end, momentum = leapfrog(target, target.at(z), p, step, 7)
    back, again = leapfrog(target, end, -momentum, step, 7)
    assert (end.z - z).abs().max() > 0.3
    torch.testing.assert_close(back.z, z, rtol=0, atol=1e-11)
    torch.testing.assert_close(again, -p, rtol=0, atol=1e-11)


def test_the_energy_error_is_of_the_second_order_in_the_step():
    target, z, p = start()
    point, errors = target.at(z), []
    for halvings in range(3):
        steps = 10 * 2**halvings
        step = torch.full((64, 1), 0.5 / steps, dtype=torch.float64)
        end, momentum = leapfrog(target, point, p, step, steps)
        change = target.hamiltonian(end, momentum) - target.hamiltonian(point, p)
        errors.append(float(change.abs().mean()))
    assert 3.6 < errors[0] / errors[1] < 4.4
    assert 3.8 < errors[1] / errors[2] < 4.2


def test_a_volume_element_keeps_its_size():
    target, z, p = start(1)
    step = torch.full((1, 1), 0.2, dtype=torch.float64)

    def flow(both):
        end, momentum = leapfrog(target, target.at(both[None, :2]), both[None, 2:], step, 3)
        return torch.cat([end.z, momentum], 1)[0]

    both, columns, h = torch.cat([z, p], 1)[0], [], 1e-6
    for k in range(4):
        shift = torch.zeros(4, dtype=torch.float64)
        shift[k] = h
        columns.append((flow(both + shift) - flow(both - shift)) / (2 * h))
    assert abs(float(torch.linalg.det(torch.stack(columns))) - 1) < 1e-7


def test_samples_have_the_moments_of_quadrature():
    """Step sizes adapt for each chain first; then 4,000 chains, each from its last state."""
    target, chains, g = LogDensity(banana), 4000, Generator().manual_seed(1)
    state = target.at(torch.zeros(chains, 2, dtype=torch.float64))
    log_step = torch.full((chains,), math.log(0.02), dtype=torch.float64)
    for _ in range(30):
        state, accepted = move(target, state, log_step.exp(), 5, g)
        log_step = adapted(log_step, accepted, rate=0.3)
    assert 0.1 < float(log_step.exp().mean()) < 1.5
    acceptance = []
    for _ in range(30):
        state, accepted = move(target, state, log_step.exp(), 5, g)
        acceptance.append(float(accepted.mean()))
    assert 0.5 < sum(acceptance) / 30 < 0.95
    axis = torch.linspace(-8, 12, 700, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    p = torch.softmax(banana(grid), 0)
    mean = p @ grid
    covariance = (p[:, None] * (grid - mean)).T @ (grid - mean)
    centred = state.z - mean
    for i in range(2):
        assert abs(float(centred[:, i].mean())) < 4.5 * math.sqrt(float(covariance[i, i]) / chains)
        for j in range(2):
            product = centred[:, i] * centred[:, j]
            assert abs(float(product.mean() - covariance[i, j])) < 4.5 * float(product.std()) / math.sqrt(chains)


def test_a_diverged_orbit_is_refused():
    target = LogDensity(lambda z: -z.square().square().sum(1))
    state = target.at(torch.ones(5, 2, dtype=torch.float64))
    after, accepted = move(target, state, torch.full((5,), 50.0, dtype=torch.float64), 4, Generator().manual_seed(0))
    assert torch.equal(after.z, state.z)
    assert not accepted.any()
