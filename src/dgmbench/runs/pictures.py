"""Samples to look at, listen to and read: whatever fits the space that they lie in."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgmbench.data.audio import mu_law_decode, wav_bytes
from dgmbench.data.midi import midi_bytes
from dgmbench.data.spec import DataSpec
from dgmbench.data.text import readable
from dgmbench.nn.scaling import Scaling
from dgmbench.runs.strips import animation, draw_strips, shows_steps
from dgmbench.training.files import write_atomically

# The smallest side of a finished grid, so that 8x8 digits can be seen without a magnifying glass.
SMALLEST_SIDE = 480
# What fits into one picture.
MOST_WAVES = 8
REST = 4  # steps of silence between pieces of music
MOST_PREDICTIONS, PREDICTIONS_A_ROW = 64, 8
MOST_LINES = 32
MOST_COLUMNS = 100


def write_samples(picture: Path, x: Tensor, spec: DataSpec, *, columns: int | None = None) -> list[Path]:
    """Write raw values (n, *shape) as a picture; beside it as a film (.gif), sound (.wav), music (.mid) or text
    (.txt) if they are.

    Returns the paths, the picture's first.
    """
    write_picture(picture, x, spec, columns=columns)
    written = [picture]
    if spec.sampling_rate is not None:
        written.append(picture.with_suffix(".wav"))
        write_atomically(written[-1], wav_bytes(waveforms(x, spec), spec.sampling_rate))
    if spec.frame is not None:
        written.append(picture.with_suffix(".gif"))
        write_atomically(written[-1], animation(x, spec))
    if spec.lowest_note is not None:
        written.append(picture.with_suffix(".mid"))
        rolls = np.pad(x[:MOST_WAVES].cpu().numpy(), ((0, 0), (0, REST), (0, 0)))
        write_atomically(written[-1], midi_bytes(rolls.reshape(-1, rolls.shape[2]), lowest_note=spec.lowest_note))
    if spec.vocabulary is not None:
        written.append(picture.with_suffix(".txt"))
        lines = [text + "\n" for text in readable(x.cpu().numpy(), spec)]
        # chunks of text have lines of their own, so something has to keep them apart
        write_atomically(written[-1], ("" if spec.end is not None else "-----\n").join(lines).encode())
    return written


def write_predictions(picture: Path, spec: DataSpec, found: Mapping[str, Tensor]) -> list[Path]:
    """Write a line of text for each ``predicted`` and ``target`` of examples ``x`` (n, *shape), and a picture.

    It shows images with their predictions, real values against their targets, else the lines. Returns the paths, the
    picture's first.
    """
    from matplotlib.figure import Figure

    x, target, predicted = found["x"], found["target"], found["predicted"]
    lines = [f"{_said(p)} (true {_said(t)})" for t, p in zip(target, predicted, strict=True)]
    figure = Figure(figsize=(9, 9), layout="constrained")
    if spec.is_image:
        rows = math.ceil(min(len(x), MOST_PREDICTIONS) / PREDICTIONS_A_ROW)
        figure.set_size_inches(9, 1.4 * rows)
        places = figure.subplots(rows, PREDICTIONS_A_ROW, squeeze=False).flatten()
        for place in places:
            place.set_axis_off()
        for place, image, line in zip(places, x, lines, strict=False):
            place.imshow(image_grid(image[None], spec, 1), cmap="gray", interpolation="nearest")
            place.set_title(line, fontsize=7)
    elif target.is_floating_point():
        axes = figure.subplots()
        axes.scatter(target.flatten().cpu(), predicted.flatten().cpu(), s=6)
        axes.axline((float(target.mean()),) * 2, slope=1.0, linewidth=0.8)
        axes.set_xlabel("target")
        axes.set_ylabel("predicted")
    else:
        _write_text(figure, lines)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_atomically(picture, buffer.getvalue())
    text = picture.with_suffix(".txt")
    write_atomically(text, "".join(line + "\n" for line in lines).encode())
    return [picture, text]


def _said(value: Tensor) -> str:
    """A label, a sequence of labels without the places behind its end, or real values."""
    if value.is_floating_point():
        return " ".join(f"{v:.3g}" for v in value.flatten().tolist())
    return " ".join(str(v) for v in value.flatten().tolist() if v >= 0) or "unknown"


def waveforms(x: Tensor, spec: DataSpec) -> np.ndarray:
    """Raw values (n, t) of sound as waves in [-1, 1]."""
    values = x.cpu().flatten(1).numpy()
    return mu_law_decode(values) if spec.kind == "discrete" else values


def image_grid(x: Tensor, spec: DataSpec, columns: int | None = None) -> np.ndarray:
    """Raw images (n, c, h, w) as one uint8 picture (H, W) or (H, W, 3), nearly square unless ``columns`` are given."""
    channels, height, width = spec.shape
    unit = Scaling(spec, low=0.0, high=1.0)(x).clamp(0, 1)
    pixels = (unit * 255).round().byte().cpu().numpy().transpose(0, 2, 3, 1)
    pixels = pixels[..., :3] if channels >= 3 else pixels[..., :1]
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, pixels.shape[-1]), 96, np.uint8)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    factor = max(1, math.ceil(SMALLEST_SIDE / min(grid.shape[:2])))
    grid = grid.repeat(factor, 0).repeat(factor, 1)
    return grid[..., 0] if grid.shape[-1] == 1 else grid


def write_picture(path: Path, x: Tensor, spec: DataSpec, *, columns: int | None = None) -> None:
    """Write raw values (n, *shape) as a PNG: a grid of images, strips of steps, waves and spectra, text, points, else a
    heat map.
    """
    buffer = io.BytesIO()
    if spec.is_image:
        from PIL import Image

        Image.fromarray(image_grid(x, spec, columns)).save(buffer, format="png")
    else:
        _figure(x, spec).savefig(buffer, format="png", dpi=100)
    write_atomically(path, buffer.getvalue())


def _figure(x: Tensor, spec: DataSpec) -> Any:
    from matplotlib.figure import Figure

    if shows_steps(spec):
        return draw_strips(x, spec)
    if spec.sampling_rate is not None:
        figure = Figure(figsize=(9, 9), layout="constrained")
        _draw_waves(figure, waveforms(x[:MOST_WAVES], spec), spec.sampling_rate)
        return figure
    figure = Figure(figsize=(6, 6), layout="constrained")
    values = x.cpu().flatten(1).numpy()
    if spec.vocabulary is not None:
        _write_text(figure, readable(values, spec))
        return figure
    axes = figure.subplots()
    if spec.dim == 2 and spec.kind == "real":
        axes.scatter(values[:, 0], values[:, 1], s=4, alpha=0.6)
        axes.set_aspect("equal")
    else:
        axes.imshow(values, aspect="auto", interpolation="nearest", cmap="gray")
        axes.set_xlabel("dimension")
        axes.set_ylabel("sample")
    return figure


def _draw_waves(figure: Any, waves: np.ndarray, rate: int) -> None:
    """Each wave over time, and the energy of its frequencies beside it."""
    rows = figure.subplots(len(waves), 2, sharex="col", squeeze=False, width_ratios=(2, 1))
    time, hertz = np.arange(waves.shape[1]) / rate * 1000, np.fft.rfftfreq(waves.shape[1], 1 / rate)
    energy = np.abs(np.fft.rfft(waves * np.hanning(waves.shape[1]))) / waves.shape[1]
    for (left, right), wave, spectrum in zip(rows, waves, energy, strict=True):
        left.plot(time, wave, linewidth=0.8)
        left.set_ylim(-1.05, 1.05)
        right.plot(hertz, 20 * np.log10(spectrum + 1e-6), linewidth=0.8)
        right.set_ylim(-100, 0)
        right.set_ylabel("dB")
    rows[-1][0].set_xlabel("ms")
    rows[-1][1].set_xlabel("Hz")


def _write_text(figure: Any, texts: list[str]) -> None:
    """The first samples as lines of text; long ones and long lines are cut."""
    lines: list[str] = []
    for text in texts:
        lines += [line if len(line) <= MOST_COLUMNS else f"{line[:MOST_COLUMNS]} ..." for line in text.split("\n")]
        lines += [""] if "\n" in text else []
    lines = lines[:MOST_LINES]
    figure.set_size_inches(9, 0.2 + 0.17 * len(lines))
    # matplotlib's own font has Latin, Greek and Cyrillic; a dollar would begin a formula
    readable = ["".join(c if c.isprintable() and c < "\u0530" else "?" for c in line) for line in lines]
    shown = "\n".join(readable).replace("$", r"\$")
    figure.text(0.02, 0.5, shown, family="monospace", size=9, va="center")
