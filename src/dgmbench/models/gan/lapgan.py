"""LAPGAN: a small picture from one generator, then from others what each doubling of its sides has to add.

A Laplacian pyramid (``nn.laplacian_pyramid``) takes an image x_0 = x apart into a small one, x_K, and residuals h_k =
x_k - u(x_(k+1)), where u enlarges. The small image has a GAN of its own; every residual has a conditional one, whose
condition is l_k = u(x_(k+1)), and whose discriminator judges residual + condition, that is the picture at this size:

    D_K maximises  E log D_K(x_K)        + E log(1 - D_K(G_K(z_K)))
    D_k maximises  E log D_k(l_k + h_k)  + E log(1 - D_k(l_k + G_k(z_k, l_k)))      k = K - 1, ..., 0
    G_k minimises  -E log D_k(l_k + G_k(z_k, l_k))     (or the generator's term of another ``loss``)

In training l_k is made of data, so that the games share nothing and run side by side. A sample takes its conditions
from the samples below it: x_K = G_K(z_K), x_k = u(x_(k+1)) + G_k(z_k, u(x_(k+1))).

Shapes and units: raw images x (b, c, h, w), scaled to [-1, 1] (``real`` data pass unchanged); x_k has sides h / 2^k;
z_K (b, latent) and z_k, a plane of the sides of x_k, ~ N(0, I); losses are means over the batch, in nats where D is a
probability. Players are named after the height of the pictures that they work on.

Paper: Denton, Chintala, Szlam, Fergus 2015, https://arxiv.org/abs/1506.05751.

What differs: Gaussian noise in place of uniform; leaky ReLU in place of dropout in the discriminators; residuals start
at zero; all games train at once, where the paper's train one after another, which is the same for each of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.adversarial import MlpDiscriminator, MlpGenerator, joined
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.laplacian_pyramid import doubled, halved
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.truncation import normal_noise


class ResidualGenerator(nn.Module):
    """(plane of noise (b, 1, h, w), condition (b, c, h, w)) -> residual (b, c, h, w): three 5 x 5 convolutions."""

    def __init__(self, images: int, *, channels: int) -> None:
        super().__init__()
        sizes = [images + 1, channels, channels, images]
        self.convs = nn.ModuleList(nn.Conv2d(m, n, 5, padding=2) for m, n in pairwise(sizes))
        nn.init.zeros_(self.convs[-1].weight)  # type: ignore[arg-type]

    def forward(self, z: Float[Tensor, "b 1 h w"], condition: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The residual; nothing bounds it."""
        first, second, last = self.convs
        return last(F.relu(second(F.relu(first(joined(condition, z))))))


