"""The RNN-RBM against sums over everything, its gradient against autograd of log p, and an RBM without a past."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from dgmbench.data.chords import Chords
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.evaluation.likelihood.ais import grouped_brackets
from dgmbench.models.boltzmann.estimators import CD
from dgmbench.models.boltzmann.rnn_rbm import RnnRbm

sys.path.insert(0, str(Path(__file__).parent / "machines"))
from small_sequences import SMALL, all_sequences, exact_negatives, log_z, randomised, step_log_prob


def make(**settings: object) -> RnnRbm:
    torch.manual_seed(0)
    return randomised(RnnRbm(SMALL, hidden=2, recurrent=3, sample_steps=40, **settings))  # type: ignore[arg-type, return-value]


def written_out(model: RnnRbm, x: Tensor) -> Tensor:
    """log p of one sequence, every sum and every step of the network written out, as a function of the parameters."""
    net, u, total = model.network, model.initial, torch.zeros((), dtype=torch.float64)
    for v in x.double():
        a, b = model.visible_bias + u @ model.to_visible, model.hidden_bias + u @ model.to_hidden
        total = total + step_log_prob(v, model.weight, a, b)
        u = torch.tanh(net.weight_ih_l0 @ v + net.bias_ih_l0 + net.weight_hh_l0 @ u + net.bias_hh_l0)
    return total


def test_log_p_sums_to_one_and_is_what_it_says() -> None:
    model, x = make(), all_sequences(SMALL)
    log_p = model.log_prob_unnormalised(x) - log_z(model, x).view(len(x), -1).sum(1)
    assert float(log_p.logsumexp(0).detach()) == pytest.approx(0.0, abs=1e-12)
    rows = [0, 17, 300, 511]
    torch.testing.assert_close(log_p[rows], torch.stack([written_out(model, x[row]) for row in rows]))


def test_the_gradient_with_exact_negatives_is_that_of_log_p() -> None:
    model, x = make(), all_sequences(SMALL)[[5, 210, 333]]
    exact_negatives(model, x).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (-torch.stack([written_out(model, one) for one in x]).sum() / 9).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12)
        assert float(p.grad.abs().max()) > 0, name


def test_annealing_of_every_step_brackets_its_own_log_z() -> None:
    model, x = make(), all_sequences(SMALL)[[5, 210]]
    conditions, exact = model.step_conditions(x).detach(), log_z(model, x)
    path = model.annealing_path_given(conditions.repeat_interleave(200, 0))
    frames = [frame[None] for frame in x.flatten(0, 1)]
    found = grouped_brackets(
        path, frames, [None] * 6, chains=200, temperatures=150, spacing="even", burn_in=50, tolerance=1.0,
        generator=Generator().manual_seed(0),
    )  # fmt: skip
    for one, value in zip(found, exact.tolist(), strict=True):
        low, high = one.interval(4.0)
        assert low < value < high
        assert high - low < 0.5


def test_states_of_one_call_are_those_step_by_step() -> None:
    model, x = make(), all_sequences(SMALL)[::37]
    v = model.sequences(x)
    state = model.start(len(v))
    for t in range(3):
        torch.testing.assert_close(model.states(v)[:, t], state)
        state = model.follow(state, v[:, t])


def test_it_beats_the_rbm_without_recurrence() -> None:
    """Exact log p a step of held-out chords, eight hidden units each; without recurrence every step is the same RBM."""
    decoded = Chords(length=16, train=200, valid=2, test=30).read(Path())
    x, test = (torch.from_numpy(decoded.parts[split].x) for split in ("train", "test"))
    lengths, counts = (torch.from_numpy(decoded.parts[split].length) for split in ("train", "test"))
    found = []
    for recurrent in (True, False):
        torch.manual_seed(0)
        model, g = RnnRbm(decoded.spec, hidden=8, recurrent=20), Generator().manual_seed(0)
        model.initialise(Batch(x, length=lengths), g)
        for p in (model.to_visible, model.to_hidden):
            p.requires_grad_(recurrent)
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
        for _ in range(120):
            rows = torch.randint(len(x), (20,), generator=g)
            optimiser.zero_grad()
            model.loss("model", Batch(x[rows], length=lengths[rows]), g)[0].backward()
            optimiser.step()
        with torch.no_grad():
            log_p = model.step_log_prob_unnormalised(test, length=counts)
            condition = model.step_conditions(test, length=counts)
            found.append(float((log_p - model.annealing_path_given(condition).exact_log_partition()).mean()))
    assert found[0] > found[1] + 2.0


def test_a_sequence_of_its_length_alone_counts() -> None:
    model, x = make(estimator=CD(k=2)), all_sequences(SMALL)[[5, 210]]
    length = torch.tensor([1, 2])
    other = x.clone()
    other[0, 1:], other[1, 2:] = 1 - x[0, 1:], 1 - x[1, 2:]
    losses = [
        float(model.loss("model", Batch(one, length=length), Generator().manual_seed(0))[0].detach())
        for one in (x, other)
    ]
    assert losses[0] == losses[1]
    drawn = model.sample(2, length=length, generator=Generator().manual_seed(0))
    assert not drawn[0, 1:].any()
    assert not drawn[1, 2:].any()


def test_wrong_data_and_settings_end_in_a_sentence() -> None:
    with pytest.raises(UserError, match="binary sequences"):
        RnnRbm(DataSpec((4, 3), "real"))
    with pytest.raises(UserError, match="t at least 2"):
        RnnRbm(DataSpec((1, 3), "binary"))
    with pytest.raises(UserError, match="recurrent"):
        RnnRbm(SMALL, recurrent=0)
