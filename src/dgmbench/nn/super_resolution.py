"""Networks of super-resolution: generators that enlarge, a discriminator, and feature maps to compare pictures on.

Small pictures (b, c, h, w) become large ones (b, c, scale h, scale w); all are scaled values. The generators are fully
convolutional: they take pictures of any size.

Papers: Ledig et al. 2017, https://arxiv.org/abs/1609.04802; Wang et al. 2018, https://arxiv.org/abs/1809.00219;
Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556 (the feature net).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.batchnorm import BatchNorm

VGG19 = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))
"""Convolutions between two poolings, by their channels."""


def resized(x: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c i j"]:
    """Pictures in another size by bicubic interpolation, with a low-pass filter where they get smaller.

    Cubic convolution with a = -1/2 (Keys 1981), as the tools do that published numbers were made with.
    """
    return F.interpolate(x.float(), tuple(size), mode="bicubic", antialias=True, align_corners=False)


class SrBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x))))), without bias in front of a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)]
        self.net = nn.Sequential(conv[0], BatchNorm(channels), nn.PReLU(), conv[1], BatchNorm(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Transform the maps x."""
        return x + self.net(x)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all maps before it; a fifth of what the last one says is added to x."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + k * growth, growth if k < 4 else channels, 3, padding=1) for k in range(5)
        )
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data *= 0.1  # small steps at the start, as published
            nn.init.zeros_(conv.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Transform the maps x."""
        maps = [x]
        for conv in self.convs[:-1]:
            maps.append(F.leaky_relu(conv(torch.cat(maps, 1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(maps, 1))


class Rrdb(nn.Module):
    """A residual block of three dense blocks, of whose change a fifth is taken."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*[DenseBlock(channels, growth) for _ in range(3)])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Transform the maps x."""
        return x + 0.2 * (self.net(x) - x)


class Enlarger(nn.Module):
    """A first convolution, residual blocks within one long skip, doublings, a last convolution.

    ``srresnet`` (Ledig et al. 2017): batch-norm and PReLU, doubling by pixel shuffle, 9 x 9 kernels at both ends.
    ``rrdb`` (Wang et al. 2018): dense blocks without norm, doubling by repetition and a convolution. With ``bicubic``
    the output is added to the bicubic enlargement and starts at zero; it is then a function of the picture less the
    mean of each channel, so that colours that it has never seen are left as they are.
    """

    def __init__(
        self, spec: DataSpec, *, rrdb: bool, channels: int, blocks: int, growth: int, scale: int, bicubic: bool
    ) -> None:
        super().__init__()
        colours, ends, doublings = spec.shape[0], 3 if rrdb else 9, scale.bit_length() - 1
        self.scale, self.bicubic = scale, bicubic
        first = nn.Conv2d(colours, channels, ends, padding=ends // 2)
        self.first = first if rrdb else nn.Sequential(first, nn.PReLU())
        inside = nn.Conv2d(channels, channels, 3, padding=1, bias=rrdb)
        if rrdb:
            self.body = nn.Sequential(*[Rrdb(channels, growth) for _ in range(blocks)], inside)
            up: list[nn.Module] = [
                layer
                for _ in range(doublings)
                for layer in (
                    nn.Upsample(scale_factor=2),
                    nn.Conv2d(channels, channels, 3, padding=1),
                    nn.LeakyReLU(0.2),
                )
            ]
            up += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2)]
        else:
            self.body = nn.Sequential(*[SrBlock(channels) for _ in range(blocks)], inside, BatchNorm(channels))
            up = [
                layer
                for _ in range(doublings)
                for layer in (nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
            ]
        last = nn.Conv2d(channels, colours, ends, padding=ends // 2)
        if bicubic:
            nn.init.zeros_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        self.last = nn.Sequential(*up, last)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """The scaled picture, ``scale`` times as large."""
        h = self.first(x - x.mean((2, 3), keepdim=True) if self.bicubic else x)
        y = self.last(h + self.body(h))
        return y + resized(x, y.shape[2:]) if self.bicubic else y


class SrDiscriminator(nn.Module):
    """Scaled pictures (b, c, side, side) -> one output each (b,): pairs of 3 x 3 convolutions, the second halves.

    Leaky ReLU, batch-norm in all but the first, widths doubling up to eight-fold; four halvings as published, fewer for
    sides below 32; then two fully connected layers.
    """

    def __init__(self, spec: DataSpec, *, channels: int, bias: bool) -> None:
        super().__init__()
        before = spec.shape[0]
        halvings = max(1, min(4, int(math.log2(min(spec.shape[1:]))) - 1))
        net: list[nn.Module] = []
        for k in range(halvings):
            for stride in (1, 2):
                after = channels * 2**k
                net.append(nn.Conv2d(before, after, 3, stride, 1, bias=not net))
                net += ([BatchNorm(after)] if len(net) > 1 else []) + [nn.LeakyReLU(0.2)]
                before = after
        rest = [(side + 2**halvings - 1) // 2**halvings for side in spec.shape[1:]]
        wide = 16 * channels
        net += [nn.Flatten(), nn.Linear(before * rest[0] * rest[1], wide), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*net, nn.Linear(wide, 1, bias=bias))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The outputs at scaled pictures x."""
        return self.net(x).squeeze(1)


class FeatureMaps(nn.Module):
    """The maps of VGG19's last convolution, conv5_4, before or after its ReLU, of scaled pictures of 1 or 3 channels.

    ``weights`` is a file of the network's weights as torchvision publishes them (``vgg19-dcbb9e9d.pth``). Without one
    it is a smaller network of random weights, always the same: two convolutions of 32, two of 64 maps and a pooling
    between them, whose maps still tell edges and textures from what is smooth. Nothing here is ever trained.
    """

    def __init__(self, *, weights: str | None, activated: bool) -> None:
        super().__init__()
        groups = VGG19 if weights else ((32, 32), (64, 64))
        self.activated, self.groups = activated, [len(group) for group in groups]
        self.vgg = weights is not None
        stored = self._read(weights) if weights else None
        generator, before, place = torch.Generator().manual_seed(0), 3, 0
        for number, width in enumerate(width for group in groups for width in group):
            if stored is None:
                weight = torch.randn(width, before, 3, 3, generator=generator) * math.sqrt(2 / (9 * before))
                bias = torch.zeros(width)
            else:
                place = sorted(int(key.split(".")[1]) for key in stored if key.endswith("weight"))[number]
                weight, bias = stored[f"features.{place}.weight"], stored[f"features.{place}.bias"]
            self.register_buffer(f"weight_{number}", weight, persistent=stored is None)
            self.register_buffer(f"bias_{number}", bias, persistent=stored is None)
            before = width

    @staticmethod
    def _read(weights: str) -> dict[str, Tensor]:
        """The convolutions of torchvision's VGG19."""
        if not Path(weights).is_file():
            raise UserError(f"model.features={weights} is no file; give torchvision's vgg19 weights, or leave it out.")
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        found = {key: value for key, value in stored.items() if key.startswith("features.")}
        if len(found) != 2 * sum(map(len, VGG19)):
            raise UserError(f"model.features={weights} does not hold the 16 convolutions of VGG19 (features.N.weight).")
        return found

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f i j"]:
        """The maps at pictures scaled to [-1, 1]."""
        x = x.expand(-1, 3, -1, -1)
        if self.vgg:  # which was trained on [0, 1] less these means
            mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
            x = ((x + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        number, last = 0, sum(self.groups) - 1
        for group, count in enumerate(self.groups):
            x = F.max_pool2d(x, 2) if group else x
            for _ in range(count):
                x = F.conv2d(x, getattr(self, f"weight_{number}"), getattr(self, f"bias_{number}"), padding=1)
                x = F.relu(x) if self.activated or number < last else x
                number += 1
        return x