class PictureDiscriminator(nn.Module):
    """Pictures (b, c, h, w) -> (b, 1): two 5 x 5 convolutions that halve the sides, and a linear map."""

    def __init__(self, shape: Sequence[int], *, channels: int, bias: bool = True) -> None:
        super().__init__()
        images, height, width = shape
        self.trunk = nn.Sequential(
            nn.Conv2d(images, channels, 5, 2, 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 5, 2, 2),
            nn.LeakyReLU(0.2),
        )
        self.head = nn.Linear(2 * channels * -(-height // 4) * -(-width // 4), 1, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1"]:
        """The output at scaled pictures."""
        return self.head(self.trunk(x).flatten(1))


class LapGan(Model):
    """A Laplacian pyramid of conditional adversarial networks (Denton et al. 2015).

    Args:
        spec: images whose sides can be halved ``levels`` times.
        levels: K, how often the smallest picture is doubled.
        latent: dimensions of the smallest picture's noise.
        hidden_sizes: hidden layers of the smallest picture's generator; its discriminator has them in reverse.
        channels: maps of the residuals' generators, and of their discriminators' first layer.
        loss: an object of ``nn.adversarial_losses`` or its name, the same for all games.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        levels: int = 2,
        latent: int = 100,
        hidden_sizes: Sequence[int] = (1200, 1200),
        channels: int = 64,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec)
        require(least=1, levels=levels, latent=latent, hidden_sizes=hidden_sizes, channels=channels)
        self.adversarial = adversarial_loss(loss)
        if not spec.is_image or any(side % 2**levels for side in spec.shape[1:]):
            raise UserError(
                f"model.levels={levels} takes images whose sides can be halved {levels} time(s), not {spec}; "
                "choose fewer levels or another data.size."
            )
        if self.adversarial.sees_real:
            raise UserError(f"The generators judge samples alone; model.loss={self.adversarial} looks at data too.")
        self.levels, self.latent = levels, latent
        self.scaling = Scaling(spec)
        images, height, width = spec.shape
        self.shapes = [(images, height // 2**k, width // 2**k) for k in reversed(range(levels + 1))]
        self.noise_sizes = [latent, *(h * w for _, h, w in self.shapes[1:])]
        self.noise_dim = sum(self.noise_sizes)
        smallest, sizes, bias = replace(spec, shape=self.shapes[0]), tuple(hidden_sizes), self.adversarial.sees_constant
        self.generators = nn.ModuleList([MlpGenerator(smallest, latent=latent, hidden_sizes=sizes)])
        self.discriminators = nn.ModuleList([MlpDiscriminator(smallest, hidden_sizes=sizes[::-1], bias=bias)])
        for shape in self.shapes[1:]:
            self.generators.append(ResidualGenerator(images, channels=channels))
            self.discriminators.append(PictureDiscriminator(shape, channels=channels, bias=bias))

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Two for every size, from the smallest on: ``discriminator_4``, ``generator_4``, ``discriminator_8``, ..."""
        networks = {"discriminator": self.discriminators, "generator": self.generators}
        return {
            f"{role}_{height}": list(nets[level].parameters())
            for level, (_, height, _) in enumerate(self.shapes)
            for role, nets in networks.items()
        }

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        role, height = player.split("_")
        level = [shape[1] for shape in self.shapes].index(int(height))
        picture, condition = self.real(self.scaling(batch.x), level)
        z = normal_noise(len(picture), self.noise_sizes[level], device=picture.device, generator=generator)
        if role == "generator":
            loss = self.adversarial.generator(self.judged(self.made(level, z, condition), level))
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            made = self.made(level, z, condition)
        real, fake = self.judged(picture, level), self.judged(made, level)
        loss = self.adversarial.discriminator(real, fake)
        return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}

    def real(self, x: Float[Tensor, "b c h w"], level: int) -> tuple[Tensor, Tensor | None]:
        """Scaled images at the size of a level, and their condition: none at the smallest."""
        for _ in range(self.levels - level):
            x = halved(x)
        return x, doubled(halved(x)) if level else None

    def made(self, level: int, z: Float[Tensor, "b n"], condition: Tensor | None) -> Float[Tensor, "b c h w"]:
        """What a level's generator makes of its condition and noise: residual + condition."""
        if condition is None:
            return self.generators[0](z)
        return condition + self.generators[level](z.view(-1, 1, *condition.shape[2:]), condition)

    def judged(self, picture: Float[Tensor, "b c h w"], level: int) -> Float[Tensor, " b"]:
        """A level's discriminator at residual + condition."""
        return self.discriminators[level](picture).squeeze(1)

    def pictures(self, noise: Float[Tensor, "b n"]) -> list[Tensor]:
        """A scaled sample at every size, the smallest first: each is the condition, enlarged, of the next one."""
        smallest, *others = noise.split(self.noise_sizes, 1)
        found = [self.made(0, smallest, None)]
        for level, z in enumerate(others, 1):
            found.append(self.made(level, z, doubled(found[-1])))
        return found

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw images, rounded to the levels once they are whole."""
        if y is not None:
            raise UserError("labels were given, but lapgan has no classes; leave them out.")
        return self.scaling.inverse(self.pictures(self.noise(n, generator))[-1])

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """A sample before rounding, float (b, *shape) on the raw scale, of standard normal noise."""
        return self.scaling.unrounded(self.pictures(noise)[-1])

    @torch.no_grad()
    def growth(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """n samples at every size on their way, raw (n, levels + 1, *shape), the smaller ones with larger pixels."""
        sizes = self.pictures(self.noise(n, generator))
        return torch.stack([self.scaling.inverse(F.interpolate(x, self.spec.shape[1:])) for x in sizes], 1)

    def noise(self, n: int, generator: Generator | None) -> Float[Tensor, "n noise_dim"]:
        """Standard normal noise of n samples, that of all their sizes side by side."""
        return normal_noise(n, self.noise_dim, device=next(self.parameters()).device, generator=generator)
