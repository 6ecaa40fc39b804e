"""The field over whole paths, against all paths; it begins at the hybrid and errs less than training on frames."""

import copy
from itertools import pairwise, product

import pytest
import torch
from tests.spoken import WORDS, fit, picked, random_utterances, seeded, spoken, word_error_of
from torch import Tensor

from dgmbench.data.spec import Batch
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.fsdbn import FsDbn
from dgmbench.nn.hmm import expected


def make(scale: float = 0.5) -> FsDbn:
    """With the field on, and random weights."""
    torch.manual_seed(0)
    model = FsDbn(WORDS, hidden_sizes=(5, 4), context=1, pretraining=0.0).double()
    model.initialise(random_utterances(), seeded())
    model.enter_stage(model.stages()[-1], seeded())
    g = seeded(2)
    with torch.no_grad():
        for p in (*model.steps(), *model.top.parameters()):
            p.copy_(scale * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def term_by_term(model: FsDbn, scores: Tensor, path: tuple[int, ...]) -> float:
    """The score of a path from the definition; -inf where a step is none that a word takes."""
    if path[0] % 3 or path[-1] % 3 != 2:
        return -float("inf")
    total = float(model.first[path[0] // 3]) + sum(float(scores[t, s]) for t, s in enumerate(path))
    for a, b in pairwise(path):
        if a == b:
            total += float(model.stay[a])
        elif a % 3 == 2 and b % 3 == 0:
            total += float(model.leave[a] + model.language[a // 3, b // 3])
        elif b == a + 1 and a % 3 < 2:
            total += float(model.leave[a])
        else:
            return -float("inf")
    return total


def test_a_step_between_words_has_the_language_weight_of_the_word_that_ends_and_the_one_that_begins() -> None:
    model = make()
    transition = model.field().transition
    for before, after in product(range(2), repeat=2):
        wanted = model.leave[3 * before + 2] + model.language[before, after]
        torch.testing.assert_close(transition[3 * before + 2, 3 * after], wanted)


def test_the_log_posterior_is_that_of_all_paths_and_sums_to_one() -> None:
    model, batch = make(), random_utterances()
    assert batch.length is not None
    for p in model.parameters():
        p.requires_grad_(False)
    found, scores = model.log_posterior(batch), model.scores(batch.x, batch.length)
    for n in (0, 3):
        t = int(batch.length[n])
        paths = list(product(range(6), repeat=t))
        values = [(path, value) for path in paths if (value := term_by_term(model, scores[n], path)) > -1e9]
        log_z = torch.tensor([value for _, value in values], dtype=torch.float64).logsumexp(0)
        assert batch.y is not None
        own = term_by_term(model, scores[n], tuple(batch.y[n, :t].tolist()))
        assert float(found[n]) == pytest.approx(own - float(log_z), abs=1e-9)
        every = torch.full((len(values), 6), -1)
        every[:, :t] = torch.tensor([path for path, _ in values])
        rows = torch.full((len(values),), n)
        log_p = model.log_posterior(Batch(batch.x[rows], every, None, None, batch.length[rows]))
        assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_the_gradient_is_observed_less_expected_counts_and_reaches_every_layer() -> None:
    model, batch = make(), random_utterances(3)
    assert batch.y is not None
    assert batch.length is not None
    loss, _ = model.loss("network", batch, seeded())
    loss.backward()
    frames = int(batch.length.sum())
    chain, scores = model.lattice(batch.x, batch.length)
    counts = expected(chain, scores.detach(), batch.length)
    bias = torch.zeros(6, dtype=torch.float64)
    steps = torch.zeros(6, 6, dtype=torch.float64)
    for y, t in zip(batch.y.tolist(), batch.length.tolist(), strict=True):
        for k in range(t):
            bias[y[k]] += 1
            if k:
                steps[y[k - 1], y[k]] += 1
    assert model.top.bias.grad is not None
    assert model.stay.grad is not None
    assert model.language.grad is not None
    assert model.leave.grad is not None
    torch.testing.assert_close(-frames * model.top.bias.grad, bias - counts.states.sum((0, 1)))
    difference = steps - counts.steps.sum(0)
    torch.testing.assert_close(-frames * model.stay.grad, difference.diagonal())
    torch.testing.assert_close(-frames * model.language.grad, difference[2::3, ::3])
    inner = torch.stack([difference[s, s + 1] for s in (0, 1, 3, 4)])
    torch.testing.assert_close(-frames * model.leave.grad[[0, 1, 3, 4]], inner)
    weight = model.layers[0].weight
    assert isinstance(weight, Tensor)
    assert weight.grad is not None
    values = []
    with torch.no_grad():
        for step in (1e-5, -1e-5):
            weight[1, 2] += step
            values.append(float(model.loss("network", batch, seeded())[0]))
            weight[1, 2] -= step
    assert float(weight.grad[1, 2]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_the_field_begins_at_the_hybrid() -> None:
    torch.manual_seed(0)
    model, batch = FsDbn(WORDS, hidden_sizes=(5,), context=1).double(), random_utterances()
    assert batch.length is not None
    model.initialise(batch, seeded())
    model.enter_stage(model.stages()[1], seeded())
    before = model.log_posterior(batch)
    path = model.best_path(batch.x, batch.length)
    model.enter_stage(model.stages()[-1], seeded())
    torch.testing.assert_close(model.log_posterior(batch), before)
    assert torch.equal(model.best_path(batch.x, batch.length), path)


def test_utterances_that_are_not_known_or_no_words_are_left_out() -> None:
    model, batch = make(), random_utterances(4)
    assert batch.y is not None
    assert batch.length is not None
    alone, _ = model.loss("network", Batch(batch.x[1:2], batch.y[1:2], None, None, batch.length[1:2]), seeded())
    y, length = batch.y.clone(), batch.length.clone()
    y[0, 1], y[2] = -1, torch.tensor([0, 3, 0, 3, 0, 3])
    y[3, 2:], length[3] = -1, 2  # shorter than any word
    together, _ = model.loss("network", batch._replace(y=y, length=length), seeded())
    torch.testing.assert_close(together, alone)


def test_whole_sequences_leave_fewer_errors_than_frames() -> None:
    """Of the two from the same stack, at equal numbers of updates."""
    spec, train, test = spoken()
    torch.manual_seed(0)
    model = FsDbn(spec, hidden_sizes=(64,), context=2)
    model.initialise(train, seeded())
    fit(model, train, {"rbm_1": 20, "frames": 60})
    frames = copy.deepcopy(model)
    optimiser = torch.optim.Adam(frames.players()["network"], lr=3e-3)
    g = seeded(1)
    for _ in range(40):
        optimiser.zero_grad()
        frames.loss("network", picked(train, torch.randint(250, (20,), generator=g)), g)[0].backward()
        optimiser.step()
    fit(model, train, {"sequences": 40})
    assert word_error_of(model, test) < word_error_of(frames, test) - 0.01
    both = [float(each.held_out(test)["path_error"].mean()) for each in (model, frames)]
    assert both[0] < both[1] - 0.01


def test_bad_values_are_refused() -> None:
    with pytest.raises(UserError, match="sequences"):
        FsDbn(WORDS, hidden_sizes=(4,), sequences=0.0)
