"""The RBM against enumeration: energies, log Z, gradients, chains, centring."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Generator

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import CD, PCD, PT
from dgmbench.models.boltzmann.rbm import Rbm
from dgmbench.models.contract import HasTransition, HasUnnormalisedLogProb, StartsFromData


def transition_matrix(rbm, v, h):
    """T[v, v'] = sum_h p(h | v) p(v' | h), built from probabilities of single units."""

    def likelihood(p, s):
        return torch.where(s[None].bool(), p[:, None], 1 - p[:, None]).prod(-1)

    with torch.no_grad():
        return likelihood(rbm.hidden_probability(v), h) @ likelihood(rbm.visible_probability(h), v)


def exact_log_p(rbm, v):
    value = -rbm.free_energy(v)
    return value - value.logsumexp(0)


@pytest.mark.parametrize("centred", [False, True])
def test_free_energy_equals_minus_logsumexp_of_energies_over_enumerated_hidden_states(make_rbm, states, centred):
    rbm = make_rbm(4, 3, centred=centred)
    v, h = states(4), states(3)
    energy = rbm.energy(v.repeat_interleave(8, 0), h.repeat(16, 1)).view(16, 8)
    by_hand = -torch.einsum("vi,ij,hj->vh", v - rbm.visible_offset, rbm.weight, h - rbm.hidden_offset)
    by_hand = (
        by_hand - ((v - rbm.visible_offset) @ rbm.visible_bias)[:, None] - (h - rbm.hidden_offset) @ rbm.hidden_bias
    )
    constant = (by_hand[0, 0] - energy[0, 0]).detach()
    torch.testing.assert_close(energy + constant, by_hand, rtol=0, atol=1e-12)
    assert centred or abs(float(constant)) < 1e-12
    torch.testing.assert_close(rbm.free_energy(v), -(-energy).logsumexp(1), rtol=0, atol=1e-12)


def test_log_partition_by_visible_and_by_hidden_enumeration_agree(make_rbm, states):
    for visible, hidden in ((6, 4), (3, 7), (1, 1), (14, 15)):
        couplings = make_rbm(visible, hidden).couplings()
        by_visible, by_hidden = couplings.log_partition(by="visible"), couplings.log_partition(by="hidden")
        assert abs(by_visible - by_hidden) < 1e-10
        assert by_visible.dtype == torch.float64
    rbm = make_rbm(5, 3)
    v, h = states(5).repeat_interleave(8, 0), states(3).repeat(32, 1)
    assert abs(rbm.log_partition() - (-rbm.energy(v, h)).logsumexp(0)) < 1e-12


def test_log_partition_is_none_where_both_layers_are_large(make_rbm):
    path = make_rbm(21, 21).annealing_path()
    assert path.exact_log_partition() is None
    assert path.sample_target(3) is None


@pytest.mark.parametrize("centred", [False, True])
def test_the_states_of_data_are_the_data(centred):
    rbm = Rbm(DataSpec((2, 3), "binary"), hidden=3, centred=centred)
    path = rbm.annealing_path()
    x = torch.arange(12).view(2, 2, 3).remainder(5).lt(2).to(torch.uint8)
    assert isinstance(path, StartsFromData)
    state = path.state_from(x, generator=Generator())
    assert state.dtype == rbm.weight.dtype
    assert torch.equal(state, x.view(2, 6).float())
    torch.testing.assert_close(path.log_unnormalised(state, 1.0).float(), rbm.log_prob_unnormalised(x).detach())


def test_autograd_of_exact_log_p_equals_data_minus_model_moments(make_rbm, states):
    rbm, v = make_rbm(5, 3), states(5)
    data = torch.softmax(torch.randn(32, dtype=torch.float64, generator=Generator().manual_seed(1)), 0)
    log_p = exact_log_p(rbm, v)
    gradients = torch.autograd.grad((data * log_p).sum(), [rbm.weight, rbm.visible_bias, rbm.hidden_bias])
    with torch.no_grad():
        p, h = log_p.exp(), rbm.hidden_probability(v)
        moments = [((data - p)[:, None] * v).T @ h, (data - p) @ v, (data - p) @ h]
    for gradient, moment in zip(gradients, moments, strict=True):
        torch.testing.assert_close(gradient, moment, rtol=0, atol=1e-12)


def expected_cd_gradient(rbm, v, h, data, k):
    """Gradient of log-likelihood as CD-k sees it in expectation."""
    end = data @ torch.linalg.matrix_power(transition_matrix(rbm, v, h), k)
    with torch.no_grad():
        return ((data - end)[:, None] * v).T @ rbm.hidden_probability(v)


def test_expected_cd_gradient_tends_to_the_exact_gradient_as_k_grows(make_rbm, states):
    rbm, v, h = make_rbm(4, 3), states(4), states(3)
    data = torch.softmax(torch.randn(16, dtype=torch.float64, generator=Generator().manual_seed(2)), 0)
    with torch.no_grad():
        exact = ((data - exact_log_p(rbm, v).exp())[:, None] * v).T @ rbm.hidden_probability(v)
    errors = [float((expected_cd_gradient(rbm, v, h, data, k) - exact).norm()) for k in (1, 2, 4, 8, 16, 64, 256)]
    assert all(b < a for a, b in pairwise(errors[:-1])), errors
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-10


@pytest.mark.parametrize("k", [1, 3])
def test_cd_loss_has_the_expected_gradient_of_the_enumerated_transition_matrix(make_rbm, states, index, k):
    rbm, v, h = make_rbm(4, 3, scale=1.5, estimator=CD(k=k)), states(4), states(3)
    g = Generator().manual_seed(3)
    rows = torch.randint(16, (64,), generator=g)
    data = torch.bincount(rows, minlength=16).double() / len(rows)
    expected = -expected_cd_gradient(rbm, v, h, data, k)
    draws = torch.stack(
        [torch.autograd.grad(rbm.loss("model", Batch(v[rows]), g)[0], rbm.weight)[0] for _ in range(600)]
    )
    z = (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))
    assert z.abs().max() < 4
    other = -expected_cd_gradient(rbm, v, h, data, 4 - k)
    assert ((draws.mean(0) - other) / (draws.std(0) / math.sqrt(len(draws)))).abs().max() > 5


def test_gibbs_leaves_the_enumerated_distribution_stationary(make_rbm, states, index, chi_squared):
    rbm, v, h = make_rbm(4, 3), states(4), states(3)
    p = exact_log_p(rbm, v).exp().detach()
    matrix = transition_matrix(rbm, v, h)
    torch.testing.assert_close(p @ matrix, p, rtol=0, atol=1e-14)
    flow = p[:, None] * matrix
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-14)
    g = Generator().manual_seed(4)
    start = torch.arange(16).repeat_interleave(5000)
    end = rbm.transition(v[start].to(torch.uint8), generator=g)
    assert end.dtype == torch.uint8
    for row in range(16):
        counts = torch.bincount(index(end[start == row]), minlength=16)
        assert chi_squared(counts, matrix[row]) < 5
    exact = rbm.annealing_path().sample_target(40_000, generator=g)
    assert chi_squared(torch.bincount(index(rbm.gibbs(exact, 5, generator=g)), minlength=16), p) < 4


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (3, 5)])
def test_exact_samples_have_the_enumerated_frequencies(make_rbm, states, index, chi_squared, visible, hidden):
    rbm = make_rbm(visible, hidden)
    p = exact_log_p(rbm, states(visible)).exp().detach()
    samples = rbm.couplings().sample_exact(40_000, Generator().manual_seed(5))
    assert chi_squared(torch.bincount(index(samples), minlength=2**visible), p) < 4


def test_samples_of_long_chains_have_the_enumerated_frequencies(make_rbm, states, index, chi_squared):
    rbm = make_rbm(4, 3, sample_steps=100)
    samples = rbm.sample(20_000, generator=Generator().manual_seed(6))
    assert samples.dtype == torch.uint8
    p = exact_log_p(rbm, states(4)).exp().detach()
    assert chi_squared(torch.bincount(index(samples), minlength=16), p) < 4


def two_modes(estimator=None):
    """All units off, or all on: two modes that Gibbs sampling hardly leaves, of weights 0.27 and 0.73."""
    rbm = Rbm(DataSpec((8,), "binary"), hidden=2, estimator=estimator).double()
    with torch.no_grad():
        rbm.weight.fill_(4.0)
        rbm.visible_bias.fill_(-4.0)
        rbm.hidden_bias.fill_(-16.0 + 0.5)
    return rbm


def test_parallel_tempering_reaches_both_modes_and_gibbs_of_equal_length_does_not(states):
    rbm, sweeps, chains = two_modes(PT(chains=1000, temperatures=10)), 120, 1000
    v = states(8)
    p = exact_log_p(rbm, v).exp().detach()
    weight = float(p[v.sum(1) > 4].sum())
    assert 0.7 < weight < 0.76
    g = Generator().manual_seed(7)
    rbm.estimator.visible.zero_()
    rbm.estimator.hidden.zero_()
    rbm.estimator.sweep(rbm.couplings().detached(), sweeps, g)
    tempered = float((rbm.estimator.visible[-1].sum(1) > 4).double().mean())
    assert abs(tempered - weight) < 4 * math.sqrt(weight * (1 - weight) / chains)
    gibbs = float((rbm.gibbs(torch.zeros(chains, 8).double(), sweeps, generator=g).sum(1) > 4).double().mean())
    assert gibbs < 0.02


def test_moving_the_offsets_leaves_p_unchanged(make_rbm, states):
    rbm, v = make_rbm(5, 3, centred=True), states(5)
    before = rbm.log_prob_unnormalised(v).detach()
    g = Generator().manual_seed(8)
    rbm.move_offsets(torch.rand(5, generator=g).double(), torch.rand(3, generator=g).double(), 0.3)
    torch.testing.assert_close(rbm.log_prob_unnormalised(v).detach(), before, rtol=0, atol=1e-12)
    assert (rbm.visible_offset - 0.5).abs().max() > 0.01


def test_centred_machine_equals_the_uncentred_one_after_reparametrisation(make_rbm, states):
    centred, plain, v = make_rbm(5, 3, centred=True), make_rbm(5, 3), states(5)
    with torch.no_grad():
        centred.visible_offset.copy_(torch.rand(5, generator=Generator().manual_seed(9)))
        centred.visible_bias.copy_(plain.visible_bias + plain.weight @ centred.hidden_offset)
        centred.hidden_bias.copy_(plain.hidden_bias + centred.visible_offset @ plain.weight)
    torch.testing.assert_close(exact_log_p(centred, v), exact_log_p(plain, v), rtol=0, atol=1e-12)
    data = torch.softmax(torch.randn(32, dtype=torch.float64, generator=Generator().manual_seed(1)), 0)
    gradient = torch.autograd.grad((data * exact_log_p(centred, v)).sum(), centred.weight)[0]
    with torch.no_grad():
        p, h = exact_log_p(centred, v).exp(), centred.hidden_probability(v)
        moments = ((data - p)[:, None] * (v - centred.visible_offset)).T @ (h - centred.hidden_offset)
    torch.testing.assert_close(gradient, moments, rtol=0, atol=1e-12)


def test_offsets_follow_the_data(make_rbm):
    rbm = make_rbm(4, 3, centred=True, centring_rate=0.5)
    x = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.uint8)
    for _ in range(60):
        hidden = rbm.hidden_probability(rbm.flatten(x)).mean(0)
        rbm.after_step("model", Batch(x), Generator())
    torch.testing.assert_close(rbm.visible_offset, torch.tensor([1, 0.5, 0, 0]).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(rbm.hidden_offset, hidden.detach(), rtol=0, atol=1e-9)


def test_initialise_sets_the_visible_biases_to_smoothed_log_odds():
    rbm = Rbm(DataSpec((1, 1, 3), "binary"), hidden=2, estimator=PCD(chains=4))
    x = torch.tensor([[0, 1, 1]] * 6 + [[0, 0, 1]] * 2, dtype=torch.uint8).view(8, 1, 1, 3)
    rbm.initialise(Batch(x), Generator().manual_seed(0))
    expected = torch.tensor([1 / 10, 7 / 10, 9 / 10])
    torch.testing.assert_close(rbm.visible_bias.sigmoid().detach(), expected)
    torch.testing.assert_close(rbm.base_logits.sigmoid(), expected)
    assert rbm.reconstruct(x).shape == x.shape
    assert rbm.encode(x).shape == (8, 2)
    assert rbm.sample(2).shape == (2, 1, 1, 3)
    assert isinstance(rbm, HasUnnormalisedLogProb)
    assert isinstance(rbm, HasTransition)


def test_exact_likelihood_rises_with_training_by_cd(states, index):
    """Two noisy templates: from log-likelihood of independent units to near the data's own entropy."""
    g = Generator().manual_seed(0)
    which = torch.randint(2, (200, 1), generator=g)
    x = torch.where(torch.rand(200, 6, generator=g) < 0.1, 1 - which, which).to(torch.uint8)
    torch.manual_seed(0)
    rbm = Rbm(DataSpec((6,), "binary"), hidden=4, weight_std=0.1)
    rbm.initialise(Batch(x), g)

    def log_likelihood():
        return float((rbm.log_prob_unnormalised(x).double() - rbm.log_partition()).mean().detach())

    start, optimiser = log_likelihood(), torch.optim.SGD(rbm.parameters(), lr=0.5)
    for _ in range(400):
        optimiser.zero_grad()
        rbm.loss("model", Batch(x), g)[0].backward()
        optimiser.step()
    assert start == pytest.approx(-6 * math.log(2), abs=0.1)
    assert log_likelihood() > -2.75  # the templates' mixture itself: -log 2 - 6 H(0.1) = -2.64


def test_the_weights_decay_and_the_biases_do_not(make_rbm, states):
    plain, decayed = make_rbm(4, 3, estimator=PCD(chains=5)), make_rbm(4, 3, estimator=PCD(chains=5), weight_decay=0.3)
    gradients = []
    for rbm in (plain, decayed):
        loss, _ = rbm.loss("model", Batch(states(4).to(torch.uint8)), Generator())
        gradients.append(torch.autograd.grad(loss, [rbm.weight, rbm.visible_bias, rbm.hidden_bias]))
    torch.testing.assert_close(gradients[1][0] - gradients[0][0], 0.3 * plain.weight.detach(), rtol=0, atol=1e-12)
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert torch.equal(gradients[0][2], gradients[1][2])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"hidden": 0}, "must be at least 1"),
        ({"spec": DataSpec((3,), "real")}, "binary data"),
        ({"k": 0}, "at least 1"),
    ],
)
def test_bad_arguments_end_with_a_sentence(args, sentence):
    k, spec, hidden = args.get("k", 1), args.get("spec", DataSpec((3,), "binary")), args.get("hidden", 2)
    with pytest.raises(UserError, match=sentence):
        Rbm(spec, hidden=hidden, estimator=CD(k=k))
