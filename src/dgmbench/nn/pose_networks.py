"""Networks of TP-GAN: a path for the whole picture and one for each landmark, and one that tells identities."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.nn.unet import Ascent, Pyramid, require_halvings
from dgmbench.nn.warping import carried, middles


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
