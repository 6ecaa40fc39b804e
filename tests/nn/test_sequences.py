"""The places of sentences that count."""

import itertools

import torch

from dgmbench.nn.sequences import counted, sentence_log_prob


def test_places_up_to_the_first_end_count() -> None:
    x = torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0], [1, 1, 1, 2], [1, 2, 1, 0], [1, 0, 2, 0]])
    expected = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert counted(x, 0).int().tolist() == expected
    assert counted(x, None).all()


def test_places_after_the_end_cost_nothing_and_nothing_may_follow_it() -> None:
    each = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.1]] * 3, dtype=torch.float64))
    x = torch.tensor([[1, 0, 0, 0], [1, 2, 1, 2], [1, 0, 1, 0]])
    assert torch.allclose(sentence_log_prob(each, x, 0).exp(), torch.tensor([0.125, 0.0015625, 0.0]).double())
    assert torch.equal(sentence_log_prob(each, x, None), each.sum(1))
    spoiled = each.clone()
    spoiled[0, 2:] = torch.nan  # what is not counted must not matter
    assert sentence_log_prob(spoiled, x, 0)[0] == sentence_log_prob(each, x, 0)[0]


def test_any_conditionals_sum_to_one_over_sentences() -> None:
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)
    x = torch.tensor(list(itertools.product(range(3), repeat=5)))
    each = table[torch.arange(5), x]
    log_prob = sentence_log_prob(each, x, 2)
    assert torch.isclose(log_prob.exp().sum(), torch.ones((), dtype=torch.float64))
    assert log_prob.isinf().sum() == 243 - (1 + 2 + 4 + 8 + 16 + 32)
