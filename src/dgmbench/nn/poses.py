"""Poses as joints and bones: reading them from heat maps, masks of a pose, and moving feature maps part by part.

Points are (across, down) in pixels (``nn.warping``).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.warping import carried, middles

TINY = 1e-30


class Posed(NamedTuple):
    """What is given of a picture in another pose."""

    picture: Float[Tensor, "b c h w"]
    """The source, scaled to [-1, 1]."""
    source: Float[Tensor, "b k h w"]
    """A heat map of each joint in the source."""
    target: Float[Tensor, "b k h w"]
    """The same in the target."""


class PoseCondition(nn.Module):
    """Raw conditions (b, c + 2 k, h, w), the source's picture and the heat maps of both poses, taken apart.

    ``joints`` is k, ``bones`` are the pairs of joints that are joined.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        given = spec.given
        more = 0 if given is None or not given.is_image else given.shape[0] - spec.shape[0]
        fits = given is not None and spec.is_image and spec.shape[1:] == given.shape[1:] and min(spec.shape[1:]) >= 3
        if not fits or more < 4 or more % 2:
            raise UserError(
                "A model of poses takes images and what is given of each: a picture of its size and as many heat maps "
                f"of joints for the one pose as for the other, at least two, not {spec}; choose data=shapes_poses."
            )
        assert given is not None
        self.channels, self.joints = spec.shape[0], more // 2
        self.bones = given.bones or ()
        if not self.bones or any(not 0 <= joint < self.joints for bone in self.bones for joint in bone):
            raise UserError(
                f"A model of poses needs to know which of the {self.joints} joints are joined, and the bones of these "
                f"data are {self.bones or 'none'}; give spec.given its bones, pairs of numbers below {self.joints}."
            )
        self.scaling = Scaling(spec)

    def forward(self, given: Tensor | None) -> Posed:
        """The parts of what is given."""
        if given is None:
            raise UserError("A model of poses needs a condition with every picture: name it, given=(b, *given shape).")
        picture, source, target = given.split([self.channels, self.joints, self.joints], 1)
        return Posed(self.scaling(picture), source.to(picture.dtype), target.to(picture.dtype))


