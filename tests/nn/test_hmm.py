"""Chains against all paths one by one, and against hmmlearn."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hmmlearn.hmm import GMMHMM, CategoricalHMM
from torch import Generator, Tensor

from dgmbench.nn.hmm import Chain, align, expected, log_partition, score, viterbi, word_loop, words_of


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


S = 3
LENGTH = torch.tensor([4, 1, 3])
EMISSION = normal(3, 4, S, seed=1)


def own_chain() -> Chain:
    """One for each utterance, with steps that are forbidden."""
    chain = Chain(normal(3, S, seed=2), normal(3, S, S, seed=3), normal(3, S, seed=4))
    chain.transition[:, 0, 2] = -torch.inf
    return chain


def every_path(chain: Chain, n: int) -> tuple[Tensor, Tensor]:
    """All paths of utterance n, and their scores term by term."""
    start, transition, end = (each[n] for each in chain.rows())
    t = int(LENGTH[n])
    paths = torch.tensor(list(product(range(S), repeat=t)))
    total = start[paths[:, 0]] + end[paths[:, -1]]
    for k in range(t):
        total = total + EMISSION[n, k, paths[:, k]]
        if k:
            total = total + transition[paths[:, k - 1], paths[:, k]]
    return paths, total


@pytest.mark.parametrize("far", [False, True])
def test_sums_marginals_and_the_best_path_are_those_of_all_paths(monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    """Also where the numbers lie too far apart for products."""
    if far:
        monkeypatch.setattr("dgmbench.nn.hmm.NATS", 0.1)
    chain = own_chain()
    found, (path, best) = expected(chain, EMISSION, LENGTH), viterbi(chain, EMISSION, LENGTH)
    torch.testing.assert_close(log_partition(chain, EMISSION, LENGTH), found.log_partition)
    for n, t in enumerate(LENGTH.tolist()):
        paths, total = every_path(chain, n)
        p = total.softmax(0)
        torch.testing.assert_close(found.log_partition[n], total.logsumexp(0))
        states = torch.stack([torch.stack([p[paths[:, k] == s].sum() for s in range(S)]) for k in range(t)])
        torch.testing.assert_close(found.states[n, :t], states)
        assert not found.states[n, t:].any()
        steps = torch.zeros(S * S, dtype=torch.float64)
        moved = (S * paths[:, :-1] + paths[:, 1:]).flatten()
        steps = steps.index_add(0, moved, p.repeat_interleave(t - 1)).view(S, S)
        torch.testing.assert_close(found.steps[n], steps)
        assert path[n, :t].tolist() == paths[total.argmax()].tolist()
        assert (path[n, t:] == -1).all()
        torch.testing.assert_close(best[n], total.max())
        padded = torch.full((len(paths), 4), -1)
        padded[:, :t] = paths
        rows = Chain(*(each[n].expand(len(paths), *each[n].shape) for each in chain))
        many = (EMISSION[n].expand(len(paths), -1, -1), LENGTH[n].expand(len(paths)))
        allowed = total > -torch.inf
        torch.testing.assert_close(score(rows, *many, padded)[allowed], total[allowed])


def test_what_lies_behind_the_end_counts_for_nothing() -> None:
    chain, other = own_chain(), EMISSION.clone()
    other[1, 1:], other[2, 3:] = 50.0, torch.nan
    for a, b in zip(expected(chain, EMISSION, LENGTH), expected(chain, other, LENGTH), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(viterbi(chain, other, LENGTH)[0], viterbi(chain, EMISSION, LENGTH)[0])


def test_scores_that_lie_far_apart() -> None:
    """The first step costs 2000 nats on the only path that can end."""
    chain = Chain(torch.zeros(2), torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]), torch.tensor([-torch.inf, 0.0]))
    emission = torch.tensor([[[0.0, -2000.0], [0.0, 1.0], [3.0, 0.5]]])
    found = expected(chain, emission, torch.tensor([3]))
    assert float(found.log_partition) == pytest.approx(-1998.5)
    assert found.states[0, :, 1].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert found.steps[0].flatten().tolist() == pytest.approx([0.0, 0.0, 0.0, 2.0])


def test_a_step_that_costs_more_than_an_exponential_can_hold() -> None:
    """The only step to the state that can end costs 2000 nats; it is taken at one of two times."""
    transition = torch.tensor([[0.0, -2000.0], [-torch.inf, 0.0]], dtype=torch.float64)
    chain = Chain(torch.tensor([0.0, -torch.inf]).double(), transition, torch.tensor([-torch.inf, 0.0]).double())
    found = expected(chain, torch.zeros(1, 3, 2, dtype=torch.float64), torch.tensor([3]))
    assert float(found.log_partition) == pytest.approx(-2000 + np.log(2), abs=1e-9)
    assert found.states[0, :, 1].tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert found.steps[0].flatten().tolist() == pytest.approx([0.5, 1.0, 0.0, 0.5])


def test_gradients_of_log_z_are_expected_counts() -> None:
    chain = own_chain()
    leaves = [each.clamp_min(-30).requires_grad_() for each in (*chain, EMISSION)]
    log_partition(Chain(*leaves[:3]), leaves[3], LENGTH).sum().backward()
    found = expected(Chain(*(each.detach() for each in leaves[:3])), EMISSION, LENGTH)
    torch.testing.assert_close(leaves[1].grad, found.steps)
    torch.testing.assert_close(leaves[3].grad, found.states)
    torch.testing.assert_close(leaves[0].grad, found.states[:, 0])


def test_forbidden_steps_leave_gradients_finite() -> None:
    stay = torch.full((6,), 0.6).requires_grad_()
    emission = normal(2, 5, 6).requires_grad_()
    log_partition(word_loop(2, 3, stay), emission, torch.tensor([5, 3])).sum().backward()
    assert stay.grad is not None
    assert emission.grad is not None
    assert stay.grad.isfinite().all()
    assert emission.grad.isfinite().all()


def test_a_mixture_hmm_is_hmmlearns() -> None:
    """Log-likelihood, posteriors and Viterbi path of the same numbers."""
    rng = np.random.RandomState(0)
    peer = GMMHMM(n_components=4, n_mix=2, covariance_type="diag")
    peer.startprob_ = rng.dirichlet(np.ones(4))
    peer.transmat_ = rng.dirichlet(np.ones(4), 4)
    peer.weights_, peer.means_ = rng.dirichlet(np.ones(2), 4), rng.randn(4, 2, 3)
    peer.covars_ = rng.uniform(0.5, 2, (4, 2, 3))
    peer.n_features = 3
    x = rng.randn(2, 30, 3)
    points = torch.tensor(x)[:, :, None, None]
    means, covars = torch.tensor(peer.means_), torch.tensor(peer.covars_)
    density = torch.distributions.Normal(means, covars.sqrt()).log_prob(points).sum(-1)
    emission = (density + torch.tensor(peer.weights_).log()).logsumexp(-1)
    chain = Chain(
        torch.tensor(peer.startprob_).log(), torch.tensor(peer.transmat_).log(), torch.zeros(4, dtype=torch.float64)
    )
    length = torch.tensor([30, 30])
    found, (path, best) = expected(chain, emission, length), viterbi(chain, emission, length)
    for n in range(2):
        assert float(found.log_partition[n]) == pytest.approx(peer.score(x[n]), rel=1e-9)
        torch.testing.assert_close(found.states[n], torch.tensor(peer.predict_proba(x[n])))
        value, states = peer.decode(x[n], algorithm="viterbi")
        assert float(best[n]) == pytest.approx(value, rel=1e-9)
        assert path[n].tolist() == states.tolist()


def test_a_word_loop_is_a_distribution_and_goes_through_words_in_order() -> None:
    chain = word_loop(2, 3, torch.tensor([0.5, 0.6, 0.7, 0.8, 0.5, 0.3]), torch.tensor([0.3, 0.7]).log())
    torch.testing.assert_close(chain.transition.exp().sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(chain.start.exp().sum(), torch.ones((), dtype=torch.float64))
    assert float(chain.transition[2, 3].exp()) == pytest.approx(0.3 * 0.7)
    assert float(chain.transition[4, 5].exp()) == pytest.approx(0.5)
    path, _ = viterbi(chain, 3 * normal(5, 12, 6, seed=9), torch.full((5,), 12))
    for row in path.tolist():
        assert row[0] % 3 == 0
        assert row[-1] % 3 == 2
        for a, b in pairwise(row):
            assert a == b or (a % 3 == 2 and b % 3 == 0) or b == a + 1
    peer = CategoricalHMM(n_components=6)  # as it is one, what it draws are words in order
    peer.startprob_, peer.transmat_ = chain.start.exp().numpy(), chain.transition.exp().numpy()
    peer.emissionprob_ = np.eye(6)
    symbols, states = peer.sample(20, random_state=0)
    assert words_of(torch.tensor(states)[None], 3).min() >= 0
    assert len(symbols) == 20
    single = word_loop(3, 1, torch.full((3,), 0.5))
    torch.testing.assert_close(single.transition.exp().sum(1), torch.ones(3, dtype=torch.float64))


def test_alignment_is_the_best_of_all_paths_through_the_words() -> None:
    chain = word_loop(2, 2, torch.tensor([0.5, 0.6, 0.7, 0.8]))
    emission, length = 2 * normal(3, 5, 4, seed=5), torch.tensor([5, 4, 4])
    words = torch.tensor([[1, 1], [0, -1], [1, 0]])
    found = align(chain, emission, length, words, 2)
    assert words_of(found, 2).tolist() == words.tolist()
    own = score(chain, emission, length, found)
    for n, t in enumerate(length.tolist()):
        paths = torch.full((4**t, 5), -1)
        paths[:, :t] = torch.tensor(list(product(range(4), repeat=t)))
        said = words_of(paths, 2)
        right = (said[:, :2] == words[n]).all(1) & (said[:, 2:] < 0).all(1)
        m = len(paths)
        values = score(chain, emission[n].expand(m, -1, -1), length[n].expand(m), paths)
        torch.testing.assert_close(own[n], values[right].max())


def test_words_of_paths() -> None:
    path = torch.tensor([[3, 3, 4, 5, 3, 4, 5, 5], [0, 1, 2, 6, 7, 8, -1, -1], [-1] * 8])
    assert words_of(path, 3).tolist() == [[1, 1], [0, 2], [-1, -1]]
    assert words_of(path[:0], 3).shape == (0, 1)
