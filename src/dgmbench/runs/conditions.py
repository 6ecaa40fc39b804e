"""Pictures of conditional samples: what is given | samples under it | the truth, one condition a row."""

import colorsys
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgmbench.data.random import keyed_generator
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.data.text import readable
from dgmbench.models.conditions import under
from dgmbench.models.contract import CanSample
from dgmbench.nn.scaling import Scaling
from dgmbench.runs.pictures import waveforms
from dgmbench.training.files import write_atomically

# Conditions in a picture, and samples under each.
ROWS, DRAWS = 8, 4
MOST_CHARACTERS = 60


@torch.no_grad()
def samples_under(model: CanSample, batch: Batch, *, seed: int, first: Tensor | None = None) -> Tensor:
    """Samples (n, DRAWS, *shape) under the conditions of n examples; ``first`` (n, *shape) are the first of them."""
    own, parts = under(model, batch), [] if first is None else [first]
    while len(parts) < DRAWS:
        generator = keyed_generator("conditions", seed, len(parts), device=batch.x.device)
        parts.append(own.sample(len(batch.x), generator=generator))
    return torch.stack(parts, 1)


def write_conditions(path: Path, batch: Batch, samples: Tensor, spec: DataSpec) -> None:
    """Write a PNG of the first examples: their conditions, ``samples`` (n, DRAWS, *shape) under them, and the truth."""
    from matplotlib.figure import Figure

    assert spec.given is not None
    assert batch.given is not None
    rows, columns = min(ROWS, len(samples)), samples.shape[1] + 2
    figure = Figure(figsize=(1.4 * columns, 1.4 * rows))  # without a layout engine, which takes seconds
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, 0.06, 0.06)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, axes in enumerate(grid):
        _draw(axes[0], batch.given[row], spec.given)
        for place, x in enumerate(samples[row], start=1):
            _draw(axes[place], x, spec)
        _draw(axes[-1], batch.x[row], spec)
    for title, place in (("given", 0), ("samples", 1), ("truth", columns - 1)):
        grid[0][place].set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_atomically(path, buffer.getvalue())


def coloured(planes: Tensor) -> Tensor:
    """Planes (c, h, w) from 0 to 1 as one picture (3, h, w): the first in grey, the others over it in colours."""
    hues = [colorsys.hsv_to_rgb(k / (len(planes) - 1), 1.0, 1.0) for k in range(len(planes) - 1)]
    over = (planes[1:, None] * planes.new_tensor(hues)[:, :, None, None]).amax(0)
    return torch.maximum(0.6 * planes[:1], over)


def _draw(axes: Any, x: Tensor, spec: DataSpec) -> None:
    """One raw value (*shape) in a panel: an image, a wave, a text, a point, else a row of grey cells."""
    axes.set_xticks([])
    axes.set_yticks([])
    if spec.is_image:
        unit = Scaling(spec, low=0.0, high=1.0)(x[None])[0].clamp(0, 1).float().cpu()
        pixels = coloured(unit) if len(unit) > 4 else unit[:3] if len(unit) >= 3 else unit[:1]
        axes.imshow(pixels.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    elif spec.sampling_rate is not None:
        axes.plot(waveforms(x[None], spec)[0], linewidth=0.6)
    elif spec.vocabulary is not None:
        text = readable(x[None].cpu().flatten(1).numpy(), spec)[0][:MOST_CHARACTERS].replace("$", r"\$")
        axes.text(0.5, 0.5, text, fontsize=6, ha="center", va="center", wrap=True)
    elif spec.kind == "real" and spec.dim == 2:
        axes.scatter(*x.flatten().float().cpu().tolist(), s=12)
        axes.set(xlim=(-3, 3), ylim=(-3, 3))
    else:
        values = x.reshape(x.shape[0], -1).T.float().cpu().numpy() if x.dim() else x.reshape(1, 1).numpy()
        bounds = {"vmin": 0, "vmax": spec.levels - 1} if spec.levels else {}
        axes.imshow(values, aspect="auto", cmap="gray", interpolation="nearest", **bounds)
