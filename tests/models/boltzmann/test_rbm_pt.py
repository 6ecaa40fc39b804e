"""Parallel tempering against the joint distribution of all temperatures."""

import math

import torch
from torch import Generator

from dgmbench.data.spec import Batch
from dgmbench.models.boltzmann.estimators import PT, swap_probability


def joint(betas, energies):
    """Product of the tempered distributions over the states of all temperatures, from energies (states,)."""
    tempered = [torch.softmax(-beta * energies, 0) for beta in betas]
    p = tempered[0]
    for q in tempered[1:]:
        p = torch.kron(p, q)
    return p


def swap_matrix(betas, energies):
    n = len(energies)
    matrix = torch.zeros(n * n, n * n, dtype=torch.float64)
    for first in range(n):
        for second in range(n):
            accept = swap_probability(betas[0], betas[1], energies[first], energies[second])
            assert (
                abs(accept - min(1.0, math.exp((betas[0] - betas[1]) * (energies[first] - energies[second])))) < 1e-15
            )
            matrix[first * n + second, second * n + first] += accept
            matrix[first * n + second, first * n + second] += 1 - accept
    return matrix


def gibbs_matrix(rbm, beta, pairs):
    """T[(v, h), (v', h')] = p_beta(v' | h) p_beta(h' | v')."""
    now = rbm.couplings().detached()
    v, h = pairs[:, :1], pairs[:, 1:]
    up, down = (beta * now.hidden_logits(v)).sigmoid(), (beta * now.visible_logits(h)).sigmoid()
    new_v = torch.where(v.T.bool(), down, 1 - down)  # [old, new]
    new_h = torch.where(h.bool(), up, 1 - up)  # p(h' | v') of each new pair
    return new_v * new_h.T


def test_one_visible_one_hidden_at_two_temperatures(make_rbm, states):
    """The 16 x 16 swap matrix is in detailed balance, a sweep leaves the product stationary, and both are the code."""
    repeats = 4000
    rbm = make_rbm(1, 1, scale=1.5, estimator=PT(chains=16 * repeats, temperatures=2))
    estimator, now, pairs = rbm.estimator, rbm.couplings().detached(), states(2)
    estimator.betas.copy_(torch.tensor([0.35, 1.0]))
    energies = now.energy(pairs[:, :1], pairs[:, 1:])
    betas = estimator.betas
    p = joint(betas, energies)
    swap = swap_matrix(betas, energies)
    flow = p[:, None] * swap
    assert (flow - flow.T).abs().max() < 1e-12
    gibbs = torch.kron(gibbs_matrix(rbm, betas[0], pairs), gibbs_matrix(rbm, betas[1], pairs))
    torch.testing.assert_close(gibbs.sum(1), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (p @ gibbs @ swap - p).abs().max() < 1e-12
    start = torch.arange(16).repeat_interleave(repeats)
    for move, matrix in ((estimator.swap, swap), (estimator.gibbs, gibbs)):
        for level, pair in enumerate((pairs[start // 4], pairs[start % 4])):
            estimator.visible[level], estimator.hidden[level] = pair[:, :1], pair[:, 1:]
        move(now, Generator().manual_seed(0))
        code = (2 * estimator.visible + estimator.hidden).long().squeeze(-1)
        counts = torch.bincount(16 * start + 4 * code[0] + code[1], minlength=256).view(16, 16) / repeats
        error = (matrix * (1 - matrix) / repeats).sqrt()
        assert (counts[matrix < 1e-14] == 0).all()
        assert ((counts - matrix).abs() <= 4.5 * error + 1e-12).all()


def test_sweeps_over_four_temperatures_leave_every_tempered_distribution_stationary(
    make_rbm, states, index, chi_squared
):
    """Exact starts from the product; even and odd pairs both swap; states of one chain stay whole."""
    chains = 20_000
    rbm = make_rbm(3, 2, scale=1.5, estimator=PT(chains=chains, temperatures=4))
    estimator, now = rbm.estimator, rbm.couplings().detached()
    pairs, g = states(5), Generator().manual_seed(1)
    energies = now.energy(pairs[:, :3], pairs[:, 3:])
    for level, beta in enumerate(estimator.betas):
        rows = torch.multinomial(torch.softmax(-beta * energies, 0), chains, replacement=True, generator=g)
        estimator.visible[level], estimator.hidden[level] = pairs[rows, :3], pairs[rows, 3:]
    before = estimator.visible.clone(), estimator.hidden.clone()
    estimator.swap(now, g)
    now_rows, old_rows = (
        index(torch.cat(s, dim=-1).flatten(0, 1)).view(4, -1) for s in ((estimator.visible, estimator.hidden), before)
    )
    assert torch.equal(now_rows.sort(0).values, old_rows.sort(0).values)  # a swap permutes the states of one chain
    for level in range(4):
        assert not torch.equal(now_rows[level], old_rows[level])
    estimator.sweep(now, 3, g)
    for level, beta in enumerate(estimator.betas):
        rows = index(torch.cat([estimator.visible[level], estimator.hidden[level]], dim=-1))
        assert chi_squared(torch.bincount(rows, minlength=32), torch.softmax(-beta * energies, 0)) < 4


def test_even_pairs_swap_and_then_odd_ones(make_rbm):
    """Without an energy every proposal is accepted: 0123 becomes 1032, then 1302."""
    rbm = make_rbm(3, 2, estimator=PT(chains=6, temperatures=4))
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.zero_()
    estimator = rbm.estimator
    for level in range(4):
        estimator.visible[level], estimator.hidden[level] = level, level
    estimator.swap(rbm.couplings().detached(), Generator().manual_seed(0))
    for states_of_all in (estimator.visible, estimator.hidden):
        assert states_of_all[:, 0, 0].tolist() == [1, 3, 0, 2]
        assert torch.equal(states_of_all, states_of_all[:, :1, :1].expand_as(states_of_all))


def test_the_loss_uses_the_chains_at_beta_one_and_after_step_moves_all(make_rbm):
    rbm = make_rbm(4, 3, estimator=PT(chains=5, temperatures=3))
    x = torch.randint(2, (7, 4), generator=Generator().manual_seed(0)).to(torch.uint8)
    rbm.initialise(Batch(x), Generator().manual_seed(0))
    loss, _ = rbm.loss("model", Batch(x), Generator())
    expected = rbm.free_energy(x.double()).mean() - rbm.free_energy(rbm.estimator.visible[-1]).mean()
    torch.testing.assert_close(loss, expected)
    before = rbm.estimator.visible.clone()
    rbm.after_step("model", Batch(x), Generator().manual_seed(1))
    assert all(not torch.equal(before[level], rbm.estimator.visible[level]) for level in range(3))
    assert torch.equal(rbm.estimator.betas, torch.tensor([0, 0.5, 1]).double())
