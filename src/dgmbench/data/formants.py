"""Spoken digits synthesised from formants: a voice's harmonics and hiss under the resonances of a vocal tract.

A digit is three sounds after each other, each with the frequencies of three resonances (formants) and a share of voice
in it; from sound to sound the resonances glide. A speaker has a pitch, a tempo and a length of the vocal tract, which
multiplies all resonances. The voice is a sum of harmonics, the hiss white noise, both shaped by

    |H(f)|^2 = sum_j (b_j / 2)^2 / ((f - F_j)^2 + (b_j / 2)^2),      b_j the bandwidths.

Formants of vowels: Peterson & Barney 1952, "Control methods used in a study of the vowels",
https://doi.org/10.1121/1.1906875; the others are rough.
"""

from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from scipy.signal import lfilter

RATE = 8000  # Hz
STATES = 3  # sounds of a digit
SOUNDS = {  # formants in Hz, and the share of voice
    "iy": (270, 2290, 3010, 1.0), "ih": (390, 1990, 2550, 1.0), "eh": (530, 1840, 2480, 1.0),
    "ah": (640, 1190, 2390, 1.0), "ao": (570, 840, 2410, 1.0), "uw": (300, 870, 2240, 1.0),
    "aa": (730, 1090, 2440, 1.0), "ey": (450, 2100, 2700, 1.0), "ow": (450, 900, 2350, 1.0),
    "w": (300, 650, 2200, 0.9), "r": (320, 1100, 1500, 0.9), "n": (280, 1500, 2500, 0.9), "v": (300, 1200, 2300, 0.5),
    "z": (300, 1700, 3400, 0.3), "s": (1500, 2800, 3700, 0.0), "f": (1000, 1800, 3000, 0.0),
    "th": (1200, 1600, 3300, 0.0), "t": (1800, 2600, 3400, 0.0),
}  # fmt: skip
DIGITS = {
    "zero": ("z", "ih", "ow"), "one": ("w", "ah", "n"), "two": ("t", "uw", "uw"), "three": ("th", "r", "iy"),
    "four": ("f", "ao", "r"), "five": ("f", "aa", "v"), "six": ("s", "ih", "s"), "seven": ("s", "eh", "n"),
    "eight": ("ey", "ih", "t"), "nine": ("n", "aa", "n"),
}  # fmt: skip
BANDWIDTHS = np.array([90.0, 120.0, 180.0])
HARMONICS = 32
HELD = 20  # samples
GLIDE = 320  # samples over which the resonances of neighbouring sounds are averaged
HISS, HISS_BANDWIDTH = 0.4, 400.0  # beside a voice of unit power; Hz
MEAN_SOUND = 0.07  # seconds


class Speaker(NamedTuple):
    """How somebody speaks: pitch in Hz, seconds of a sound, factor on the formants."""

    pitch: float
    sound: float
    tract: float


def draw_speaker(rng: RandomState) -> Speaker:
    """Pitch 80 to 250 Hz, on a logarithmic scale; higher voices have shorter tracts."""
    height = rng.rand()
    return Speaker(80 * 3.1**height, MEAN_SOUND * np.exp(0.2 * rng.randn()), 0.9 + 0.2 * height + 0.05 * rng.randn())


def resonance(frequency: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """|H| at frequencies (..., n) given formants (3, n), Hz; the higher ones are weaker."""
    half = (BANDWIDTHS / 2)[:, None]
    total = sum(
        weight * half[j] ** 2 / ((frequency - formants[j]) ** 2 + half[j] ** 2)
        for j, weight in enumerate((1, 0.5, 0.25))
    )
    return np.sqrt(total + 1e-4)


def speak(words: list[int], speaker: Speaker, rng: RandomState) -> tuple[np.ndarray, np.ndarray]:
    """A wave (n,) of digits in a row, of unit power, and for each sample the number 3 * digit + sound, (n,)."""
    names = list(DIGITS)
    sounds = [SOUNDS[name] for word in words for name in DIGITS[names[word]]]
    each = np.maximum((RATE * speaker.sound * np.exp(0.25 * rng.randn(len(sounds)))).astype(int), RATE // 40)
    numbers = np.array([STATES * word + s for word in words for s in range(STATES)])
    table = np.array(sounds)
    table[:, :3] *= speaker.tract * np.exp(0.04 * rng.randn(len(sounds), 3))
    track = glided(np.repeat(table, each, axis=0))
    wave = voiced(track[:, :3], speaker.pitch, rng)
    voice = track[:, 3]
    wave *= voice / max(float(np.sqrt(np.mean(wave**2))), 1e-6)
    hiss = np.concatenate([hissed(length, row[:3], rng) for length, row in zip(each, table, strict=True)])
    wave += HISS * (1 - voice) * hiss
    return wave / np.sqrt(np.mean(wave**2)), np.repeat(numbers, each)


def glided(steady: np.ndarray) -> np.ndarray:
    """The mean of values (n, d) over ``GLIDE`` samples around each; the first and the last are repeated."""
    padded = np.pad(steady, ((GLIDE // 2 + 1, GLIDE - GLIDE // 2 - 1), (0, 0)), mode="edge")
    total = padded.cumsum(0)
    return (total[GLIDE:] - total[:-GLIDE]) / GLIDE


def voiced(formants: np.ndarray, pitch: float, rng: RandomState) -> np.ndarray:
    """Harmonics (n,) of a pitch with a little vibrato under formants (n, 3); amplitudes are held for ``HELD`` samples.

    Their phases are multiples of one, so that they are powers of one phasor.
    """
    n = len(formants)
    moved = pitch * (1 + 0.05 * np.sin(2 * np.pi * (3 * np.arange(n) / RATE + rng.rand())))
    phasor = np.exp(2j * np.pi * moved.cumsum() / RATE)
    phasor = np.pad(phasor, (0, -n % HELD)).reshape(-1, HELD).astype(np.complex64)
    k = np.arange(1, HARMONICS + 1)[:, None]
    hertz = k * moved[::HELD]
    amplitudes = resonance(hertz, formants[::HELD].T) / k * (hertz < RATE / 2)
    wave, power = np.zeros(phasor.shape, np.float32), np.ones_like(phasor)
    for row in amplitudes.astype(np.float32):
        power = power * phasor
        wave += row[:, None] * power.imag
    return wave.ravel()[:n].astype(float)


def hissed(n: int, formants: np.ndarray, rng: RandomState) -> np.ndarray:
    """White noise (n,) through three resonators side by side, of unit power."""
    noise, shaped = rng.randn(n), np.zeros(n)
    r = np.exp(-np.pi * HISS_BANDWIDTH / RATE)
    for formant, weight in zip(formants, (0.6, 1.0, 1.0), strict=True):
        turn = 2 * np.pi * min(formant, RATE / 2 - 100) / RATE
        shaped += weight * lfilter([1 - r], [1, -2 * r * np.cos(turn), r * r], noise)
    return shaped / np.sqrt(np.mean(shaped**2))
