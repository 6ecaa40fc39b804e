"""Recordings as frames, each one a word whose states divide it evenly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgmbench.data import load
from dgmbench.data.mfcc import cepstra, with_slopes
from dgmbench.errors import UserError
from dgmbench.nn.hmm import words_of

Config = Callable[..., dict[str, Any]]
TAKES = [(digit, number) for digit in range(10) for number in (0, 5, 10)]


def samples_of(digit: int, number: int) -> np.ndarray:
    """Noise of 6 to 26 frames."""
    return np.random.RandomState(100 * digit + number).randint(-9000, 9000, 640 + 160 * digit + 4 * number).astype("i2")


def write(root: Path, takes: list[tuple[int, int]]) -> None:
    (root / "fsdd").mkdir()
    audio = [samples_of(*take) for take in takes]
    digit, number = (np.array(column) for column in zip(*takes, strict=True))
    np.savez(
        root / "fsdd" / "fsdd.npz", audio=np.concatenate(audio), offsets=np.cumsum([0, *map(len, audio)]), digit=digit,
        index=number, speaker=np.array(["ann"] * len(takes)),
    )  # fmt: skip


def test_digits_of_a_speaker_follow_each_other(config: Config, tmp_path: Path) -> None:
    write(tmp_path, [*TAKES, *((digit, 11) for digit in (3, 1))])
    part = load(config("fsdd_words", verify=False), tmp_path).splits["train"]
    assert (np.asarray(part.y)[:, 0] // 3).tolist() == [*range(10), 1, 3]  # of the first time, then of the second


def test_recordings_are_words(config: Config, tmp_path: Path) -> None:
    write(tmp_path, TAKES[::-1])
    data = load(config("fsdd_words", states=4, verify=False), tmp_path)
    assert data.spec.factors == (("word", 10), ("state", 4))
    assert data.spec.class_names is not None
    assert data.spec.class_names[4 * 7 + 1] == "seven 2"
    for split, number in (("test", 0), ("valid", 5), ("train", 10)):
        part = data.splits[split]
        y, length = np.asarray(part.y), np.asarray(part.length)
        assert words_of(torch.tensor(y), 4).tolist() == [[digit] for digit in range(10)]
        for digit in range(10):
            frames = with_slopes(cepstra(samples_of(digit, number) / 32768, 8000))
            t = len(frames)
            assert length[digit] == t
            assert np.allclose(part.x[digit, :t], frames, atol=1e-4)
            assert not np.asarray(part.x[digit, t:]).any()
            assert (y[digit, t:] == -1).all()
            counts = np.bincount(y[digit, :t] - 4 * digit, minlength=4)
            assert counts.max() - counts.min() <= 1
            assert (np.diff(y[digit, :t]) >= 0).all()


def test_what_is_wrong_with_recordings_is_told(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=fsdd_words needs recordings like 7_theo_0\.wav in .*fsdd; put"):
        load(config("fsdd_words"), tmp_path)
    write(tmp_path, TAKES)
    with pytest.raises(UserError, match=r"The 30 recordings in .* differ from the 3,000 .* data\.verify=false"):
        load(config("fsdd_words"), tmp_path)
    with pytest.raises(UserError, match=r"0_ann_5 has 6 frames, fewer than the 7 states of a word; lower data\.states"):
        load(config("fsdd_words", states=7, verify=False), tmp_path)
    with pytest.raises(UserError, match="states"):
        load(config("fsdd_words", states=0, verify=False), tmp_path)


def test_a_split_without_recordings_is_refused(config: Config, tmp_path: Path) -> None:
    write(tmp_path, [take for take in TAKES if take[1] != 5])
    with pytest.raises(UserError, match=r"There are no recordings of the valid set in .*fsdd"):
        load(config("fsdd_words", verify=False), tmp_path)
