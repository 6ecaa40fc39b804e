"""A network from pictures to pictures of the same size: down to a smaller side, up again, with skips between equals."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.errors import UserError


class Hourglass(nn.Module):
    """(b, before, h, w) -> (b, after, h, w): pairs of 3 x 3 convolutions, halvings by pooling, doublings by repetition.

    A U-Net (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597): on the way up every side sees the maps of the
    same side on the way down. Leaky ReLU, no normalisation, so that examples of a batch do not depend on each other.
    """

    def __init__(self, before: int, after: int, sides: Sequence[int], *, channels: int, halvings: int) -> None:
        super().__init__()
        if any(side % 2**halvings or side < 2 ** (halvings + 1) for side in sides):
            raise UserError(
                f"model.halvings={halvings} takes pictures whose sides are multiples of {2**halvings}, at least "
                f"{2 ** (halvings + 1)}, not {'x'.join(map(str, sides))}; choose fewer halvings."
            )
        widths = [channels * 2**k for k in range(halvings + 1)]
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip([before, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(
            _pair(wide + narrow, narrow) for narrow, wide in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.top = nn.Conv2d(channels, after, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The values at pictures x, before any nonlinearity."""
        maps: list[Tensor] = []
        for pair in self.down:
            x = pair(F.avg_pool2d(x, 2) if maps else x)
            maps.append(x)
        for pair, same in zip(self.up, maps[-2::-1], strict=True):
            x = pair(torch.cat([F.interpolate(x, scale_factor=2), same], 1))
        return self.top(x)


def _pair(before: int, after: int) -> nn.Sequential:
    """Two 3 x 3 convolutions that keep the side, each followed by leaky ReLU."""
    layers = [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(after, after, 3, padding=1), nn.LeakyReLU(0.2))
