"""Chords, whose probability is known, and the published piano rolls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState
from scipy.io import loadmat, savemat

from dgmbench.data import load
from dgmbench.data.chords import NEXT, STEPS, Chords, chord, log_prob, piece
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]


def test_a_chord_is_its_root_in_the_bass_and_a_triad() -> None:
    notes = np.flatnonzero(chord(0, 0, 0)) + 21
    assert notes.tolist() == [36, 60, 64, 67]  # C in root position over a C
    assert (np.flatnonzero(chord(0, 5, 1)) + 21).tolist() == [45, 60, 64, 69]  # A minor, its third lowest
    assert (np.flatnonzero(chord(7, 4, 2)) + 21).tolist() == [38, 57, 62, 66]  # D major, the dominant of G, its fifth


def test_the_probability_of_a_piece_and_the_entropy() -> None:
    """Of two chords by hand, C and then F or G; and the mean of -log p against the entropy of the chain."""
    two = np.repeat([chord(0, 0, 0), chord(0, 3, 2)], STEPS, axis=0)
    # I-IV in C, which no other key begins with: the first chord is the key
    assert log_prob(two) == pytest.approx(np.log(0.3 / 12 / 9))
    assert log_prob(np.repeat([chord(0, 1, 0)], STEPS, axis=0)) == -np.inf  # no piece begins with a minor chord
    assert log_prob(two[1:]) == -np.inf
    rng, values = RandomState(0), []
    for _ in range(300):
        values.append(-log_prob(piece(8, rng)))
    p, entropy = np.eye(6)[0], np.log(12) + 8 * np.log(3)
    for _ in range(7):
        entropy -= float((p[:, None] * NEXT * np.log(np.where(NEXT > 0, NEXT, 1))).sum())
        p = p @ NEXT
    assert np.mean(values) == pytest.approx(entropy, abs=4 * np.std(values) / 300**0.5)


def test_the_generated_set(config: Config, tmp_path: Path) -> None:
    data = load({**config("chords"), "train": 50, "valid": 5, "test": 20}, tmp_path)
    part = data.splits["test"]
    assert part.length is not None
    assert set(part.length) <= set(range(16, 34, 2))
    assert np.isfinite(data.oracle(part.x)).all()
    assert (part.x.sum(2) == 4 * (np.arange(32) < part.length[:, None])).all()
    assert data.spec.lowest_note == 21
    with pytest.raises(UserError, match="multiple of 4"):
        Chords(length=30)


@pytest.mark.parametrize(("name", "sizes"), [("jsb", (229, 76, 77)), ("pianomidi", (87, 12, 25))])
def test_published_rolls(config: Config, shared: Path, tmp_path: Path, name: str, sizes: tuple[int, int, int]) -> None:
    (tmp_path / "polyphonic_music").symlink_to(shared / "data" / "polyphonic_music")
    length = {"jsb": 160, "pianomidi": 4000}[name]
    cfg = {**config("polyphonic_music"), "set": name, "length": length}
    cfg["card"] = {**cfg["card"], "shape": [length, 88]}
    data = load(cfg, tmp_path)
    assert tuple(len(data.splits[split]) for split in ("train", "valid", "test")) == sizes
    file = {"jsb": "JSB_Chorales.mat", "pianomidi": "Piano_midi.mat"}[name]
    original = loadmat(shared / "data" / "polyphonic_music" / file)["testdata"][0]
    part = data.splits["test"]
    assert part.length is not None
    for n in (0, len(original) - 1):
        assert np.array_equal(part.x[n, : part.length[n]], original[n])
        assert not part.x[n, part.length[n] :].any()


def test_long_pieces_are_cut_and_files_are_looked_at(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "polyphonic_music"
    folder.mkdir()
    roll = (RandomState(0).rand(11, 88) < 0.1).astype(np.uint8)
    cell = np.empty((1, 3), object)
    cell[0, :] = [roll, roll[:4], roll[:3]]
    file = folder / "JSB_Chorales.mat"
    savemat(file, {"traindata": cell, "validdata": cell, "testdata": cell})
    cfg = {**config("polyphonic_music"), "length": 5}
    cfg["card"] = {**cfg["card"], "shape": [5, 88]}
    with pytest.raises(UserError, match="altered"):
        load(cfg, tmp_path)
    data = load({**cfg, "verify": False}, tmp_path)
    part = data.splits["train"]
    assert part.length.tolist() == [5, 5, 4, 3]  # the eleventh step alone is left out
    assert np.array_equal(part.x[1], roll[5:10])
    savemat(file, {"traindata": cell, "validdata": cell, "testdata": cell + 1})
    with pytest.raises(UserError, match="rolls are"):
        load({**cfg, "verify": False}, tmp_path)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a MATLAB file"):
        load({**cfg, "verify": False}, tmp_path)
    with pytest.raises(UserError, match="jsb, nottingham"):
        load({**cfg, "set": "bach"}, tmp_path)
