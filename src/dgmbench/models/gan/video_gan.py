"""VideoGAN: videos of a still background and a moving foreground, put together by a mask.

A camera that stands still sees one background in all frames, so the generator makes it once, by convolutions in the
plane, and makes what moves, and where, by convolutions in space and time:

    G(z) = m(z) f(z) + (1 - m(z)) b(z)

    D minimises  its term of a loss of ``nn.adversarial_losses`` at videos and samples
                 + slope_weight / 2 E ||grad a(x)||^2 at videos (R1), if that weight is not 0
    G minimises  its term + mask_weight E m(z), so that what can be background is

with f(z) the foreground (1, t, h, w) in [-1, 1], m(z) the mask in [0, 1] and b(z) (1, 1, h, w) the background, the
same at every t. D is a network of convolutions in space and time.

Shapes and units: raw x (b, t, h w), frames in rows of pixels (``DataSpec.frame``), scaled to [-1, 1] (``real`` data
pass unchanged, and are not squashed); z (b, latent) ~ N(0, I); E m is the mean over t, h, w.

Papers: Vondrick, Pirsiavash, Torralba 2016, https://arxiv.org/abs/1609.02612; Mescheder, Geiger, Nowozin 2018,
https://arxiv.org/abs/1801.04406 (R1).

What differs: any number and size of frames, where the paper's are 32 of 64 x 64: doublings of time, height and width
from 1 / 2^k of the video's, rounded up, cut to size after each. Pixels have one channel. With ``streams=1`` there is
the foreground alone, the paper's one-stream network. The paper's penalty is the sum of the mask, here it is the mean.
R1 is not in the paper, whose discriminator has batch-norm instead; with R1 it has none, which would mix the examples.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss, slope_penalty
from dgmbench.nn.batchnorm import BatchNorm, absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling


class Stream(nn.Module):
    """z -> maps (b, outputs, *sizes): a linear map to the smallest, then transposed convolutions that double all sides.

    Two sizes are a picture's, three a video's. Batch-norm and ReLU after all but the last.
    """

    def __init__(self, latent: int, sizes: Sequence[int], *, channels: int, outputs: int, doublings: int) -> None:
        super().__init__()
        conv = nn.ConvTranspose3d if len(sizes) == 3 else nn.ConvTranspose2d
        self.sizes = [halved(sizes, k) for k in reversed(range(doublings + 1))]
        widths = [channels * 2**k for k in reversed(range(doublings))]
        self.project = nn.Linear(latent, widths[0] * int(torch.tensor(self.sizes[0]).prod()), bias=False)
        self.norms = nn.ModuleList([BatchNorm(width) for width in widths])
        self.convs = nn.ModuleList(
            [conv(a, b, 4, 2, 1, bias=b == outputs) for a, b in itertools.pairwise([*widths, outputs])]
        )

    def forward(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b outputs ..."]:
        """The maps."""
        h = self.project(z).unflatten(1, (-1, *self.sizes[0]))
        for norm, conv, size in zip(self.norms, self.convs, self.sizes[1:], strict=True):
            h = conv(F.relu(norm(h)))[(..., *(slice(n) for n in size))]
        return h


class VideoGenerator(nn.Module):
    """z -> scaled videos (b, t, h, w)."""

    def __init__(
        self, latent: int, sizes: Sequence[int], *, channels: int, doublings: int, streams: int, bounded: bool
    ) -> None:
        super().__init__()
        self.bounded = bounded
        self.moving = Stream(latent, sizes, channels=channels, outputs=streams, doublings=doublings)
        if streams == 2:
            self.still = Stream(latent, sizes[1:], channels=channels, outputs=1, doublings=doublings)

    def forward(self, z: Float[Tensor, "b z"]) -> tuple[Float[Tensor, "b t h w"], Float[Tensor, "b t h w"] | None]:
        """The videos, and their masks if there are two streams."""
        moving = self.moving(z)
        front = self.squashed(moving[:, 0])
        if moving.shape[1] == 1:
            return front, None
        mask, back = torch.sigmoid(moving[:, 1]), self.squashed(self.still(z))
        return composed(mask, front, back), mask

    def squashed(self, x: Tensor) -> Tensor:
        """Into [-1, 1] where the data are."""
        return torch.tanh(x) if self.bounded else x


class VideoDiscriminator(nn.Module):
    """Scaled videos (b, t, h, w) -> a (b,): convolutions that halve all sides.

    With ``norm``, batch-norm in all but the first layer.
    """

    def __init__(self, sizes: Sequence[int], *, channels: int, halvings: int, norm: bool, bias: bool) -> None:
        super().__init__()
        widths = [channels * 2**k for k in range(halvings)]
        layers: list[nn.Module] = [nn.Conv3d(1, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in itertools.pairwise(widths):
            layers.append(nn.Conv3d(before, after, 4, 2, 1, bias=not norm))
            layers += [BatchNorm(after), nn.LeakyReLU(0.2)] if norm else [nn.LeakyReLU(0.2)]
        time, height, width = (size // 2**halvings for size in sizes)
        self.net = nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, (time, height, width), bias=bias))

    def forward(self, x: Float[Tensor, "b t h w"]) -> Float[Tensor, " b"]:
        """The outputs, before any sigmoid."""
        return self.net(x[:, None]).flatten()


class VideoGan(Model):
    """Videos of two streams against a discriminator of convolutions in space and time (Vondrick et al. 2016).

    Args:
        spec: the data's space, sequences of frames.
        latent: dimensions of the noise z.
        channels: maps in the widest-resolution layers, doubling with each halving.
        doublings: how often time, height and width are doubled, and halved by the discriminator.
        streams: 2, foreground and background, or 1, without a mask.
        mask_weight: weight of the mask's mean.
        slope_weight: gamma, the weight of R1; above 0, the discriminator has no batch-norm.
        loss: an object of ``nn.adversarial_losses`` or its name.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 100,
        channels: int = 64,
        doublings: int = 4,
        streams: Literal[1, 2] = 2,
        mask_weight: float = 0.1,
        slope_weight: float = 0.0,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec)
        require(least=1, latent=latent, channels=channels, doublings=doublings)
        require(least=0, mask_weight=mask_weight, slope_weight=slope_weight)
        if spec.frame is None or len(spec.shape) != 2:
            raise UserError(
                f"video_gan takes videos, sequences of frames, not {spec}; choose data=bouncing_balls, say."
            )
        sizes = (spec.shape[0], *spec.frame)
        if spec.shape[0] < 2:
            raise UserError("video_gan takes videos of at least two frames, and these have 1: nothing moves in them.")
        if min(sizes) < 2**doublings:
            raise UserError(
                f"model.doublings={doublings} leaves nothing of videos of {sizes[0]} frames of {sizes[1]}x{sizes[2]}: "
                f"no side may be below {2**doublings}."
            )
        self.sizes, self.latent, self.mask_weight, self.slope_weight = sizes, latent, mask_weight, slope_weight
        self.adversarial, self.scaling = adversarial_loss(loss), Scaling(spec)
        self.noise_dim = latent
        self.generator = VideoGenerator(
            latent, sizes, channels=channels, doublings=doublings, streams=streams, bounded=self.scaling.bounded
        )
        self.discriminator = VideoDiscriminator(
            sizes, channels=channels, halvings=doublings, norm=not slope_weight, bias=self.adversarial.sees_constant
        )

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two networks."""
        return {name: list(getattr(self, name).parameters()) for name in ("discriminator", "generator")}

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        z = torch.randn(len(batch.x), self.latent, device=batch.x.device, generator=generator)
        data = self.scaling(batch.x).unflatten(2, self.sizes[1:])
        if player == "generator":
            with statistics_of(self.generator):
                videos, mask = self.generator(z)
            fake, real = self.discriminator(videos), None
            if self.adversarial.sees_real:
                with torch.no_grad():
                    real = self.discriminator(data)
            loss = game = self.adversarial.generator(fake, real)
            logs = {"game": game.detach()}
            if mask is not None:
                loss = game + self.mask_weight * mask.mean()
                logs["mask"] = mask.mean().detach()
            return loss, {"loss": loss.detach(), **logs}
        with torch.no_grad():
            videos, _ = self.generator(z)
        fake = self.discriminator(videos)
        with statistics_of(self.discriminator):
            real = self.discriminator(data)
        loss = game = self.adversarial.discriminator(real, fake)
        if self.slope_weight:
            loss = game + self.slope_weight / 2 * slope_penalty(self.discriminator, data).mean()
        logs = {"loss": loss, "game": game, "real": real.mean(), "fake": fake.mean()}
        return loss, {name: value.detach() for name, value in logs.items()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw videos (n, t, h w), rounded to the levels."""
        z = torch.randn(n, self.latent, device=next(self.parameters()).device, generator=generator)
        return self.scaling.inverse(self.generator(z)[0].flatten(2))

    def generate(self, noise: Float[Tensor, "b z"]) -> Tensor:
        """G(z) before rounding, float (b, t, h w) on the raw scale."""
        return self.scaling.unrounded(self.generator(noise)[0].flatten(2))


def composed(
    mask: Float[Tensor, "b t h w"], front: Float[Tensor, "b t h w"], back: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b t h w"]:
    """m f + (1 - m) b, the background the same in every frame."""
    return mask * front + (1 - mask) * back


def halved(sizes: Sequence[int], times: int) -> list[int]:
    """Sides that, doubled so many times and cut, give these."""
    return [-(-size // 2**times) for size in sizes]
