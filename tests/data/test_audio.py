"""Companding, WAV files, the synthesised tones and the spoken digits in all their forms."""

import io
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgmbench.data import DataSpec, load, spec_from_card
from dgmbench.data.audio import mu_law_decode, mu_law_encode, read_wav, wav_bytes
from dgmbench.data.audio_small import NOISE, RATE, WAVEFORMS, harmonics, synthesise
from dgmbench.errors import UserError

Config = Callable[..., dict[str, Any]]
NOWHERE = Path("/nonexistent")


# ---------------------------------------------------------------------- companding


def test_codes_survive_decoding_and_the_steps_grow_with_loudness() -> None:
    codes = np.arange(256, dtype=np.uint8)
    w = mu_law_decode(codes)
    assert np.array_equal(mu_law_encode(w), codes)
    assert (w[0], w[255]) == (pytest.approx(-1.0), pytest.approx(1.0))
    assert np.allclose(w, -w[::-1])
    steps = np.diff(w)
    assert np.all(np.diff(steps[128:]) > 0)
    # between centres f grows by 2 / 255, and f'(w) = 255 / (log(256) (1 + 255 |w|))
    slope = 255 / np.log(256) / (1 + 255 * np.abs((w[1:] + w[:-1]) / 2))
    assert np.allclose(steps[200:] * slope[200:], 2 / 255, rtol=1e-3)


