"""The decoder of sentences against enumeration, perturbation, and searches written out."""

import itertools

import pytest
import torch
from scipy import stats

from dgmbench.nn.recurrent_decoder import RecurrentDecoder

TOKENS, LENGTH, END = 3, 4, 0


def decoder(latent=2, length=LENGTH, tokens=TOKENS, end=END, seed=0):
    """Weights large enough for strong dependencies, in float64."""
    torch.manual_seed(seed)
    net = RecurrentDecoder(tokens, length, end, width=5, hidden=7, latent=latent).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0)
    return net


def codes(n, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything(tokens=TOKENS, length=LENGTH):
    return torch.tensor(list(itertools.product(range(tokens), repeat=length)))


@torch.no_grad()
def test_sentences_and_the_remainder_sum_to_one_given_a_code():
    """Three symbols and an end: all sentences of up to four symbols, and all that have not ended by then."""
    net = decoder(tokens=4, length=5)
    x = everything(4, 5)
    for code in codes(3):
        p = net.log_prob(x, code.expand(len(x), 2)).exp()
        ended = (x == END).any(1)
        sentences = p[ended & (p > 0)]
        assert len(sentences) == 1 + 3 + 9 + 27 + 81
        assert 0.05 < p[~ended].sum() < 0.95
        assert (sentences.sum() + p[~ended].sum()).item() == pytest.approx(1.0, abs=1e-12)
        after_the_end = ended & ((x == END).int().diff(dim=1) < 0).any(1)
        assert (p[after_the_end] == 0).all()


@torch.no_grad()
def test_log_prob_is_the_product_of_the_conditionals_up_to_the_end():
    net, x = decoder(), everything()
    code = codes(1).expand(len(x), 2)
    log_p = net.logits(x, code).log_softmax(-1)
    log_prob = net.log_prob(x, code)
    for row, each, value in zip(x.tolist(), log_p, log_prob, strict=True):
        stop = row.index(END) if END in row else LENGTH - 1
        if any(token != END for token in row[stop + 1 :]):
            assert value == -torch.inf
        else:
            assert value.item() == pytest.approx(sum(each[t, row[t]].item() for t in range(stop + 1)))


@torch.no_grad()
def test_causality_by_perturbation():
    """A token moves the conditionals after it, and none at or before it; the code moves them all."""
    net, length = decoder(length=8, tokens=6), 8
    x = torch.randint(6, (20, length), generator=torch.Generator().manual_seed(0))
    code = codes(20)
    before = net.logits(x, code)
    for t in range(length):
        moved = x.clone()
        moved[:, t] = (x[:, t] + 1) % 6
        change = (net.logits(moved, code) - before).abs().amax((0, 2))
        assert (change[: t + 1] == 0).all()
        assert (change[t + 1 :] > 0).all()
    assert ((net.logits(x, code + 0.1) - before).abs().amax((0, 2)) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("latent", [0, 2])
def test_sample_frequencies_match_the_probabilities(latent):
    net, n = decoder(latent), 20_000
    code = codes(1).expand(n, 2) if latent else None
    x = net.sample(n, code, generator=torch.Generator().manual_seed(0))
    every = everything()
    counts = torch.bincount((x * TOKENS ** torch.arange(LENGTH - 1, -1, -1)).sum(1), minlength=len(every)).double()
    expected = n * net.log_prob(every, None if code is None else code[: len(every)]).exp()
    assert (counts[expected == 0] == 0).all()
    common = expected >= 5
    observed = torch.cat((counts[common], counts[~common].sum()[None]))
    wanted = torch.cat((expected[common], expected[~common].sum()[None]))
    keep = wanted > 0
    assert stats.chisquare(observed[keep], wanted[keep] * (n / wanted[keep].sum())).pvalue > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("end", [END, None])
def test_a_beam_of_one_is_greedy(end):
    net, code = decoder(length=10, tokens=6, end=end), codes(30)
    found, score = net.search(30, code, beam=1)
    x = torch.zeros(30, 10, dtype=torch.int64)
    ended = torch.zeros(30, dtype=torch.bool)
    for t in range(10):
        x[:, t] = net.logits(x, code)[:, t].argmax(-1)
        if end is not None:
            x[ended, t] = end
            ended |= x[:, t] == end
    assert torch.equal(found, x)
    assert torch.allclose(score, net.log_prob(x, code))


@torch.no_grad()
def test_a_full_beam_finds_the_best_of_all_sentences():
    differs = 0
    for seed in range(6):
        net, code, every = decoder(seed=seed), codes(8, seed), everything()
        log_prob = torch.stack([net.log_prob(every, c.expand(len(every), 2)) for c in code])
        found, score = net.search(8, code, beam=len(every))
        assert torch.equal(found, every[log_prob.argmax(1)])
        assert torch.allclose(score, log_prob.max(1).values)
        greedy, lower = net.search(8, code, beam=1)
        assert (lower <= score + 1e-12).all()
        differs += int((greedy != found).any(1).sum())
    assert differs > 0, "where greedy always finds the best, the test of the beam shows nothing"


@torch.no_grad()
def test_sentences_of_full_length_have_no_end():
    net, x = decoder(end=None), everything()
    assert net.log_prob(x, codes(1).expand(len(x), 2)).logsumexp(0).item() == pytest.approx(0.0, abs=1e-12)
    assert net.sample(5, codes(5), generator=torch.Generator().manual_seed(0)).shape == (5, LENGTH)
