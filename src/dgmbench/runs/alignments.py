"""Speech as spectrograms, and beneath each what it is taken for: words, and the states of every frame beside the true.

Cepstra are turned back into the energies of mel filters, smooth as the coefficients that were left out were not.
"""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgmbench.data.mfcc import energies
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.models.tasks import FindsPaths
from dgmbench.training.files import write_atomically

ROWS = 5  # utterances in a picture
HEIGHT = 0.16  # of a bar of states, where a spectrogram has 1


@torch.no_grad()
def alignments(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Examples x (n, t, d) with their lengths, and the labels of their steps, ``target`` and ``predicted``."""
    if not isinstance(model, FindsPaths) or batch.length is None:
        raise UserError(f"{type(model).__name__} aligns nothing: it has no best_path(x, length) method.")
    path = model.best_path(batch.x, batch.length)
    return {
        "x": batch.x,
        "length": batch.length,
        "target": torch.full_like(path, -1) if batch.y is None else batch.y,
        "predicted": path,
    }


def write_alignments(picture: Path, found: dict[str, Tensor], spec: DataSpec) -> list[Path]:
    """Write the picture of the first examples."""
    buffer = io.BytesIO()
    draw_alignments(found, spec).savefig(buffer, format="png", dpi=100)
    write_atomically(picture, buffer.getvalue())
    return [picture]


def draw_alignments(found: dict[str, Tensor], spec: DataSpec) -> Any:
    """One row an utterance, as a matplotlib figure."""
    from matplotlib.figure import Figure

    values = {key: value[:ROWS].cpu().numpy() for key, value in found.items()}
    figure = Figure(figsize=(11, 2.0 * len(values["x"])), layout="constrained")
    rows = figure.subplots(len(values["x"]), 1, squeeze=False)[:, 0]
    for n, axes in enumerate(rows):
        t = int(values["length"][n])
        seen = values["x"][n, :t]
        image = seen if spec.cepstra is None else energies(seen[:, : spec.cepstra])
        axes.imshow(image.T, aspect="auto", origin="lower", extent=(0, t, 0, 1), cmap="magma", interpolation="nearest")
        for place, key in enumerate(("target", "predicted")):
            _bars(axes, values[key][n, :t], -(place + 1) * HEIGHT, spec)
        axes.set_xlim(0, t)
        axes.set_ylim(-2 * HEIGHT, 1)
        axes.set_yticks([-0.5 * HEIGHT, -1.5 * HEIGHT], ["true", "recognised"])
    rows[-1].set_xlabel("frame")
    return figure


def _bars(axes: Any, path: np.ndarray, bottom: float, spec: DataSpec) -> None:
    """A bar for every stretch of equal labels, coloured by word and paler from state to state, and the words' names."""
    from matplotlib import colormaps

    colours, states = colormaps["tab10"], states_of(spec)
    for begin, end, label in stretches(path):
        if label >= 0:
            word, state = divmod(label, states)
            shade = 1 - 0.6 * state / max(1, states - 1)
            axes.broken_barh([(begin, end - begin)], (bottom, HEIGHT), facecolors=[(*colours(word % 10)[:3], shade)])
    for begin, end, word in words_in(path, states):
        axes.axvline(begin, ymax=2 * HEIGHT / (1 + 2 * HEIGHT), color="black", linewidth=0.8)
        name = spec.class_names[states * word].rpartition(" ")[0] if spec.class_names else str(word)
        axes.text((begin + end) / 2, bottom + HEIGHT / 2, name, ha="center", va="center", fontsize=8, clip_on=True)


def states_of(spec: DataSpec) -> int:
    """States of a word, the second factor of a label; 1 where labels have one factor."""
    return spec.factors[1][1] if spec.factors is not None and len(spec.factors) > 1 else 1


def stretches(path: np.ndarray) -> list[tuple[int, int, int]]:
    """Beginning, end and label of every run of equal labels."""
    bounds = [0, *(np.flatnonzero(np.diff(path)) + 1).tolist(), len(path)]
    return [(begin, end, int(path[begin])) for begin, end in pairwise(bounds) if end > begin]


def words_in(path: np.ndarray, states: int) -> list[tuple[int, int, int]]:
    """Beginning, end and number of every word: the next begins at another word, or at an earlier state."""
    found: list[tuple[int, int, int]] = []
    last = -1
    for begin, end, label in stretches(path):
        if label >= 0 and last >= 0 and label // states == last // states and label > last:
            found[-1] = (found[-1][0], end, label // states)
        elif label >= 0:
            found.append((begin, end, label // states))
        last = label
    return found
