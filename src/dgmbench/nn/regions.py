"""Boxes and masks of objects in pictures: what is inside, how far two of them agree, and boxes as numbers to learn.

A box (x_0, y_0, x_1, y_1) goes from the left edge of its first column and the upper edge of its first row to the far
edges of the last ones, in pixels: a box of one pixel in the upper left corner is (0, 0, 1, 1).
"""

import functools
import itertools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.labels import factor_of, labels_of
from dgmbench.nn.warping import carried

FACTORS = ("digit", "size", "row", "column")


def objects_of(batch: Batch, spec: DataSpec) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"], Float[Tensor, "b 4"]]:
    """What labels (b,) of factors digit, size, row and column say: classes, sides in pixels, and boxes.

    Where the label is unknown, or the side 0, class and side are -1, and the box is all of the picture.
    """
    y = labels_of(batch)
    digit, size, row, column = (factor_of(y, spec, name) for name in FACTORS)
    boxes = torch.stack([column, row, column + size, row + size], 1)
    everything = boxes.new_tensor([0, 0, spec.shape[2], spec.shape[1]])
    known = size > 0
    return digit.where(known, -1), size.where(known, -1), boxes.where(known[:, None], everything).float()


def require_objects(spec: DataSpec) -> int:
    """The number of classes of data whose pictures show an object at a known place; ``UserError`` for others."""
    sizes = dict(spec.factors or ())
    if not spec.is_image or not set(FACTORS) <= set(sizes):
        raise UserError(
            f"This model takes pictures with the factors {', '.join(FACTORS)} of an object, not {spec}; choose "
            "data=digits_canvas_sizes."
        )
    return sizes["digit"]


def jittered(boxes: Float[Tensor, "b 4"], amount: float, generator: Generator | None = None) -> Float[Tensor, "b 4"]:
    """Proposals around boxes: centres moved and sides stretched by up to ``amount`` of the side, uniformly."""
    centre, side = _centred(boxes)
    u = torch.rand(len(boxes), 4, generator=generator, device=boxes.device, dtype=boxes.dtype) * 2 - 1
    centre, side = centre + amount * u[:, :2] * side, side * (1 + amount * u[:, 2:])
    return torch.cat([centre - side / 2, centre + side / 2], 1)


def cropped(x: Float[Tensor, "b c h w"], boxes: Float[Tensor, "b 4"], size: int) -> Float[Tensor, "b c size size"]:
    """The picture's values at size x size places inside each box, bilinear between pixels, 0 outside of the picture.

    A box of ``size`` whole pixels gives these pixels.
    """
    place = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / size
    sides = zip(boxes[:, :2].T, boxes[:, 2:].T, strict=True)
    across, down = (low[:, None] + (high - low)[:, None] * place for low, high in sides)
    return carried(x, torch.stack(torch.broadcast_tensors(across[:, None], down[:, :, None]), 3))


def encoded(boxes: Float[Tensor, "b 4"], proposals: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Boxes relative to proposals (Girshick et al. 2014): offsets of the centre per side, and logarithms of the sides'
    ratio.
    """
    centre, side = _centred(boxes)
    own, of = _centred(proposals)
    return torch.cat([(centre - own) / of, (side / of).log()], 1)


def decoded(t: Float[Tensor, "b 4"], proposals: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """The boxes that numbers t mean relative to proposals."""
    own, of = _centred(proposals)
    centre, side = own + t[:, :2] * of, of * t[:, 2:].exp()
    return torch.cat([centre - side / 2, centre + side / 2], 1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def iou(a: Float[Tensor, "b 4"], b: Float[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    """Intersection over union of boxes."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    return both / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both)


def iou_of_masks(a: Bool[Tensor, "b h w"], b: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Intersection over union of masks; 1 where both are empty."""
    union = (a | b).flatten(1).sum(1)
    return torch.where(union > 0, (a & b).flatten(1).sum(1) / union.clamp(min=1), 1.0)


def convex_hull(mask: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b h w"]:
    """The pixels whose centres lie in the convex hull of those of each mask.

    An edge of the hull joins two pixels, so a pixel is inside if in no direction perpendicular to such an edge it is
    farther out than all of the mask.
    """
    hulls = torch.zeros_like(mask)
    for one, hull in zip(mask.cpu(), hulls, strict=True):
        seen = one.nonzero()
        if not len(seen):
            continue
        low, high = seen.min(0).values.tolist(), seen.max(0).values.tolist()
        across = _directions(high[0] - low[0], high[1] - low[1])
        out = seen.float() @ across
        box = [torch.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
        points = torch.cartesian_prod(*box).float() @ across
        inside = ((points <= out.max(0).values) & (points >= out.min(0).values)).all(1)
        hull[low[0] : high[0] + 1, low[1] : high[1] + 1] = inside.view(len(box[0]), -1).to(mask.device)
    return hulls


@functools.cache
def _directions(height: int, width: int) -> Float[Tensor, "2 k"]:
    """What is perpendicular to the edges that fit into so many steps down and across, one of each pair of opposites."""
    ways = [
        (float(a), float(b))
        for a, b in itertools.product(range(width + 1), range(-height, height + 1))
        if math.gcd(a, b) == 1
    ]
    return torch.tensor([*ways, (1.0, 0.0), (0.0, 1.0)], dtype=torch.float32).T


def framed(x: Float[Tensor, "b c h w"], boxes: Float[Tensor, "b 4"], value: float) -> Float[Tensor, "b c h w"]:
    """Pictures with a frame of one pixel around each box, rounded to pixels and as far as it is inside the picture."""
    height, width = x.shape[2:]
    left, top, right, bottom = boxes.round().unbind(1)
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)

    def within(place: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return (place >= low[:, None]) & (place < high[:, None])

    outer = within(rows, top - 1, bottom + 1)[:, :, None] & within(columns, left - 1, right + 1)[:, None]
    inner = within(rows, top, bottom)[:, :, None] & within(columns, left, right)[:, None]
    return x.masked_fill((outer & ~inner)[:, None], value)
