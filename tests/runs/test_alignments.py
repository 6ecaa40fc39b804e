"""Spectrograms out of cepstra, stretches of labels, and what of an utterance is drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dct
from tests.spoken import WORDS, random_utterances, seeded

from dgmbench.data.mfcc import FILTERS, energies
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.dbn_hmm import DbnHmm
from dgmbench.models.contract import Model
from dgmbench.runs.alignments import alignments, draw_alignments, stretches, words_in
from dgmbench.runs.sampling import write_training_samples


def make() -> DbnHmm:
    torch.manual_seed(0)
    model = DbnHmm(WORDS, hidden_sizes=(4,), context=1).double()
    model.initialise(random_utterances(), seeded())
    return model


def test_energies_have_the_coefficients_and_are_exact_with_all_of_them() -> None:
    logs = np.random.RandomState(0).randn(4, FILTERS)
    every = dct(logs, type=2, norm="ortho", axis=1)
    assert np.allclose(energies(every), logs)
    smooth = energies(every[:, :13])
    assert smooth.shape == (4, FILTERS)
    again = dct(smooth, type=2, norm="ortho", axis=1)
    assert np.allclose(again[:, :13], every[:, :13])
    assert np.allclose(again[:, 13:], 0)


def test_stretches_and_words_of_a_path() -> None:
    path = np.array([3, 3, 4, 5, 5, 3, 4, 5, 0, 2, -1, 0])
    assert stretches(path)[:4] == [(0, 2, 3), (2, 3, 4), (3, 5, 5), (5, 6, 3)]
    assert words_in(path, 3) == [(0, 5, 1), (5, 8, 1), (8, 10, 0), (11, 12, 0)]
    assert words_in(np.array([2, 2, 7]), 1) == [(0, 2, 2), (2, 3, 7)]
    assert stretches(path[:0]) == []


def test_a_picture_has_the_words_of_both_paths_and_the_frames_that_count() -> None:
    batch = random_utterances(3)
    names = ("no 1", "no 2", "no 3", "yes 1", "yes 2", "yes 3")
    spec = DataSpec(WORDS.shape, "real", num_classes=6, factors=WORDS.factors, class_names=names, cepstra=2)
    found = alignments(make(), batch)
    assert torch.equal(found["predicted"], make().best_path(batch.x, batch.length))  # type: ignore[arg-type]
    found["predicted"] = torch.tensor([[3, 4, 5, 5, -1, -1], [3, 4, 5, 0, 1, 2], [0, 0, 1, 1, 2, 2]])
    figure = draw_alignments(found, spec)
    said = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert said == [["no", "yes"], ["yes", "no", "yes", "no"], ["yes", "no"]]  # the true words, then the recognised
    image = figure.axes[0].images[0]
    assert image.get_array().shape == (FILTERS, 4)
    assert np.allclose(image.get_array().T, energies(batch.x[0, :4].numpy()))
    assert [axes.get_xlim()[1] for axes in figure.axes] == [4, 6, 6]


def test_training_shows_alignments_and_other_models_have_none(tmp_path: Path) -> None:
    write_training_samples(tmp_path / "x.png", make(), WORDS, random_utterances(3), seed=0)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (1100, 600)
    with pytest.raises(UserError, match="Model aligns nothing"):
        alignments(Model(WORDS), random_utterances(3))
