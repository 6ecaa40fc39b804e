"""Synthesised digits: spectra have their formants, coefficients follow the formulas, labels are words in order."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from sklearn.mixture import GaussianMixture

from dgmbench.data import load
from dgmbench.data.formants import DIGITS, RATE, STATES, Speaker, glided, speak, voiced
from dgmbench.data.mfcc import COEFFICIENTS, cepstra, filterbank, frames, mel, slopes, with_slopes
from dgmbench.errors import UserError
from dgmbench.evaluation.tasks.prediction import word_error
from dgmbench.nn.hmm import viterbi, word_loop, words_of

Config = Callable[..., dict[str, Any]]


def test_a_voice_has_harmonics_of_its_pitch_loudest_at_the_formants() -> None:
    formants = np.tile([700.0, 1200.0, 2500.0], (8000, 1))
    wave = voiced(formants, 100.0, RandomState(0))
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)

    def near(f: float) -> float:
        return float(power[np.abs(hertz - f) < 0.06 * f].sum())  # the vibrato moves a harmonic by a twentieth

    assert near(700) > 5 * near(400)
    assert near(1200) > 10 * near(1700)
    assert near(2500) > 5 * near(3000)
    assert near(100) > 1e3 * float(power[np.abs(hertz - 50) < 5].sum())


def test_sounds_follow_each_other_in_the_order_of_the_words() -> None:
    wave, labels = speak([7, 7, 1], Speaker(120.0, 0.07, 1.0), RandomState(0))
    assert len(wave) == len(labels)
    assert np.mean(wave**2) == pytest.approx(1.0)
    changes = np.flatnonzero(np.diff(labels)) + 1
    assert labels[[0, *changes]].tolist() == [21, 22, 23, 21, 22, 23, 3, 4, 5]
    assert np.diff([0, *changes, len(labels)]).min() >= RATE // 40
    step = np.concatenate([np.zeros((500, 1)), np.ones((500, 1))])
    smooth = glided(step)
    assert smooth.shape == step.shape
    assert np.allclose(smooth[[0, 300, 700, 999], 0], [0, 0, 1, 1])
    assert smooth[500, 0] == pytest.approx(0.5, abs=0.01)


def test_coefficients_are_those_of_the_formulas() -> None:
    wave = RandomState(0).randn(1000)
    found = cepstra(wave, RATE)
    assert found.shape == (frames(1000, RATE), COEFFICIENTS) == (11, 13)
    cut = wave[80:280] * (0.54 - 0.46 * np.cos(2 * np.pi * np.arange(200) / 199))
    bins = [abs(sum(cut * np.exp(-2j * np.pi * k * np.arange(200) / 256))) ** 2 / 200 for k in range(129)]
    energy = np.log(filterbank(RATE) @ np.array(bins))
    n = np.arange(20)
    for k in (0, 1, 12):
        scale = np.sqrt((1 if k == 0 else 2) / 20)
        assert found[1, k] == pytest.approx(scale * (energy * np.cos(np.pi * k * (2 * n + 1) / 40)).sum())
    assert np.allclose(filterbank(RATE)[:, 10:110].sum(0)[5:], 1.0)  # neighbours add up to one
    assert float(mel(1000.0)) == pytest.approx(1000.0, rel=1e-3)
    line = np.stack([3.0 * np.arange(9), np.ones(9)], 1)
    assert np.allclose(slopes(line)[2:-2], [3.0, 0.0])
    assert with_slopes(found).shape == (11, 39)
    assert frames(199, RATE) == 0


def test_the_set(config: Config, tmp_path: Path) -> None:
    settings = {**config("tone_digits"), "train": 12, "valid": 3, "test": 5}
    data = load(settings, tmp_path)
    assert data.spec.factors == (("word", 10), ("state", 3))
    assert data.spec.class_names is not None
    assert data.spec.class_names[3 * 7 + 1] == "seven 2"
    part = data.splits["train"]
    x, y, length = np.asarray(part.x), np.asarray(part.y), np.asarray(part.length)
    for values, labels, n in zip(x, y, length, strict=True):
        assert (labels[:n] >= 0).all()
        assert (labels[n:] == -1).all()
        assert not values[n:].any()
        path = labels[:n]
        steps = [(a, b) for a, b in pairwise(path) if a != b]
        assert path[0] % 3 == 0
        assert path[-1] % 3 == 2
        assert all(b == a + 1 if a % 3 < 2 else b % 3 == 0 for a, b in steps)
    assert (words_of(torch.from_numpy(y), 3) >= 0).sum(1).min() >= 1
    again = load(settings, tmp_path)
    assert again.content_hash == data.content_hash
    with pytest.raises(UserError, match="words"):
        load({**settings, "words": 0}, tmp_path)


def test_a_gmm_hmm_errs_on_five_to_twenty_percent_of_the_words(config: Config, tmp_path: Path) -> None:
    """Two diagonal Gaussians a state, fitted to the frames of each, durations of the training set, a loop of words."""
    data = load({**config("tone_digits"), "train": 250, "valid": 2, "test": 150}, tmp_path)
    train, test = data.splits["train"], data.splits["test"]
    x, y = np.asarray(train.x), np.asarray(train.y)
    kept = x[y >= 0]
    mean, deviation = kept.mean(0), kept.std(0)
    states = len(DIGITS) * STATES
    mixtures = [
        GaussianMixture(2, covariance_type="diag", reg_covar=0.01, random_state=0).fit((x[y == s] - mean) / deviation)
        for s in range(states)
    ]
    again = [((y[:, 1:] == s) & (y[:, :-1] == s)).sum() / (y == s).sum() for s in range(states)]
    frames_of = (np.asarray(test.x) - mean) / deviation
    scores = np.stack([m.score_samples(frames_of.reshape(-1, frames_of.shape[2])) for m in mixtures], 1)
    emission = torch.from_numpy(scores).view(*frames_of.shape[:2], -1)
    chain = word_loop(len(DIGITS), STATES, torch.tensor(again))
    path, _ = viterbi(chain, emission, torch.from_numpy(np.asarray(test.length)))
    truth = words_of(torch.from_numpy(np.asarray(test.y)), STATES)
    said = words_of(path, STATES)
    pairs = [
        ([w for w in a if w >= 0], [w for w in b if w >= 0]) for a, b in zip(truth.tolist(), said.tolist(), strict=True)
    ]
    assert 0.05 < word_error(pairs).value < 0.2
