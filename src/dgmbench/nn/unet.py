"""U-Nets: a pyramid of maps on the way down, and a decoder that sees the maps of every side on its way up.

Convolutions with leaky ReLU and no normalisation, so that the examples of a batch do not depend on each other.

Paper: Ronneberger, Fischer, Brox 2015, https://arxiv.org/abs/1505.04597.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.errors import UserError


class Pyramid(nn.Module):
    """Planes -> maps of every scale, the finest first: 3 x 3 convolutions with leaky ReLU.

    ``halvings`` of them have stride two; the width doubles with each.
    """

    def __init__(self, planes: int, *, channels: int, halvings: int) -> None:
        super().__init__()
        self.widths = [channels * 2**k for k in range(halvings + 1)]
        self.steps = nn.ModuleList([nn.Sequential(nn.Conv2d(planes, channels, 3, 1, 1), nn.LeakyReLU(0.2))])
        for before, after in itertools.pairwise(self.widths):
            layers = (
                nn.Conv2d(before, after, 3, 2, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(after, after, 3, 1, 1),
                nn.LeakyReLU(0.2),
            )
            self.steps.append(nn.Sequential(*layers))

    def forward(self, x: Float[Tensor, "b p h w"]) -> list[Tensor]:
        """The maps (b, width, h / 2^k, w / 2^k) of every scale k."""
        found = []
        for step in self.steps:
            x = step(x)
            found.append(x)
        return found


class Ascent(nn.Module):
    """Maps of every scale, the finest first -> planes: from the coarsest upwards, each next one joined to what came.

    ``widths`` are those of the maps; ``channels`` is the width at the finest scale, doubling with each halving.
    """

    def __init__(self, widths: Sequence[int], planes: int, *, channels: int) -> None:
        super().__init__()
        own = [channels * 2**k for k in range(len(widths))]
        before = widths[-1]
        steps = []
        for width, after in zip(widths[-2::-1], own[-2::-1], strict=True):
            steps.append(nn.Sequential(nn.Conv2d(before + width, after, 3, 1, 1), nn.LeakyReLU(0.2)))
            before = after
        self.steps = nn.ModuleList(steps)
        self.last = nn.Conv2d(before, planes, 3, 1, 1)

    def features(self, maps: Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
        """What the last convolution sees."""
        x = maps[-1]
        for step, skip in zip(self.steps, reversed(maps[:-1]), strict=True):
            x = step(torch.cat([F.interpolate(x, skip.shape[2:], mode="nearest"), skip], 1))
        return x

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "b p h w"]:
        """The planes at the finest scale, unbounded."""
        return self.last(self.features(maps))


class UNet(nn.Module):
    """Planes -> planes through a pyramid and back; with ``bottleneck`` its coarsest maps pass a narrow linear layer.

    Convolutions carry nothing from one end of a picture to the other at once; the linear layer does (Ma et al. 2017).
    """

    def __init__(
        self, planes: int, outputs: int, size: tuple[int, int], *, channels: int, halvings: int, bottleneck: int = 0
    ) -> None:
        super().__init__()
        require_halvings(size, halvings)
        self.down = Pyramid(planes, channels=channels, halvings=halvings)
        self.up = Ascent(self.down.widths, outputs, channels=channels)
        flat = self.down.widths[-1] * (size[0] // 2**halvings) * (size[1] // 2**halvings)
        self.through = (
            nn.Sequential(nn.Flatten(), nn.Linear(flat, bottleneck), nn.LeakyReLU(0.2), nn.Linear(bottleneck, flat))
            if bottleneck
            else None
        )

    def forward(self, x: Float[Tensor, "b p h w"]) -> Float[Tensor, "b q h w"]:
        """The planes that come of x, unbounded."""
        maps = self.down(x)
        if self.through is not None:
            maps[-1] = F.leaky_relu(maps[-1] + self.through(maps[-1]).view_as(maps[-1]), 0.2)
        return self.up(maps)


def require_halvings(size: Sequence[int], halvings: int) -> None:
    """Refuse pictures whose sides cannot be halved so often."""
    if any(side % 2**halvings for side in size):
        raise UserError(
            f"model.halvings={halvings} takes sides that are multiples of {2**halvings}, not {size[0]}x{size[1]}; set "
            "it to less."
        )