def located(maps: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k 2"]:
    """The middle of the Gaussian bump in each map, to a fraction of a pixel.

    The logarithm of a Gaussian is a parabola, and three of its values along a row or a column give its top.
    """
    h, w = maps.shape[2:]
    top = maps.flatten(2).argmax(2)
    row, column = (top // w).clamp(1, h - 2), (top % w).clamp(1, w - 2)
    logs, found = maps.clamp_min(TINY).log().flatten(2), []
    for at, step in ((column, 1), (row, w)):
        place = row * w + column
        before, here, after = (logs.gather(2, (place + k * step)[..., None])[..., 0] for k in (-1, 0, 1))
        bend = (2 * here - before - after).clamp_min(1e-3)
        found.append(at + 0.5 + ((after - before) / (2 * bend)).clamp(-2, 2))
    return torch.stack(found, 2)


def pose_mask(
    points: Float[Tensor, "b k 2"], bones: tuple[tuple[int, int], ...], size: tuple[int, int], radius: float
) -> Float[Tensor, "b one h w"]:
    """1 at the pixels within ``radius`` of a bone, 0 elsewhere: the bones drawn as thick strokes with round ends."""
    pixels = middles(*size, points)
    start, end = (points[:, [bone[side] for bone in bones], None, None] for side in (0, 1))
    along = end - start
    share = ((pixels - start) * along).sum(-1) / along.square().sum(-1).clamp_min(1e-6)
    away = (pixels - start - share.clamp(0, 1)[..., None] * along).norm(dim=-1)
    return (away <= radius).any(1, keepdim=True).to(points.dtype)


class Rectangles(NamedTuple):
    """A rectangle around each bone: its middle, and the vectors from there to the middle of two of its sides."""

    middle: Float[Tensor, "b l 2"]
    along: Float[Tensor, "b l 2"]
    across: Float[Tensor, "b l 2"]


def rectangles(points: Float[Tensor, "b k 2"], bones: tuple[tuple[int, int], ...], width: float) -> Rectangles:
    """Rectangles ``width`` mean lengths of a bone wide, which reach half as far beyond both joints."""
    start, end = (points[:, [bone[side] for bone in bones]] for side in (0, 1))
    length = (end - start).norm(dim=2, keepdim=True)
    right = torch.zeros_like(start)
    right[..., 0] = 1
    unit = torch.where(length > 1e-3, (end - start) / length.clamp_min(1e-3), right)  # of a bone without a length
    half = (width / 2 * length.mean(1, keepdim=True)).clamp_min(0.5)
    return Rectangles(
        (start + end) / 2, (length / 2 + half) * unit, half * torch.stack([-unit[..., 1], unit[..., 0]], 2)
    )


def places_in(rectangle: Rectangles, pixels: Float[Tensor, "h w 2"]) -> Float[Tensor, "b l h w 2"]:
    """Coordinates of pixels along and across each rectangle, which has -1 to 1 inside."""
    away = pixels - rectangle.middle[:, :, None, None]
    return torch.stack(
        [
            (away * side[:, :, None, None]).sum(-1) / side.square().sum(-1)[:, :, None, None]
            for side in (rectangle.along, rectangle.across)
        ],
        -1,
    )


def inside(rectangle: Rectangles, size: tuple[int, int]) -> Float[Tensor, "b l h w"]:
    """1 at the pixels whose middle lies in each rectangle, 0 elsewhere."""
    places = places_in(rectangle, middles(*size, rectangle.middle))
    return (places.abs() <= 1).all(-1).to(places.dtype)


def deformed(
    maps: Float[Tensor, "b c h w"], source: Rectangles, target: Rectangles, masks: Float[Tensor, "b l h w"]
) -> Float[Tensor, "b c h w"]:
    """Maps of the source's pose in the target's: each part moves by the affine map of its rectangles, the largest wins.

    A part is what a mask shows of the maps, which are not negative; what none shows stays where it is.
    """
    pixels = middles(maps.shape[2], maps.shape[3], maps)
    along, across = places_in(target, pixels).unbind(-1)
    whence = source.middle[:, :, None, None] + along[..., None] * source.along[:, :, None, None]
    whence = whence + across[..., None] * source.across[:, :, None, None]
    parts = maps[:, None] * masks[:, :, None]
    moved = carried(parts.flatten(0, 1), whence.flatten(0, 1)).unflatten(0, (len(maps), -1))
    rest = maps * (1 - masks.amax(1))[:, None]
    return torch.cat([moved, rest[:, None]], 1).amax(1)


def rescaled(rectangle: Rectangles, scale: float) -> Rectangles:
    """The rectangles in a picture ``scale`` times as large."""
    return Rectangles(*(each * scale for each in rectangle))


def nearest_neighbour_loss(
    ours: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"], window: int
) -> Float[Tensor, " b"]:
    """Sum over places of the smallest difference of our patch there to one of x in the window around the place.

    Patches have 3 x 3 pixels (the border is repeated), their difference is the sum of absolute differences.
    """
    a, b = (F.unfold(F.pad(each, [1] * 4, mode="replicate"), 3).view(len(x), -1, *x.shape[2:]) for each in (ours, x))
    reach, (h, w) = window // 2, (x.shape[2], x.shape[3])
    b = F.pad(b, [reach] * 4, value=torch.inf)
    shifts = [(down, across) for down in range(2 * reach + 1) for across in range(2 * reach + 1)]
    each = [(a - b[:, :, down : down + h, across : across + w]).abs().sum(1) for down, across in shifts]
    return torch.stack(each).amin(0).flatten(1).sum(1)
