"""Orderless NADEs: unbiased over all orders, exact in each, mixtures of probabilities, completions of any part."""

import itertools
import math

import pytest
import torch

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.autoregressive.conv_nade import ConvNade
from dgmbench.models.autoregressive.deep_nade import DeepNade
from dgmbench.models.autoregressive.nade_k import NadeK
from dgmbench.verify.check import chi_squared
from dgmbench.verify.support import all_states, state_index

SPEC = DataSpec((1, 2, 3), "binary")


def deep(spec=SPEC, **kwargs):
    return DeepNade(spec, hidden_sizes=(12, 8), **kwargs)


def conv(spec=SPEC, **kwargs):
    return ConvNade(spec, channels=6, depth=2, hidden_sizes=(5,), **kwargs)


def iterative(spec=SPEC, **kwargs):
    return NadeK(spec, hidden_sizes=(10, 7), k=3, pretrain=0.0, **kwargs)


MODELS = [deep, conv, iterative]


def strong(build, seed=0, gain=3.0, **kwargs):
    """A model with strong dependencies, in float64."""
    torch.manual_seed(seed)
    model = build(**kwargs).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain)
        model.out_bias.normal_()
    if isinstance(model, NadeK):
        model.mean.uniform_(0.1, 0.9)
        model.enter_stage(model.stages()[-1], torch.Generator())
    return model


def states(spec=SPEC):
    return all_states(spec.dim, spec.levels, torch.uint8).reshape(-1, *spec.shape)


@pytest.mark.parametrize("build", MODELS)
def test_the_loss_is_unbiased_over_all_orders(build):
    """Every set of known dimensions at its probability, against the mean over all 720 orders."""
    model, x = strong(build), states()[::13]
    expected = torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for order in itertools.permutations(range(6)):
            expected -= model.log_prob_in_order(x, torch.tensor(order)) / math.factorial(6)
        loss = torch.zeros_like(expected)
        for known in itertools.product((False, True), repeat=6):
            if not all(known):
                chance = 1 / 6 / math.comb(6, sum(known))
                loss += chance * model.loss_given(x, torch.tensor([known] * len(x)))
    assert torch.allclose(loss, expected, rtol=1e-9)


def test_known_sets_have_a_uniform_size_and_are_uniform_of_that_size():
    known = deep().draw_known(60_000, torch.Generator().manual_seed(0))
    index = state_index(known.byte(), 2)
    chance = torch.tensor([
        0.0 if sum(bits) == 6 else 1 / 6 / math.comb(6, sum(bits)) for bits in itertools.product((0, 1), repeat=6)
    ]).double()  # fmt: skip
    assert chance.sum().item() == pytest.approx(1)
    assert chi_squared(torch.bincount(index, minlength=64), chance) > 1e-3


@pytest.mark.parametrize("build", MODELS)
def test_the_loss_of_a_batch_is_that_of_drawn_sets(build):
    model, x = strong(build), states()
    generator = torch.Generator().manual_seed(3)
    loss, logs = model.loss("model", Batch(x), generator)
    known = model.draw_known(len(x), torch.Generator().manual_seed(3))
    assert loss.item() == pytest.approx(model.loss_given(x, known).mean().item(), rel=1e-12)
    assert logs["log_prob"].item() == -loss.item()


@pytest.mark.parametrize("build", MODELS)
def test_sums_to_one_in_every_order_and_the_orders_differ(build):
    model, x = strong(build), states()
    each = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 4, 3]):
        each.append(model.log_prob_in_order(x, torch.tensor(order)).detach())
        assert each[-1].logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)
    assert (each[0] - each[1]).abs().max() > 0.1
    assert each[0].std() > 0.5


@pytest.mark.parametrize("build", MODELS)
def test_an_order_s_likelihood_is_the_product_of_its_conditionals(build):
    model, x = strong(build), states()[::5]
    order = [3, 0, 5, 2, 1, 4]
    flat, total = x.flatten(1).double(), torch.zeros(len(x), dtype=torch.float64)
    for t, i in enumerate(order):
        known = torch.zeros(len(x), 6, dtype=torch.float64)
        known[:, order[:t]] = 1
        logit = model.parameters_given(flat * known, known)[:, i, 0]
        total += torch.where(flat[:, i] == 1, logit, -logit).sigmoid().log()
    assert torch.allclose(model.log_prob_in_order(x, torch.tensor(order)), total, rtol=1e-10)


