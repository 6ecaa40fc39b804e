"""Networks that see patches alone, small stacks of 3 x 3 convolutions, and the sizes of a picture's pyramid.

``layers`` convolutions without padding see a patch of 2 ``layers`` + 1 pixels at a time, wherever it lies. Pictures are
scaled values (b, c, h, w) of any size.

Paper: Shaham, Dekel, Michaeli 2019, https://arxiv.org/abs/1905.01164.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2


def patch_convolutions(inside: int, outside: int, channels: int, *, layers: int, bias: bool = True) -> nn.Sequential:
    """``layers`` convolutions, leaky ReLU between them, no padding: each side gets 2 ``layers`` pixels shorter."""
    sizes = [inside, *[channels] * (layers - 1), outside]
    found: list[nn.Module] = []
    for number, (m, n) in enumerate(pairwise(sizes), 1):
        conv = nn.Conv2d(m, n, 3, bias=bias or number < layers)
        nn.init.kaiming_normal_(conv.weight, SLOPE if number < layers else 1.0)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        found += [conv, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*found[:-1])


class PatchGenerator(nn.Module):
    """(noise, what is there already) -> below + g(noise + below): zeros are put around the sum once, ``layers`` deep.

    They alone tell the network where the borders are. Where the data are ``bounded``, what is added goes through tanh.
    """

    def __init__(self, images: int, channels: int, *, layers: int, bounded: bool) -> None:
        super().__init__()
        self.layers, self.bounded = layers, bounded
        self.net = patch_convolutions(images, images, channels, layers=layers)

    def forward(self, noise: Float[Tensor, "b c h w"], below: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The picture with its details."""
        added = self.net(F.pad(noise + below, [self.layers] * 4))
        return below + (torch.tanh(added) if self.bounded else added)


class PatchCritic(nn.Module):
    """Pictures (b, c, h, w) -> a map of outputs (b, 1, h - 2 layers, w - 2 layers), one for each patch."""

    def __init__(self, images: int, channels: int, *, layers: int, bias: bool = True) -> None:
        super().__init__()
        self.net = patch_convolutions(images, 1, channels, layers=layers, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 i j"]:
        """The outputs at scaled pictures."""
        return self.net(x)


def pyramid_sizes(whole: Sequence[int], *, smallest: int, ratio: float) -> list[tuple[int, int]]:
    """Heights and widths from the one whose shorter side is ``smallest`` to the whole picture's, smallest first.

    Each scale is as many times as large as the one above, as near to ``ratio`` as a whole number of scales allows.
    """
    height, width = whole
    steps = round(math.log(smallest / min(whole)) / math.log(ratio))
    if smallest < min(whole):
        steps = max(1, steps)
    factor = (smallest / min(whole)) ** (1 / steps) if steps else 1.0
    return [(round(height * factor ** (steps - k)), round(width * factor ** (steps - k))) for k in range(steps + 1)]
