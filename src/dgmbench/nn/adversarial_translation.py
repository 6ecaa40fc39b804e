"""Networks that turn images into images: a generator of residual blocks, a discriminator of patches, a pool of images.

The generator is Johnson et al. 2016's with instance normalisation, which both CycleGAN and StarGAN use: down to a
quarter of the side, residual blocks there, and up again. The discriminator of patches is pix2pix's: it gives a map of
outputs, each of which has seen one patch of the image, 70 x 70 pixels of it with three layers of stride two.

Papers: Johnson et al. 2016, https://arxiv.org/abs/1603.08155; Isola et al. 2017, https://arxiv.org/abs/1611.07004;
Zhu et al. 2017, https://arxiv.org/abs/1703.10593; Shrivastava et al. 2017, https://arxiv.org/abs/1612.07828 (the pool).
"""

import itertools

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.nn.adversarial import initialise_dcgan, with_planes

LEAST_SIDE = 4  # that a reflection by 3 pixels fits into; in the residual blocks, which reflect by 1, it is 2


def normed_conv(before: int, after: int, kernel: int, stride: int = 1, *, up: bool = False) -> list[nn.Module]:
    """A convolution that keeps, halves or (``up``) doubles the side, instance norm and ReLU.

    No bias: the norm would remove it.
    """
    if up:
        return [
            nn.ConvTranspose2d(before, after, kernel, stride, kernel // 2, output_padding=1, bias=False),
            nn.InstanceNorm2d(after),
            nn.ReLU(),
        ]
    pad = {"padding": kernel // 2, "padding_mode": "zeros" if stride > 1 else "reflect"}
    return [nn.Conv2d(before, after, kernel, stride, bias=False, **pad), nn.InstanceNorm2d(after), nn.ReLU()]  # type: ignore[arg-type]


class TranslationBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), padded by reflection, nothing after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*normed_conv(channels, channels, 3), *normed_conv(channels, channels, 3)[:-1])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Transform the maps x."""
        return x + self.net(x)


class TranslationGenerator(nn.Module):
    """Scaled images -> scaled images: c7s1-64, d128, d256, R256 x blocks, u128, u64, c7s1-c in CycleGAN's notation.

    That is with two ``halvings`` of the side, as published; the residual blocks work at what is left of it. With
    ``planes`` > 0 it takes so many numbers beside each image as constant planes. Instance norm right after the
    first convolution would remove whatever is constant over an image, so there is none then.
    """

    def __init__(self, spec: DataSpec, *, channels: int, blocks: int, halvings: int, planes: int = 0) -> None:
        super().__init__()
        step, least = 2**halvings, max(LEAST_SIDE, 2 ** (halvings + 1))
        if not spec.is_image or any(side % step or side < least for side in spec.shape[1:]):
            raise UserError(
                f"A translator with {halvings} halvings takes images whose sides are multiples of {step} and at least "
                f"{least}, not {spec}; choose data=images data.size=64 or digits_two_domains, say."
            )
        self.bounded = spec.kind != "real"
        widths = [channels * 2**k for k in range(halvings + 1)]
        stem = normed_conv(spec.shape[0] + planes, channels, 7)
        if planes:
            stem = [nn.Conv2d(spec.shape[0] + planes, channels, 7, padding=3, padding_mode="reflect"), nn.ReLU()]
        self.net = nn.Sequential(
            *stem,
            *[layer for a, b in itertools.pairwise(widths) for layer in normed_conv(a, b, 3, 2)],
            *[TranslationBlock(widths[-1]) for _ in range(blocks)],
            *[layer for a, b in itertools.pairwise(widths[::-1]) for layer in normed_conv(a, b, 3, 2, up=True)],
            nn.Conv2d(channels, spec.shape[0], 7, padding=3, padding_mode="reflect"),
        )
        if not planes:
            initialise_dcgan(self)

    def forward(self, x: Float[Tensor, "b c h w"], planes: Tensor | None = None) -> Float[Tensor, "b c h w"]:
        """The translation of scaled images x, given numbers (b, planes)."""
        y = self.net(with_planes(x, planes))
        return torch.tanh(y) if self.bounded else y


class PatchDiscriminator(nn.Module):
    """Scaled images (b, c, h, w) -> a map of outputs (b, 1, i, j), each of one patch: C64-C128-C256-C512 and one more.

    ``layers`` convolutions halve the side, the width doubling up to eight-fold; two of stride one follow. All have 4 x
    4 kernels and leaky ReLU, and instance norm but in the first and the last.
    """

    def __init__(self, spec: DataSpec, *, channels: int, layers: int) -> None:
        super().__init__()
        side = min(spec.shape[1:])
        for stride in [2] * layers + [1, 1]:
            side = (side + 2 - 4) // stride + 1
        if side < 1:
            raise UserError(
                f"A discriminator of patches with {layers} layers of stride two takes larger images than {spec}; set "
                "model.layers to less, or data.size to more."
            )
        widths = [channels * min(8, 2**k) for k in range(layers + 1)]
        net: list[nn.Module] = [nn.Conv2d(spec.shape[0], channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for k, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            stride = 2 if k < layers else 1
            net += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.InstanceNorm2d(after), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*net, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        initialise_dcgan(self)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b one i j"]:
        """The outputs at scaled images x."""
        return self.net(x)


class DomainDiscriminator(nn.Module):
    """Scaled images -> a map of outputs (b, 1, i, j), and scores of the domains (b, domains).

    4 x 4 convolutions halve the side down to 2 pixels (at most six), the width doubling; leaky ReLU of slope 0.01
    and no normalisation, so that a gradient penalty means something. Each head is one convolution.
    """

    def __init__(self, spec: DataSpec, *, channels: int, domains: int) -> None:
        super().__init__()
        halvings = max(1, min(6, min(spec.shape[1:]).bit_length() - 2))
        widths = [spec.shape[0], *[channels * 2**k for k in range(halvings)]]
        net = [(nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.01)) for a, b in itertools.pairwise(widths)]
        self.trunk = nn.Sequential(*itertools.chain.from_iterable(net))
        left = [side // 2**halvings for side in spec.shape[1:]]
        # a constant added to all outputs changes no Wasserstein distance
        self.outputs = nn.Conv2d(widths[-1], 1, 3, padding=1, bias=False)
        self.scores = nn.Conv2d(widths[-1], domains, (left[0], left[1]), bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Outputs and scores at scaled images x."""
        h = self.trunk(x)
        return self.outputs(h), self.scores(h).flatten(1)


