"""The oracle: probabilities against torch's LSTM, sums over all sequences, draws that follow them, its own entropy."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dgmbench.data.oracle_text import OracleText
from dgmbench.errors import UserError


def test_log_prob_is_that_of_torchs_lstm_with_these_parameters() -> None:
    oracle = OracleText(vocabulary=7, length=5, hidden=4)
    lstm = torch.nn.LSTM(4, 4, batch_first=True, dtype=torch.float64)
    order = np.r_[0:8, 12:16, 8:12]  # torch has the gates as i, f, g, o
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.from_numpy(oracle.input[:, order].T))
        lstm.weight_hh_l0.copy_(torch.from_numpy(oracle.recurrent[:, order].T))
        lstm.bias_ih_l0.copy_(torch.from_numpy(oracle.bias[order]))
        lstm.bias_hh_l0.zero_()
        x = oracle.draw(6, np.random.RandomState(0))
        before = np.concatenate([np.zeros((6, 1), np.int64), x[:, :-1]], 1)
        hidden = lstm(torch.from_numpy(oracle.embedding[before]))[0].numpy()
    logits = torch.from_numpy(hidden @ oracle.output + oracle.output_bias)
    wanted = logits.log_softmax(2).gather(2, torch.from_numpy(x)[:, :, None])[:, :, 0].sum(1)
    np.testing.assert_allclose(oracle.log_prob(x), wanted.numpy(), rtol=1e-10)


def test_probabilities_sum_to_one_and_draws_follow_them() -> None:
    oracle = OracleText(vocabulary=3, length=3, hidden=4, test=20_000)
    every = np.array(list(itertools.product(range(3), repeat=3)))
    p = np.exp(oracle.log_prob(every))
    assert p.sum() == pytest.approx(1.0)
    decoded = oracle.read(Path())
    counts = np.bincount(np.asarray(decoded.parts["test"].x) @ [9, 3, 1], minlength=27)
    assert (np.abs(counts / 20_000 - p) < 4.5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9).all()
    entropy = -(p * np.log(p)).sum()
    assert abs(decoded.remarks["test_oracle_nll"] - entropy) < 4 * decoded.remarks["se"]


def test_the_default_set_is_far_from_uniform_and_another_seed_is_another_language() -> None:
    oracle = OracleText(test=200)
    decoded = oracle.read(Path())
    assert decoded.spec.shape == (20,)
    assert decoded.remarks["test_oracle_nll"] < 20 * math.log(100) - 10
    uniform = np.random.RandomState(0).randint(100, size=(200, 20))
    assert -oracle.log_prob(uniform).mean() > 20 * math.log(100)
    own = -oracle.log_prob(np.asarray(decoded.parts["test"].x)).mean()
    assert -OracleText(seed=1).log_prob(np.asarray(decoded.parts["test"].x)).mean() > own + 10
    first = [np.asarray(decoded.parts[split].x)[:200] for split in ("train", "test")]
    assert not (first[0] == first[1]).all()


def test_bad_options_are_refused() -> None:
    with pytest.raises(UserError, match="length"):
        OracleText(length=0)
    with pytest.raises(UserError, match="vocabulary"):
        OracleText(vocabulary=1)
