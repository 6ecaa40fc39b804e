"""Pictures and maps read at points between their pixels.

Points are (across, down) in pixels from the upper left corner, so that the middle of the first pixel is (0.5, 0.5).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def middles(h: int, w: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    """The middle of each pixel."""
    down, across = (torch.arange(n, device=like.device, dtype=like.dtype) + 0.5 for n in (h, w))
    return torch.stack(torch.meshgrid(across, down, indexing="xy"), 2)


def carried(maps: Float[Tensor, "n c h w"], points: Float[Tensor, "n i j 2"]) -> Float[Tensor, "n c i j"]:
    """Maps read at points, between pixels bilinearly, zero outside."""
    h, w = maps.shape[2:]
    grid = 2 * points / torch.tensor([w, h], device=points.device, dtype=points.dtype) - 1
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
