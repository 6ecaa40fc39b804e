"""Mel-frequency cepstral coefficients of a wave, and their slopes: what a frame of speech sounds like, in few numbers.

A frame is a Hamming window of the wave. Its power spectrum is summed by triangular filters, evenly spaced on the mel
scale, 2595 log10(1 + f / 700); the type-II cosine transform (orthonormal) of their logarithms is cut off after the
first coefficients. Slopes are least-squares lines over two frames to either side.
Paper: Davis & Mermelstein 1980, "Comparison of parametric representations for monosyllabic word recognition in
continuously spoken sentences", https://doi.org/10.1109/TASSP.1980.1163420.
"""

from functools import cache

import numpy as np
from scipy.fft import dct, idct

WINDOW, HOP, FFT = 0.025, 0.010, 256  # seconds, seconds, points (at 8 kHz)
FILTERS, COEFFICIENTS = 20, 13
FLOOR = 1e-8  # of a filter's energy
SPAN = 2  # frames to either side of a slope


def mel(hertz: np.ndarray | float) -> np.ndarray:
    """Hertz to mel."""
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


@cache
def filterbank(rate: int, filters: int = FILTERS, points: int = FFT) -> np.ndarray:
    """Triangles (filters, points / 2 + 1) between 0 and half the rate; each ends at the peaks of its neighbours."""
    edges = 700 * (10 ** (np.linspace(0, float(mel(rate / 2)), filters + 2) / 2595) - 1)
    hertz = np.arange(points // 2 + 1) * rate / points
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(0, np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)))


def frames(n: int, rate: int) -> int:
    """How many frames a wave of n samples has."""
    return max(0, 1 + (n - round(WINDOW * rate)) // round(HOP * rate))


def cepstra(wave: np.ndarray, rate: int) -> np.ndarray:
    """Coefficients (frames, 13) of a wave (n,)."""
    size, hop = round(WINDOW * rate), round(HOP * rate)
    cut = np.lib.stride_tricks.sliding_window_view(wave, size)[::hop] * np.hamming(size)
    power = np.abs(np.fft.rfft(cut, FFT)) ** 2 / size
    energy = np.log(np.maximum(power @ filterbank(rate).T, FLOOR))
    return dct(energy, type=2, norm="ortho", axis=1)[:, :COEFFICIENTS]


def energies(coefficients: np.ndarray, filters: int = FILTERS) -> np.ndarray:
    """Logarithms of the filters' energies (frames, filters) with these first coefficients, and 0 for the others."""
    return np.asarray(idct(coefficients, n=filters, type=2, norm="ortho", axis=1))


def slopes(values: np.ndarray) -> np.ndarray:
    """Slopes (frames, d) of values over time; the first and the last are repeated beyond the ends."""
    padded = np.pad(values, ((SPAN, SPAN), (0, 0)), mode="edge")
    n = len(values)
    lines = sum(k * (padded[SPAN + k : SPAN + k + n] - padded[SPAN - k : SPAN - k + n]) for k in range(1, SPAN + 1))
    return np.asarray(lines) / (2 * sum(k * k for k in range(1, SPAN + 1)))


def with_slopes(values: np.ndarray) -> np.ndarray:
    """Values, their slopes and the slopes of these, (frames, 3 d)."""
    first = slopes(values)
    return np.concatenate([values, first, slopes(first)], 1)
