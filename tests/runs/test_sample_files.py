"""Samples as files: what fits the space that they lie in, and nothing else."""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dgmbench.data.audio import mu_law_decode, mu_law_encode
from dgmbench.data.spec import DataSpec
from dgmbench.runs.pictures import write_picture, write_samples

WORDS = ("<eos>", "a", "b$_c$", "\x07\u9234")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_sound_becomes_a_wav_with_gaps(tmp_path: Path) -> None:
    spec = DataSpec((50,), "discrete", 256, sampling_rate=1000)
    time = np.arange(50) / 1000
    tones = 0.7 * np.sin(2 * np.pi * np.array([[40.0], [100.0]]) * time)
    x = torch.from_numpy(mu_law_encode(tones))
    assert names(write_samples(tmp_path / "s.png", x, spec)) == ["s.png", "s.wav"]
    with wave.open(str(tmp_path / "s.wav"), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 1000)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    assert len(pcm) == 50 + 100 + 50  # a tenth of a second between
    assert np.abs(pcm[50:150]).max() == 0
    for start, codes in ((0, x[0]), (150, x[1])):
        assert np.abs(pcm[start : start + 50] - mu_law_decode(codes.numpy())).max() < 1e-4
    real = DataSpec((50,), "real", sampling_rate=1000)
    write_samples(tmp_path / "r.png", torch.from_numpy(tones), real)
    with wave.open(str(tmp_path / "r.wav"), "rb") as file:
        assert np.abs(np.frombuffer(file.readframes(50), "<i2") / 32767 - tones[0]).max() < 1e-4


@pytest.mark.parametrize("end", [0, None])
def test_text_becomes_lines(tmp_path: Path, end: int | None) -> None:
    spec = DataSpec((3,), "tokens", 4, end=end, vocabulary=WORDS)
    x = torch.tensor([[1, 2, 0], [2, 0, 0], [3, 3, 3]])
    if end is None:  # characters, which bring their own line breaks
        spec = DataSpec((3,), "tokens", 4, vocabulary=("\n", "a", "$", " "))
    assert names(write_samples(tmp_path / "s.png", x, spec)) == ["s.png", "s.txt"]
    text = (tmp_path / "s.txt").read_text()
    if end is None:
        assert text == "a$\n\n-----\n$\n\n\n-----\n   \n"
    else:
        bell = "\\x07\u9234"  # its number, where the sign itself would ring
        assert text == f"a b$_c$\nb$_c$\n{bell} {bell} {bell}\n"
    assert size(tmp_path / "s.png")[0] == 900


def test_other_samples_are_pictures_alone(tmp_path: Path) -> None:
    for spec in (DataSpec((1, 4, 4), "binary"), DataSpec((2,), "real"), DataSpec((5,), "tokens", 7)):
        x = torch.zeros(6, *spec.shape, dtype=spec.dtype)
        assert names(write_samples(tmp_path / "s.png", x, spec)) == ["s.png"]
        assert min(size(tmp_path / "s.png")) > 400
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_a_picture_of_sound_shows_frequencies(tmp_path: Path) -> None:
    """A tone and the same tone twice as fast give different pictures, whatever their number."""
    spec = DataSpec((200,), "discrete", 256, sampling_rate=1000)
    waves = np.sin(2 * np.pi * np.array([[40.0], [80.0]]) * np.arange(200) / 1000)
    for i in (0, 1):
        write_picture(tmp_path / f"{i}.png", torch.from_numpy(mu_law_encode(waves[i : i + 1])), spec)
    write_picture(tmp_path / "many.png", torch.from_numpy(mu_law_encode(waves[[0] * 20])), spec)
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()
    assert size(tmp_path / "many.png") == (900, 900)
