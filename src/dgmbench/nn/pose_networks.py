"""Networks that turn a picture into the same thing in another pose: an encoder's pyramid and a decoder that sees it."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.poses import carried, middles


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


class PoseUNet(nn.Module):
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


class LocalPath(nn.Module):
    """A patch around one landmark -> maps of its size: three 3 x 3 convolutions with leaky ReLU."""

    def __init__(self, planes: int, *, channels: int) -> None:
        super().__init__()
        widths = [planes, channels, channels, channels]
        layers = [(nn.Conv2d(a, b, 3, 1, 1), nn.LeakyReLU(0.2)) for a, b in itertools.pairwise(widths)]
        self.net = nn.Sequential(*itertools.chain.from_iterable(layers))

    def forward(self, x: Float[Tensor, "b p n n"]) -> Float[Tensor, "b c n n"]:
        """The maps of the patches x."""
        return self.net(x)


class TwoPaths(nn.Module):
    """Scaled pictures and their landmarks -> pictures in which these are elsewhere, and scores of the identity.

    A U-Net whose coarsest maps pass a code sees the whole; a path for each landmark sees the patch around it, and its
    maps are laid down where the landmark has to be. Their maximum and the U-Net's maps go through two convolutions.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        joints: int,
        classes: int,
        channels: int,
        halvings: int,
        code: int,
        patch: int,
    ) -> None:
        super().__init__()
        planes, size = spec.shape[0], (spec.shape[1], spec.shape[2])
        require_halvings(size, halvings)
        self.patch = patch
        self.down = Pyramid(planes, channels=channels, halvings=halvings)
        coarsest = (self.down.widths[-1], size[0] // 2**halvings, size[1] // 2**halvings)
        flat = coarsest[0] * coarsest[1] * coarsest[2]
        self.code = nn.Linear(flat, code)
        self.scores = nn.Linear(code, classes)
        self.decode = nn.Sequential(nn.Linear(code, flat), nn.LeakyReLU(0.2), nn.Unflatten(1, coarsest))
        self.up = Ascent(self.down.widths, channels, channels=channels)
        self.local = nn.ModuleList(LocalPath(planes, channels=channels) for _ in range(joints))
        self.fused = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, channels, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, planes, 3, 1, 1),
        )
        with torch.no_grad():
            for parameter in self.fused[-1].parameters():
                parameter.mul_(0.1)

    def forward(
        self, x: Float[Tensor, "b c h w"], landmarks: Float[Tensor, "b k 2"], places: Float[Tensor, "k 2"]
    ) -> tuple[Tensor, Tensor]:
        """Pictures (b, c, h, w), unbounded and near zero at first, and scores (b, classes)."""
        maps = self.down(x)
        code = F.leaky_relu(self.code(maps[-1].flatten(1)), 0.2)
        whole = self.up([*maps[:-1], self.decode(code)])
        h, w = x.shape[2:]
        offsets = middles(self.patch, self.patch, x) - self.patch / 2
        pixels, laid = middles(h, w, x), []
        for k, path in enumerate(self.local):
            own = path(carried(x, landmarks[:, k, None, None] + offsets))
            where = pixels - places[k].to(x.dtype) + self.patch / 2
            laid.append(carried(own, where.expand(len(x), -1, -1, -1)))
        return self.fused(torch.cat([whole, torch.stack(laid).amax(0)], 1)), self.scores(code)


class Recogniser(nn.Module):
    """Scaled pictures -> scores of the identity, and the two hidden layers before them.

    4 x 4 convolutions halve the side down to 4 pixels or less, then a linear layer; leaky ReLU.
    """

    def __init__(self, spec: DataSpec, classes: int, *, channels: int) -> None:
        super().__init__()
        halvings = max(1, min(spec.shape[1:]).bit_length() - 3)
        widths = [spec.shape[0], *[channels * 2**k for k in range(halvings)]]
        layers = [(nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)) for a, b in itertools.pairwise(widths)]
        self.trunk = nn.Sequential(*itertools.chain.from_iterable(layers))
        flat = widths[-1] * (spec.shape[1] // 2**halvings) * (spec.shape[2] // 2**halvings)
        self.hidden = nn.Linear(flat, 4 * channels)
        self.scores = nn.Linear(4 * channels, classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Scores (b, classes), and the last two hidden layers."""
        maps = self.trunk(x)
        hidden = F.leaky_relu(self.hidden(maps.flatten(1)), 0.2)
        return self.scores(hidden), (maps, hidden)
