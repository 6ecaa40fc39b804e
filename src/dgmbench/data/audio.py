"""Sound as 8-bit mu-law codes: the companding that WaveNet models, and WAV files with the standard library.

A wave w in [-1, 1] is companded by f(w) = sign(w) log(1 + mu |w|) / log(1 + mu) with mu = 255 (ITU-T G.711) and
rounded to one of 256 levels that are evenly spaced in f, so that quiet sounds keep their detail.
"""

import io
import wave
from typing import BinaryIO

import numpy as np

from dgmbench.errors import UserError

LEVELS = 256
MU = LEVELS - 1


def mu_law_encode(waveform: np.ndarray) -> np.ndarray:
    """Codes (uint8) of a wave; values outside [-1, 1] are clipped."""
    w = np.clip(waveform, -1.0, 1.0)
    companded = np.sign(w) * np.log1p(MU * np.abs(w)) / np.log1p(MU)
    return np.round((companded + 1.0) / 2.0 * MU).astype(np.uint8)


def mu_law_decode(codes: np.ndarray) -> np.ndarray:
    """The wave in [-1, 1] at the centre of each code, float64; encoding it gives the codes again."""
    companded = 2.0 * codes.astype(np.float64) / MU - 1.0
    return np.sign(companded) * np.expm1(np.abs(companded) * np.log1p(MU)) / MU


def read_wav(file: str | BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """The samples (n,) int16 of a 16-bit mono WAV file, and its sampling rate; ``name`` is for the error."""
    try:
        with wave.open(file, "rb") as recording:
            channels, width, rate = recording.getnchannels(), recording.getsampwidth(), recording.getframerate()
            content = recording.readframes(recording.getnframes())
    except (wave.Error, EOFError) as error:
        raise UserError(f"{name} is no readable WAV file ({error or 'it is cut short'}).") from error
    if channels != 1 or width != 2:
        raise UserError(f"{name} has {channels} channels of {8 * width} bits; expected one channel of 16 bits.")
    return np.frombuffer(content[: len(content) // 2 * 2], "<i2").astype(np.int16), rate


def wav_bytes(waves: np.ndarray, rate: int, *, gap: float = 0.1) -> bytes:
    """A 16-bit mono WAV file of waves (n, t) in [-1, 1], one after another with ``gap`` seconds of silence between."""
    pcm = np.round(np.clip(waves, -1.0, 1.0) * 32767).astype("<i2")
    silence = np.zeros((len(pcm), round(gap * rate)), "<i2")
    joined = np.concatenate([pcm, silence], axis=1).ravel()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(rate)
        recording.writeframes(joined[: joined.size - silence.shape[1]].tobytes())
    return buffer.getvalue()
