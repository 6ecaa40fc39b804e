"""What a detector says of a region: whose features it has, which class it is of, and where in it the object is."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.regions import decoded, encoded, iou


class Said(NamedTuple):
    """What is said of n regions."""

    classes: Float[Tensor, "n k"]
    """Scores of the classes."""
    box: Float[Tensor, "n 4"]
    """The object's box relative to the region, as ``regions.encoded``."""


class Perception(nn.Module):
    """Features (n, before) -> class scores and a box: fully connected layers, then a linear map for each."""

    def __init__(self, before: int, classes: int, *, hidden: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(before, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.classes, self.box = nn.Linear(hidden, classes), nn.Linear(hidden, 4)

    def forward(self, features: Float[Tensor, "n before"]) -> Said:
        """What is said of the features."""
        h = self.trunk(features)
        return Said(self.classes(h), self.box(h))


class RegionDiscriminator(nn.Module):
    """Pictures of regions (n, c, side, side) -> an adversarial output each (n,), class scores and a box.

    Pairs of convolutions, the second of which halves the side, then a fully connected layer that all three heads see.
    """

    def __init__(self, before: int, side: int, classes: int, *, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k in range(2):
            for stride in (1, 2):
                layers += [nn.Conv2d(before, channels * 2**k, 3, stride, 1), nn.LeakyReLU(0.2)]
                before, side = channels * 2**k, -(-side // stride)
        layers += [nn.Flatten(), nn.Linear(before * side**2, hidden), nn.LeakyReLU(0.2)]
        self.trunk = nn.Sequential(*layers)
        self.real, self.classes = nn.Linear(hidden, 1, bias=bias), nn.Linear(hidden, classes)
        self.box = nn.Linear(hidden, 4)

    def forward(self, x: Float[Tensor, "n c i j"]) -> tuple[Float[Tensor, " n"], Said]:
        """The three outputs at scaled pictures x."""
        h = self.trunk(x)
        return self.real(h).squeeze(1), Said(self.classes(h), self.box(h))


def class_loss(said: Said, label: Int[Tensor, " n"], counts: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean of -log p(label) over the regions that count; 0 where none does."""
    return mean_where(F.cross_entropy(said.classes, label.clamp(min=0), reduction="none"), counts)


def box_loss(
    said: Said, boxes: Float[Tensor, "n 4"], proposals: Float[Tensor, "n 4"], counts: Bool[Tensor, " n"]
) -> Float[Tensor, ""]:
    """The smooth absolute difference of Fast R-CNN, summed over the four numbers, as a mean over those that count."""
    wanted = torch.where(counts[:, None], boxes, proposals)
    each = F.smooth_l1_loss(said.box, encoded(wanted, proposals), reduction="none").sum(1)
    return mean_where(each, counts)


def mean_where(values: Float[Tensor, " n"], counts: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """The mean over the values that count; 0 where none does."""
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp(min=1)


def right(said: Said, label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 where the largest score is the label's."""
    return (said.classes.argmax(1) == label).float()


def overlap(said: Said, boxes: Float[Tensor, "n 4"], proposals: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Intersection over union of the boxes that are said and the true ones."""
    return iou(decoded(said.box, proposals), boxes)
