"""Pictures of samples: grids of images, scatter plots of points, heat maps of everything else."""

import io
import math
from pathlib import Path

import numpy as np
from torch import Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.nn.scaling import Scaling
from dgmbench.training.files import write_atomically

# The smallest side of a finished grid, so that 8x8 digits can be seen without a magnifying glass.
SMALLEST_SIDE = 480


def image_grid(x: Tensor, spec: DataSpec) -> np.ndarray:
    """Raw images (n, c, h, w) as one nearly square uint8 picture (H, W) or (H, W, 3), thin frames between them."""
    channels, height, width = spec.shape
    unit = Scaling(spec, low=0.0, high=1.0)(x).clamp(0, 1)
    pixels = (unit * 255).round().byte().cpu().numpy().transpose(0, 2, 3, 1)
    pixels = pixels[..., :3] if channels >= 3 else pixels[..., :1]
    columns = math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, pixels.shape[-1]), 96, np.uint8)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    factor = max(1, math.ceil(SMALLEST_SIDE / min(grid.shape[:2])))
    grid = grid.repeat(factor, 0).repeat(factor, 1)
    return grid[..., 0] if grid.shape[-1] == 1 else grid


def write_picture(path: Path, x: Tensor, spec: DataSpec) -> None:
    """Write raw values (n, *shape) as a PNG: a grid of images, a scatter plot of points, else a heat map."""
    buffer = io.BytesIO()
    if spec.is_image:
        from PIL import Image

        Image.fromarray(image_grid(x, spec)).save(buffer, format="png")
    else:
        from matplotlib.figure import Figure

        values = x.cpu().flatten(1).numpy()
        figure = Figure(figsize=(6, 6), layout="constrained")
        axes = figure.subplots()
        if spec.dim == 2 and spec.kind == "real":
            axes.scatter(values[:, 0], values[:, 1], s=4, alpha=0.6)
            axes.set_aspect("equal")
        else:
            axes.imshow(values, aspect="auto", interpolation="nearest", cmap="gray")
            axes.set_xlabel("dimension")
            axes.set_ylabel("sample")
        figure.savefig(buffer, format="png", dpi=100)
    write_atomically(path, buffer.getvalue())
