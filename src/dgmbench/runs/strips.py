"""Sequences whose steps look like something: strips of frames, piano rolls, strips of stick figures."""

import io
from typing import Any

import numpy as np
from torch import Tensor

from dgmbench.data.spec import DataSpec

ROWS, COLUMNS = 8, 16  # sequences in a picture, and steps of each where steps are pictures
ROLLS = 6
FIGURES = 24  # figures in a strip
ACROSS, PIXELS, FRAME_MS = 4, 320, 100  # videos beside each other in an animation, its least side, and a frame's time


def shows_steps(spec: DataSpec) -> bool:
    """Whether the data say what a step looks like."""
    return any(value is not None for value in (spec.frame, spec.lowest_note, spec.bones))


def draw_strips(x: Tensor, spec: DataSpec) -> Any:
    """The first sequences of raw values (n, t, d), one below the other, as a matplotlib figure."""
    from matplotlib.figure import Figure

    values = x.cpu().float().numpy()
    if spec.frame is not None:
        figure = Figure(figsize=(12, 6.2), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        axes.imshow(_frames(values[:ROWS], spec.frame), cmap="gray", interpolation="nearest")
        return figure
    rows = ROLLS if spec.lowest_note is not None else ROWS
    figure = Figure(figsize=(12, 1.5 * min(rows, len(values))), layout="constrained")
    for axes, one in zip(figure.subplots(min(rows, len(values)), 1, squeeze=False)[:, 0], values, strict=False):
        if spec.lowest_note is not None:
            _roll(axes, one, spec.lowest_note)
        else:
            _figures(axes, one, spec)
    return figure


def animation(x: Tensor, spec: DataSpec) -> bytes:
    """The first videos of raw values (n, t, d) side by side, as a GIF that runs for ever."""
    from PIL import Image

    assert spec.frame is not None
    videos = x[: ACROSS**2].cpu().float().numpy().reshape(-1, x.shape[1], *spec.frame)
    scaled = (videos - videos.min()) / max(float(videos.max() - videos.min()), 1e-6)
    framed = np.pad(scaled, ((0, -len(videos) % ACROSS), (0, 0), (1, 0), (1, 0)), constant_values=0.4)
    rows, (height, width) = len(framed) // ACROSS, framed.shape[2:]
    frames = framed.reshape(rows, ACROSS, -1, height, width).transpose(2, 0, 3, 1, 4)
    frames = frames.reshape(-1, rows * height, ACROSS * width)
    factor = max(1, -(-PIXELS // (ACROSS * width)))
    enlarged = (255 * frames).round().astype(np.uint8).repeat(factor, 1).repeat(factor, 2)
    first, *others = [Image.fromarray(frame) for frame in enlarged]
    buffer = io.BytesIO()
    first.save(buffer, format="gif", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    return buffer.getvalue()


def _shown(steps: int, most: int) -> np.ndarray:
    """At most so many steps, evenly spaced."""
    return np.arange(0, steps, max(1, -(-steps // most)))


def _frames(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Strips of every so-many-th frame, with grey lines between."""
    chosen = values[:, _shown(values.shape[1], COLUMNS)].reshape(len(values), -1, *size)
    scaled = (chosen - values.min()) / max(float(values.max() - values.min()), 1e-6)
    framed = np.pad(scaled, ((0, 0), (0, 0), (1, 0), (1, 0)), constant_values=0.4)
    return framed.transpose(0, 2, 1, 3).reshape(framed.shape[0] * framed.shape[2], -1)


def _roll(axes: Any, notes: np.ndarray, lowest: int) -> None:
    """Time to the right, pitch upwards: the range of a piano's notes that music lies in."""
    axes.imshow(
        notes.T, aspect="auto", origin="lower", cmap="gray_r", interpolation="nearest", vmin=0, vmax=1,
        extent=(-0.5, len(notes) - 0.5, lowest - 0.5, lowest + notes.shape[1] - 0.5),
    )  # fmt: skip
    axes.set_ylim(36, 84)
    axes.set_ylabel("MIDI note")


def _figures(axes: Any, steps: np.ndarray, spec: DataSpec) -> None:
    """Stick figures beside each other, each one's points joined by bones."""
    assert spec.bones is not None
    points = steps.reshape(len(steps), -1, 2)
    wide = float(np.ptp(points[..., 0])) * 0.7 + 1e-3
    for place, step in enumerate(_shown(len(points), FIGURES)):
        for a, b in spec.bones:
            axes.plot(points[step, [a, b], 0] + place * wide, points[step, [a, b], 1], color="black", linewidth=1.0)
    axes.set_aspect("equal")
    axes.set_axis_off()
