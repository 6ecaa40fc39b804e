"""Ratio matching."""

import torch
from torch import Generator

from dgmbench.data.spec import Batch
from dgmbench.models.boltzmann.estimators import RatioMatching


def test_objective_matches_a_brute_force_sum_over_bit_flips(make_rbm, states):
    rbm, v = make_rbm(5, 3, estimator=RatioMatching()), states(5)
    p = torch.softmax(rbm.log_prob_unnormalised(v).detach(), 0)
    total = torch.zeros((), dtype=torch.float64)
    rows = [3, 17, 17, 30]
    for row in rows:
        for bit in range(5):
            flipped = row ^ (1 << (4 - bit))
            assert (v[row] != v[flipped]).nonzero().flatten().tolist() == [bit]
            total += (1 / (1 + p[row] / p[flipped])) ** 2
    loss, _ = rbm.loss("model", Batch(v[rows].to(torch.uint8)), Generator())
    torch.testing.assert_close(loss.detach(), total / len(rows), rtol=0, atol=1e-12)


def test_objective_equals_the_squared_error_of_ratios_up_to_a_constant(make_rbm, states):
    """E_data sum_i [g(ratio of the model) - g(ratio of the data)]^2, both ways, less a constant (Hyvarinen 2007)."""
    v = states(4)
    data = torch.softmax(torch.randn(16, dtype=torch.float64, generator=Generator().manual_seed(0)), 0)
    flips = [[row ^ (1 << (3 - bit)) for bit in range(4)] for row in range(16)]

    def both(seed):
        rbm = make_rbm(4, 3, seed=seed, estimator=RatioMatching())
        with torch.no_grad():
            p = torch.softmax(rbm.log_prob_unnormalised(v), 0)
            losses = torch.stack([rbm.loss("model", Batch(v[row : row + 1]), Generator())[0] for row in range(16)])
        direct = torch.zeros((), dtype=torch.float64)
        for row in range(16):
            for other in flips[row]:
                model, truth = p[other] / (p[row] + p[other]), data[other] / (data[row] + data[other])
                direct += data[row] * ((model - truth) ** 2 + ((1 - model) - (1 - truth)) ** 2)
        return (data * losses).sum(), direct / 2

    (loss_a, direct_a), (loss_b, direct_b) = both(0), both(1)
    torch.testing.assert_close(loss_a - direct_a, loss_b - direct_b, rtol=0, atol=1e-12)


def test_gradient_vanishes_at_the_parameters_that_generated_an_enumerated_data_set(make_rbm, states):
    rbm, v = make_rbm(5, 3, estimator=RatioMatching()), states(5)
    p = torch.softmax(rbm.log_prob_unnormalised(v).detach(), 0)
    losses = torch.stack([rbm.loss("model", Batch(v[row : row + 1]), Generator())[0] for row in range(32)])
    for gradient in torch.autograd.grad((p * losses).sum(), list(rbm.parameters()), retain_graph=True):
        assert gradient.abs().max() < 1e-12
    uniform = torch.autograd.grad(losses.mean(), list(rbm.parameters()))
    assert all(gradient.abs().max() > 1e-3 for gradient in uniform)


def test_ratio_matching_recovers_the_distribution(make_rbm, states):
    teacher, v = make_rbm(5, 3), states(5)
    p = torch.softmax(teacher.log_prob_unnormalised(v).detach(), 0)
    rbm = make_rbm(5, 3, scale=0.3, seed=1, estimator=RatioMatching())
    x = v.repeat_interleave((1500 * p).round().long(), 0)
    optimiser = torch.optim.Adam(rbm.parameters(), lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        rbm.loss("model", Batch(x), Generator())[0].backward()
        optimiser.step()
    log_p = (rbm.log_prob_unnormalised(v) - rbm.log_partition()).detach()
    assert float((p * (p.log() - log_p)).sum()) < 0.01