class ImagePool(nn.Module):
    """Generated images of earlier updates, shown to a discriminator in place of half of the new ones.

    Images come one after another. While the pool is not full, each is stored and shown; later, with probability 1/2,
    it takes the place of a stored one, drawn uniformly, which is shown instead. The order of a batch is that of its
    rows, so an image can be shown that was stored a few rows before. ``forward`` changes nothing but keeps what the
    pool is to become, and ``absorb`` takes it up after the step.
    """

    images: Tensor
    stored: Tensor

    def __init__(self, spec: DataSpec, size: int) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *spec.shape))
        self.register_buffer("stored", torch.zeros((), dtype=torch.int64))
        self.next: tuple[Tensor, Tensor] | None = None

    def forward(self, new: Float[Tensor, " b *shape"], generator: Generator) -> Float[Tensor, " b *shape"]:
        """The images to show for new ones."""
        size, stored = len(self.images), int(self.stored)
        draws = torch.rand(len(new), 2, generator=generator, device=new.device).tolist()
        # numbers of rows in what follows one another: the pool's images, then the new ones
        held, shown = list(range(size)), []
        for row, (swapped, place) in enumerate(draws, start=size):
            if stored < size:
                held[stored], stored = row, stored + 1
                shown.append(row)
            elif size and swapped < 0.5:
                slot = int(place * size)
                shown.append(held[slot])
                held[slot] = row
            else:
                shown.append(row)
        every = torch.cat([self.images, new.to(self.images.dtype)])
        self.next = every[held].detach(), torch.full_like(self.stored, stored)
        return every[shown]

    @torch.no_grad()
    def absorb(self) -> None:
        """Become what the last ``forward`` left."""
        if self.next is not None:
            self.images.copy_(self.next[0])
            self.stored.copy_(self.next[1])
            self.next = None