@pytest.mark.parametrize("build", MODELS)
def test_the_ensemble_averages_probabilities_not_logits(build):
    model, x = strong(build, orders=3), states()
    each = torch.stack([model.log_prob_in_order(x, s) for s in model.sequences])
    assert torch.allclose(model.log_prob(x).exp(), each.exp().mean(0), rtol=1e-10)
    logits = torch.stack([model._parameters_in_order(x, s)[:, s.argsort(), 0] for s in model.sequences]).mean(0)
    of_logits = torch.where(x.flatten(1) == 1, logits, -logits).sigmoid().log().sum(1)
    assert abs(of_logits.logsumexp(0).item()) > 1e-3, "the average of logits is no distribution"


@pytest.mark.parametrize("build", MODELS)
def test_few_rows_at_a_time_give_the_same_values(build):
    model, x = strong(build, orders=2), states()[:7]
    whole = model.log_prob(x)
    seen = []
    inner = model.parameters_of
    model.rows = 16
    model.parameters_of = lambda values, known, which: (seen.append(len(values)), inner(values, known, which))[1]
    assert torch.allclose(model.log_prob(x), whole, rtol=1e-12)
    assert max(seen) <= 16
    assert sum(seen) == 2 * 6 * 7


@pytest.mark.parametrize("build", MODELS)
def test_samples_follow_the_mixture(build):
    model = strong(build, orders=3, gain=2.0)
    samples = model.sample(20_000, generator=torch.Generator().manual_seed(0)).flatten(1)
    log_prob = model.log_prob(states()).detach()
    assert chi_squared(torch.bincount(state_index(samples, 2), minlength=64), log_prob.exp()) > 1e-3


@pytest.mark.parametrize("build", MODELS)
def test_completions_are_exact_draws_given_what_is_known(build):
    """Against the joint of the unknown dimensions in the order that puts the known ones first, by enumeration."""
    model, n = strong(build, gain=2.0), 20_000
    known = torch.tensor([True, False, False, True, False, True]).view(1, 2, 3)
    x = torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.uint8).view(1, 2, 3)
    drawn = model.complete(x.expand(n, 1, 2, 3), known.expand(n, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn[:, known], x[known].expand(n, 3))
    sequence = model.sequences[0].tolist()
    order = [i for i in sequence if i in (0, 3, 5)] + [i for i in sequence if i in (1, 2, 4)]
    possible = states()[(states()[:, known] == x[known]).all(1)]
    log_prob = model.log_prob_in_order(possible, torch.tensor(order)).detach()
    p = (log_prob - log_prob.logsumexp(0)).exp()
    counts = torch.bincount(state_index(drawn[:, ~known], 2), minlength=8)
    assert torch.equal(state_index(possible[:, ~known], 2), torch.arange(8))
    assert chi_squared(counts, p) > 1e-3


@pytest.mark.parametrize("build", MODELS)
def test_each_example_completes_its_own_part(build):
    model = strong(build, orders=2)
    x, known = states(), torch.rand(64, 1, 2, 3, generator=torch.Generator().manual_seed(1)) < 0.6
    known[0], known[1] = True, False
    drawn = model.complete(x, known, generator=torch.Generator().manual_seed(2))
    assert torch.equal(drawn[known], x[known])
    assert (drawn[~known] != x[~known]).any()
    assert torch.equal(drawn[0], x[0])
    other = torch.where(known, x, 1 - x)
    assert torch.equal(drawn, model.complete(other, known, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("build", [deep, conv])
def test_levels_sum_to_one(build):
    model = strong(build, spec=DataSpec((2, 1, 2), "discrete", 4), orders=2)
    assert model.log_prob(states(model.spec)).logsumexp(0).item() == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("build", MODELS)
def test_starts_at_the_marginals(build):
    torch.manual_seed(0)
    model = build().double()
    x = (torch.rand(400, 6) < torch.linspace(0.1, 0.9, 6)).byte().view(400, 1, 2, 3)
    model.initialise(Batch(x), torch.Generator())
    p = (x.flatten(1).double().sum(0) + 0.5) / 401
    assert torch.allclose(model.out_bias[:, 0].sigmoid(), p, atol=1e-6)
