"""Residual networks with self-attention for conditional adversarial models of images, plain or with bottlenecks.

The generator takes latents z (b, latent) for its first layer and a condition of every block (b, condition), for the
scale and shift of its batch-norm. The discriminator gives the features phi (b, f) and the head psi that a
``ProjectionDiscriminator`` joins. Widths by side are those of Brock et al. 2019, in multiples of ``channels``:

    side           generator, from the base of 4 or 7 pixels up     discriminator: the same in reverse, from the image
    16, 28         4 4 4                                            at 16 and 32 pixels down to 8, at 28 and 56 to 7,
    32, 56         4 4 4 4                                          at more down to the base
    64, 112        16 16 8 4 2
    128, 224       16 16 8 4 2 1
    256            16 16 8 8 4 2 1

With ``bottlenecks`` (BigGAN-deep) there are so many of them to a side, two as published, in place of a plain block.
``attention`` is the side of the maps after which self-attention stands, 0 for none.

Papers: Zhang et al. 2019, https://arxiv.org/abs/1805.08318; Brock et al. 2019, https://arxiv.org/abs/1809.11096
(appendix B, tables 4-9; those of 32 pixels are from the authors' code).
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial import ResidualBlock, base_and_doublings, batch_norm, through
from dgmbench.nn.attention import SelfAttention

WIDTHS = {
    2: (4, 4, 4),
    3: (4, 4, 4, 4),
    4: (16, 16, 8, 4, 2),
    5: (16, 16, 8, 4, 2, 1),
    6: (16, 16, 8, 8, 4, 2, 1),
}
"""Channels at every side of the generator, from the base up, in multiples of ``channels``, by the doublings."""


class Bottleneck(nn.Module):
    """Pre-activation block of BigGAN-deep: convolutions 1x1, 3x3, 3x3, 1x1 through a quarter of the channels.

    The skip connection has no weights where it need not: it drops the channels that are too many, and appends those
    that are missing by a 1x1 convolution. Up-sampling comes before the first 3x3 convolution, averaging before the
    last one of 1x1.
    """

    def __init__(
        self,
        before: int,
        after: int,
        *,
        resample: Literal["up", "down", "none"] = "none",
        norm: bool = False,
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.resample, self.kept = resample, min(before, after)
        inner = max(2, max(before, after) // 4)
        sizes = [before, inner, inner, inner, after]
        self.norms = nn.ModuleList(batch_norm(n, condition) if norm else nn.Identity() for n in sizes[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(m, n, k, padding=k // 2, bias=not norm)
            for (m, n), k in zip(itertools.pairwise(sizes), (1, 3, 3, 1), strict=True)
        )
        self.extra = nn.Conv2d(before, after - before, 1) if after > before else None

    def forward(self, x: Float[Tensor, "b c h w"], condition: Tensor | None = None) -> Float[Tensor, "b d i j"]:
        """Transform the maps x, given the condition (b, condition) of a conditional batch-norm."""
        h = x
        for k, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = F.relu(through([norm], h, condition))
            if self.resample == "up" and k == 1:
                h = F.interpolate(h, scale_factor=2.0)
            if self.resample == "down" and k == 3:
                h = F.avg_pool2d(h, 2)
            h = conv(h)
        x = F.avg_pool2d(x, 2) if self.resample == "down" else x
        skip = x[:, : self.kept] if self.extra is None else torch.cat([x, self.extra(x)], 1)
        return h + (F.interpolate(skip, scale_factor=2.0) if self.resample == "up" else skip)


Block = ResidualBlock | Bottleneck


class AttentiveGenerator(nn.Module):
    """(z, condition) -> images: a linear map to the base, residual blocks that double the side, batch-norm, tanh.

    ``conditioned`` counts the blocks. Of bottlenecks the last one of a side doubles it.
    """

    def __init__(
        self, spec: DataSpec, *, latent: int, condition: int, channels: int, attention: int, bottlenecks: int = 0
    ) -> None:
        super().__init__()
        self.base, doublings = base_and_doublings(spec, "resnet")
        widths = [multiple * channels for multiple in widths_of(spec)]
        self.bounded = spec.kind != "real"
        self.project = nn.Linear(latent, widths[0] * self.base**2)
        self.blocks = nn.ModuleList()
        self.attended: int | None = None
        for k, (before, after) in enumerate(itertools.pairwise(widths)):
            for _ in range(bottlenecks - 1):
                self.blocks.append(Bottleneck(before, before, norm=True, condition=condition))
            kind = Bottleneck if bottlenecks else ResidualBlock
            self.blocks.append(kind(before, after, resample="up", norm=True, condition=condition))
            if self.base * 2 ** (k + 1) == attention:
                self.attended, self.attention = len(self.blocks) - 1, SelfAttention(after)
        if attention and self.attended is None:
            sides = [self.base * 2**k for k in range(1, doublings + 1)]
            raise UserError(f"model.attention={attention} must be one of {sides}, the sides of the generator's maps.")
        self.conditioned = len(self.blocks)
        self.norm = batch_norm(widths[-1], 0)
        self.last = nn.Conv2d(widths[-1], spec.shape[0], 3, padding=1)

    def forward(self, z: Float[Tensor, "b latent"], condition: Tensor | Sequence[Tensor]) -> Float[Tensor, "b c h w"]:
        """Scaled images at latents z, with a condition (b, condition) for all blocks, or one for each."""
        conditions = [condition] * self.conditioned if isinstance(condition, Tensor) else condition
        h = self.project(z).unflatten(1, (-1, self.base, self.base))
        for k, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True)):
            h = block(h, condition)
            h = self.attention(h) if k == self.attended else h
        x = self.last(F.relu(self.norm(h)))
        return torch.tanh(x) if self.bounded else x


class AttentiveDiscriminator(nn.Module):
    """Images -> features: residual blocks that halve the side, self-attention, the sum over the positions, a head."""

    def __init__(
        self, spec: DataSpec, *, channels: int, attention: int, bottlenecks: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        base, doublings = base_and_doublings(spec, "resnet")
        widths = [multiple * channels for multiple in reversed(widths_of(spec))]
        halvings = doublings if base == 7 or doublings > 3 else doublings - 1
        layers: list[nn.Module] = []
        side, attended = spec.shape[1], False
        if bottlenecks:
            layers.append(nn.Conv2d(spec.shape[0], widths[0], 3, padding=1))
        for before, after in itertools.pairwise(widths if bottlenecks else [spec.shape[0], *widths]):
            down: Literal["down", "none"] = "down" if side > spec.shape[1] // 2**halvings else "none"
            side = side // 2 if down == "down" else side
            if bottlenecks:
                layers.append(Bottleneck(before, after, resample=down))
                layers += [Bottleneck(after, after) for _ in range(bottlenecks - 1)]
            else:
                layers.append(ResidualBlock(before, after, resample=down, activate=bool(layers)))
            if side == attention and not attended:
                layers.append(SelfAttention(after))
                attended = True
        if attention and not attended:
            sides = [spec.shape[1] // 2**k for k in range(1, halvings + 1)]
            raise UserError(
                f"model.attention={attention} must be one of {sides}, the sides of the discriminator's maps."
            )
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 1, bias=bias)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """The last hidden layer: one number a channel, summed over the positions."""
        return F.relu(self.trunk(x)).sum((2, 3))

    def outputs(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b 1"]:
        """The output at features, without a label."""
        return self.head(features)


def widths_of(spec: DataSpec) -> tuple[int, ...]:
    """Channels at every side of the generator in multiples of ``channels``, or say that the images are too large."""
    _, doublings = base_and_doublings(spec, "resnet")
    if doublings not in WIDTHS:
        raise UserError(f"These networks take images of up to 256 pixels, not {spec}; make them smaller.")
    return WIDTHS[doublings]
