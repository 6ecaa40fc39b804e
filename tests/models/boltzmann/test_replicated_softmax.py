"""The replicated softmax against all sequences of words of short documents, and on documents whose topics are known."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.topics import Topics, word_probabilities
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.conditions import Conditions, brackets
from dgmbench.evaluation.likelihood.units import nats_per_word, perplexity
from dgmbench.models.boltzmann.estimators import CD, NCE, PCD, PT, Estimator
from dgmbench.models.boltzmann.replicated_softmax import ReplicatedSoftmax

WORDS, HIDDEN = 4, 3


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def make(scale: float = 1.0) -> ReplicatedSoftmax:
    model = ReplicatedSoftmax(DataSpec((WORDS,), "counts"), hidden=HIDDEN, sample_steps=30).double()
    g = seeded()
    with torch.no_grad():
        for p in (model.weight, model.visible_bias, model.hidden_bias):
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def sequences(total: int) -> Tensor:
    """All sequences of ``total`` words, as numbers of words (4^total, total)."""
    return torch.tensor(list(itertools.product(range(WORDS), repeat=total)))


def counts(words: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(words, WORDS).sum(1)


def every_h() -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=HIDDEN)), dtype=torch.float64)


def sequence_log_joint(model: ReplicatedSoftmax, words: Tensor) -> Tensor:
    """-E of sequences (n, D) and all h, (n, 2^H), word by word: sum_d (a + W h)[word_d] + D b'h."""
    h, total = every_h(), words.shape[1]
    scores = model.visible_bias[:, None] + model.weight @ h.t()
    return scores[words].sum(1) + total * h @ model.hidden_bias


def log_z(model: ReplicatedSoftmax, total: int) -> Tensor:
    found = model.annealing_path_given(torch.tensor([total])).exact_log_partition()
    assert found is not None
    return found[0]


@torch.no_grad()
def test_all_sequences_of_each_length_sum_to_one_and_counts_carry_the_multinomial_coefficient() -> None:
    model = make()
    for total in range(1, 6):
        words = sequences(total)
        joint = sequence_log_joint(model, words)
        z = log_z(model, total)
        assert float(joint.logsumexp((0, 1))) == pytest.approx(float(z), abs=1e-10)
        x = counts(words)
        orders = torch.tensor(
            [math.log(math.factorial(total)) - sum(math.log(math.factorial(int(n))) for n in row) for row in x],
            dtype=torch.float64,
        )
        of_counts = model.log_prob_unnormalised(x) - z
        torch.testing.assert_close(of_counts - orders, joint.logsumexp(1) - z)  # p of each sequence
        assert float((of_counts - orders).exp().sum()) == pytest.approx(1, abs=1e-10)
        alone = torch.unique(x, dim=0)
        assert float((model.log_prob_unnormalised(alone) - z).exp().sum()) == pytest.approx(1, abs=1e-10)


@torch.no_grad()
def test_topics_given_words_and_words_given_topics() -> None:
    model, words = make(), torch.tensor([[0, 3, 3, 1, 0]])
    joint = sequence_log_joint(model, words).softmax(1)
    torch.testing.assert_close(model.encode(counts(words)), joint @ every_h())
    h = every_h()[5:6]
    now = model.at_length(torch.tensor([7]))
    expected = 7 * (model.visible_bias + model.weight @ h[0]).softmax(0)
    torch.testing.assert_close(now.visible_units.mean(now.visible_logits(h))[0], expected)
    assert torch.equal(model.topics(), model.weight.t())


@torch.no_grad()
def test_log_z_of_each_length_is_inside_its_bracket() -> None:
    model = make()
    conditions = Conditions.of(torch.tensor([1, 2, 3, 4, 5]))
    schedule = {"chains": 200, "temperatures": 60, "burn_in": 20}
    found = brackets(model, conditions, [torch.empty(0)] * 5, None, schedule=schedule, generator=seeded())
    for total, sides in zip(range(1, 6), found, strict=True):
        low, high = sides.interval()
        assert low < float(log_z(model, total)) < high
        assert high - low < 1


def test_without_topics_the_perplexity_is_that_of_the_words_frequencies() -> None:
    model = make()
    with torch.no_grad():
        model.weight.zero_()
        x = torch.tensor([[2, 0, 1, 0], [0, 5, 0, 1]])
        nats = model.log_prob_unnormalised(x) - torch.stack([log_z(model, 3), log_z(model, 6)])
    p = model.visible_bias.detach().softmax(0)
    by_hand = math.exp(-((2 * p[0].log() + p[2].log()) / 3 + (5 * p[1].log() + p[3].log()) / 6) / 2)
    orders = torch.tensor([math.log(3.0), math.log(6.0)], dtype=torch.float64)
    found = perplexity(nats_per_word(nats, x.sum(1).double(), orders, "exact"))
    assert found.value == pytest.approx(by_hand)


def test_it_learns_the_topics_of_documents(tmp_path: Path) -> None:
    documents = Topics(train=1500, valid=300).read(tmp_path)
    x, held_out = (torch.from_numpy(documents.parts[split].x) for split in ("train", "valid"))
    torch.manual_seed(0)
    model, g = ReplicatedSoftmax(documents.spec, hidden=8, estimator=CD(k=1), sample_steps=100), seeded()
    model.initialise(Batch(x), g)

    @torch.no_grad()
    def log_likelihood() -> float:
        total, which = torch.unique(model.condition_of(held_out), return_inverse=True)
        z = model.annealing_path_given(total).exact_log_partition()
        assert z is not None
        return float((model.log_prob_unnormalised(held_out) - z[which]).mean())

    before, optimiser = log_likelihood(), torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(300):
        batch = Batch(x[torch.arange(50 * step, 50 * step + 50) % len(x)])
        optimiser.zero_grad()
        model.loss("model", batch, g)[0].backward()
        optimiser.step()
    truth = float(Topics().log_prob_given_length(held_out.numpy()).mean())
    after = log_likelihood()
    assert after < truth, "nothing is better than the distribution of the documents"
    assert after > before + 0.5 * (truth - before), "half of what the topics tell"
    samples = model.sample(300, generator=g)
    assert samples.dtype == torch.int64
    assert set(samples.sum(1).tolist()) == {10, 20, 40}
    # the likeliest words of the strongest topic are of one topic of the truth
    own = torch.from_numpy(word_probabilities()).float()
    own = own / own.sum(0)  # whose words they are
    strongest = model.topics()[model.weight.norm(dim=0).argmax()].topk(3).indices
    assert float(own[:, strongest].mean(1).max()) > 0.6


@pytest.mark.parametrize("estimator", [PCD(), PT(), NCE()])
def test_estimators_that_need_one_log_z_are_refused(estimator: Estimator) -> None:
    with pytest.raises(UserError, match=r"depends on the example.* use model/estimator=cd"):
        ReplicatedSoftmax(DataSpec((WORDS,), "counts"), estimator=estimator)


def test_data_that_are_no_documents_are_refused() -> None:
    with pytest.raises(UserError, match="replicated_softmax models counts of words, but these are binary 4"):
        ReplicatedSoftmax(DataSpec((4,), "binary"))
    with pytest.raises(UserError, match="2 of the first 3 training documents have no words; leave them out"):
        make().initialise(Batch(torch.tensor([[0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]])), seeded())