def test_encoding_is_nearest_in_the_companded_scale_and_clips() -> None:
    w = np.linspace(-1, 1, 4001)
    f = np.sign(w) * np.log(1 + 255 * np.abs(w)) / np.log(256)
    grid = np.linspace(-1, 1, 256)
    chosen = grid[mu_law_encode(w)]
    assert np.allclose(np.abs(f - chosen), np.abs(f[:, None] - grid).min(1))
    assert mu_law_encode(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_wav_bytes_are_read_back() -> None:
    waves = np.array([[0.0, 0.5, -1.0], [1.0, 0.25, 2.0]])
    samples, rate = read_wav(io.BytesIO(wav_bytes(waves, 1000, gap=0.002)), "x")
    assert rate == 1000
    assert samples.tolist() == [0, 16384, -32767, 0, 0, 32767, 8192, 32767]


def test_other_wav_files_are_refused() -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0" * 8)
    with pytest.raises(UserError, match="stereo has 2 channels of 16 bits; expected one"):
        read_wav(io.BytesIO(buffer.getvalue()), "stereo")
    for content in (b"RIFF", b"nothing at all, but long enough to have a header", b""):
        with pytest.raises(UserError, match="text is no readable WAV file"):
            read_wav(io.BytesIO(content), "text")


# ---------------------------------------------------------------------- audio_small


@pytest.mark.parametrize("waveform", WAVEFORMS)
def test_harmonics_sum_to_the_waveform(waveform: str) -> None:
    u = (np.arange(1000) + 0.5) / 1000
    k = np.arange(1, 2001)
    total = harmonics(waveform, 2000) @ np.sin(2 * np.pi * k[:, None] * u)
    expected = {
        "sine": np.sin(2 * np.pi * u),
        "triangle": 2 / np.pi * np.arcsin(np.sin(2 * np.pi * u)),
        "square": np.sign(0.5 - u),
        "sawtooth": 2 * (u - np.floor(u + 0.5)),
    }[waveform]
    # Fourier series converge in the mean; near a jump they never do (Gibbs)
    assert np.sqrt(((total - expected) ** 2).mean()) < 0.03
    smooth = np.abs(u - 0.5) % 0.5 > 0.05
    smooth &= np.abs(u - 0.5) < 0.45
    assert np.abs(total - expected)[smooth].max() < 0.02


def test_nothing_sounds_above_half_the_sampling_rate() -> None:
    """The peaks of a tone's spectrum are multiples of its pitch: nothing folds back."""
    length = 8000
    tones, y = synthesise(np.random.RandomState(0), 40, length)
    spectrum = np.abs(np.fft.rfft(tones * np.hanning(length))) / length
    hertz = np.fft.rfftfreq(length, 1 / RATE)
    for row, waveform in zip(spectrum, y, strict=True):
        peaks = [
            i
            for i in range(2, len(row) - 2)
            if row[i] > 20 * NOISE / length**0.5 and row[i] == row[i - 2 : i + 3].max()
        ]
        pitch = hertz[peaks[0]]
        assert 99 < pitch < 401
        multiples = hertz[peaks] / pitch
        assert np.abs(multiples - multiples.round()).max() < 0.1
        assert (len(peaks) == 1) == (WAVEFORMS[waveform] == "sine")
        odd = np.all(multiples.round() % 2 == 1)
        assert odd == (WAVEFORMS[waveform] != "sawtooth")


def test_audio_small(config: Config) -> None:
    data = load(config("audio_small"), NOWHERE)
    assert data.spec == DataSpec((256,), "discrete", 256, 4) == spec_from_card(config("audio_small"))
    assert data.spec.sampling_rate == RATE == spec_from_card(config("audio_small")).sampling_rate
    assert {s: len(p) for s, p in data.splits.items()} == {"train": 2000, "valid": 500, "test": 500}
    counts = np.bincount(data.splits["train"].y, minlength=4)
    assert np.abs(counts / 2000 - 0.25).max() < 5 * (0.25 * 0.75 / 2000) ** 0.5
    assert load(config("audio_small"), NOWHERE).content_hash == data.content_hash
    assert load(config("audio_small", seed=1), NOWHERE).content_hash != data.content_hash
    assert load(config("audio_small", length=100, train=2), NOWHERE).spec.shape == (100,)
    with pytest.raises(UserError, match=r"data\.length=1 must be at least 2"):
        load(config("audio_small", length=1), NOWHERE)
    with pytest.raises(UserError, match="takes grey levels, but audio_small is discrete 256"):
        load(config("audio_small", binarise="threshold"), NOWHERE)


# ---------------------------------------------------------------------- fsdd

TAKES = [(digit, speaker, number) for digit in (0, 7) for speaker in ("ann", "bob") for number in (0, 4, 5, 9, 10, 11)]


def samples_of(digit: int, speaker: str, number: int) -> np.ndarray:
    rng = np.random.RandomState(hash((digit, number)) % 1000 + (speaker == "bob"))
    return rng.randint(-32768, 32768, 130 + 50 * digit + number).astype(np.int16)


def wav_of(samples: np.ndarray, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def as_folder(folder: Path) -> None:
    (folder / "recordings").mkdir(parents=True)
    for take in TAKES:
        (folder / "recordings" / "{}_{}_{}.wav".format(*take)).write_bytes(wav_of(samples_of(*take)))
    (folder / "recordings" / "README.md").write_text("not a recording")


def as_zip(folder: Path) -> None:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "free-spoken-digit-dataset-master.zip", "w") as archive:
        for take in TAKES:
            name = "free-spoken-digit-dataset-master/recordings/{}_{}_{}.wav".format(*take)
            archive.writestr(name, wav_of(samples_of(*take)))


def as_npz(folder: Path) -> None:
    folder.mkdir(parents=True)
    takes = TAKES[::-1]
    audio = [samples_of(*take) for take in takes]
    digit, speaker, number = (np.array(column) for column in zip(*takes, strict=True))
    offsets = np.cumsum([0, *map(len, audio)])
    np.savez(
        folder / "fsdd.npz", audio=np.concatenate(audio), offsets=offsets, digit=digit, index=number,
        speaker=np.char.encode(speaker),
    )  # fmt: skip


@pytest.mark.parametrize("form", [as_folder, as_zip, as_npz])
def test_spoken_digits_in_every_form(config: Config, tmp_path: Path, form: Callable[[Path], None]) -> None:
    form(tmp_path / "fsdd")
    data = load(config("fsdd", length=64, verify=False), tmp_path)
    assert data.spec == DataSpec((64,), "discrete", 256, 10)
    assert data.spec.sampling_rate == 8000
    splits: dict[str, list[tuple[int, np.ndarray]]] = {"train": [], "valid": [], "test": []}
    for digit, speaker, number in sorted(TAKES):
        codes = mu_law_encode(samples_of(digit, speaker, number) / 32768)
        split = "test" if number < 5 else "valid" if number < 10 else "train"
        splits[split] += [(digit, codes[i * 64 : i * 64 + 64]) for i in range(len(codes) // 64)]
    for split, rows in splits.items():
        assert np.array_equal(data.splits[split].x, np.stack([codes for _, codes in rows]))
        assert data.splits[split].y.tolist() == [digit for digit, _ in rows]
    by_speaker = load(config("fsdd", length=64, verify=False, label="speaker"), tmp_path)
    assert by_speaker.spec.num_classes == 2
    assert set(by_speaker.splits["test"].y.tolist()) == {0, 1}
    assert by_speaker.meta["split_hash"] == data.meta["split_hash"]
    assert load(config("fsdd", length=60, verify=False), tmp_path).meta["split_hash"] != data.meta["split_hash"]


def test_spoken_digits_are_checked(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs recordings like 7_theo_0\.wav in .*fsdd; put the folder recordings"):
        load(config("fsdd"), tmp_path)
    as_folder(tmp_path / "fsdd")
    with pytest.raises(UserError, match=r"The 24 recordings in .* differ from the 3,000 .* data\.verify=false"):
        load(config("fsdd"), tmp_path)
    with pytest.raises(UserError, match=r"data\.label=speeker must be one of digit, speaker"):
        load(config("fsdd", label="speeker"), tmp_path)
    with pytest.raises(UserError, match=r"No recording of the train set has 9999 samples; lower data\.length"):
        load(config("fsdd", length=9999, verify=False), tmp_path)
    (tmp_path / "fsdd" / "recordings" / "0_ann_0.wav").write_bytes(wav_of(np.zeros(100), rate=16000))
    with pytest.raises(UserError, match=r"0_ann_0\.wav has a sampling rate of 16000 Hz; expected 8000"):
        load(config("fsdd", verify=False, length=64), tmp_path)


def test_damaged_archives_of_spoken_digits(config: Config, tmp_path: Path) -> None:
    as_npz(tmp_path / "fsdd")
    path = tmp_path / "fsdd" / "fsdd.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "offsets": arrays["offsets"] + 1})
    with pytest.raises(UserError, match="do not fit each other"):
        load(config("fsdd", verify=False), tmp_path)
    del arrays["index"]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"fsdd\.npz lacks index"):
        load(config("fsdd", verify=False), tmp_path)
    path.unlink()
    (tmp_path / "fsdd" / "digits.zip").write_bytes(b"PK not really")
    with pytest.raises(UserError, match=r"digits\.zip is no complete zip archive"):
        load(config("fsdd", verify=False), tmp_path)
