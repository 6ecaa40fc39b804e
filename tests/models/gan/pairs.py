"""A few pairs of ``shapes_poses``, rendered once for all tests of models of poses."""

from functools import lru_cache
from pathlib import Path

import torch

from dgmbench.data.reader import Decoded
from dgmbench.data.shapes_poses import ShapesPoses
from dgmbench.data.spec import Batch
from dgmbench.models.gan.pose_transfer import PoseTransfer


@lru_cache
def _decoded(frontal: bool) -> Decoded:
    return ShapesPoses(frontal=frontal).read(Path())


def pairs(n: int, *, split: str = "train", frontal: bool = False) -> Batch:
    """``n`` pairs of a split, evenly spread over it."""
    part = _decoded(frontal).parts[split]
    rows = torch.linspace(0, len(part.x) - 1, n).long()
    x, y, given = (torch.from_numpy(each)[rows] for each in (part.x, part.y, part.given))
    return Batch(x, y, rows, given)


def assert_better_than_the_source_and_than_black(model: PoseTransfer, held: Batch) -> None:
    """Errors on unseen pairs below those of the source as it is, and of an empty picture, by 4 standard errors."""
    found = model.held_out(held)
    for gain in (-found["target_error_over_copy"], held.x.float().mean((1, 2, 3)) - found["target_error"]):
        assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


PAIRS = _decoded(False).spec
FRONTAL = _decoded(True).spec
