"""PGGAN: a generator and a critic that grow together, from 4 x 4 pixels to the size of the data.

What is large in a picture is learned first, by small networks at low cost; layers for details are added one side after
another, and fade in so as not to upset what is there (``models.gan.growing``, ``nn.adversarial_growing``). The game is
the Wasserstein one with a gradient penalty, and keeps the critic's outputs from drifting away from zero:

    critic minimises     E a(G(z)) - E a(x) + penalty_weight E (||grad a(x_hat)|| - 1)^2 + drift E a(x)^2
    generator minimises  -E a(G(z))

one step each in turn, x_hat between data and samples. Weights are scaled whenever they are used (``nn.equalised``); the
generator's maps have a mean square of 1 at every pixel; the critic sees how much the pictures of a group differ.

Shapes and units: raw images x (b, c, side, side), scaled to [-1, 1] (``real`` data pass unchanged); z (b, latent) is on
the sphere of radius sqrt(latent); losses are means over the batch, on the scale of the critic's outputs. Before the
networks are full-grown, samples have larger pixels.

Paper: Karras, Aila, Laine, Lehtinen 2018, https://arxiv.org/abs/1710.10196.

What differs: Adam goes on at a new side, where the paper's implementation starts it anew. The averaged generator of the
paper is a setting of the trainer (``trainer.ema``).
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.gan.growing import GrowingGan
from dgmbench.nn.adversarial_growing import GrowingGenerator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, gradient_penalty
from dgmbench.nn.truncation import normal_noise


class PgGan(GrowingGan):
    """Progressive growing (Karras et al. 2018).

    Args:
        spec: square images with a side of 4 or 7 times a power of two.
        latent: dimensions of the noise z.
        channels: the most maps that a layer has.
        capacity: maps times side: at side s a layer has ``capacity`` / s maps, but no more than ``channels``.
        start: the side that training starts with; the smallest one by default.
        pace: how many times the share of the side before it each side has of the budget.
        group: examples whose difference from each other the critic sees.
        loss: an object of ``nn.adversarial_losses`` or its name.
        penalty_weight: weight of the gradient penalty, lambda.
        drift: weight of the critic's squared outputs at data.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 512,
        channels: int = 512,
        capacity: int = 16384,
        start: int | None = None,
        pace: float = 1.0,
        group: int = 4,
        loss: AdversarialLossName | AdversarialLoss = "wasserstein",
        penalty_weight: float = 10.0,
        drift: float = 0.001,
    ) -> None:
        super().__init__(spec, channels=channels, capacity=capacity, start=start, pace=pace, group=group, loss=loss)
        require(least=1, latent=latent)
        require(least=0, penalty_weight=penalty_weight, drift=drift)
        self.latent = self.noise_dim = latent
        self.penalty_weight, self.drift = penalty_weight, drift
        self.generator = GrowingGenerator(spec.shape[0], self.sides, self.maps, latent=latent)

    def drawn(self, n: int, generator: Generator | None) -> Float[Tensor, "n c h w"]:
        """n scaled images G(z) at the side of now."""
        device = next(self.parameters()).device
        return self.images(normal_noise(n, self.latent, device=device, generator=generator))

    def images(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]:
        """G(z) at the side of now, scaled."""
        return self.generator(z, int(self.level), float(self.alpha))

    def penalty(self, data: Tensor, samples: Tensor, real: Tensor, generator: Generator) -> Tensor:
        """The gradient penalty and the drift, with their weights."""
        found = self.drift * real.square().mean()
        if self.penalty_weight:
            slopes = gradient_penalty(self.judged, data, samples, generator=generator)
            found = found + self.penalty_weight * slopes.mean()
        return found

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw images, rounded to the levels."""
        if y is not None:
            raise UserError("labels were given, but pggan has no classes; leave them out.")
        return self.scaling.inverse(self.enlarged(self.drawn(n, generator)))

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """A sample before rounding, float (b, *shape) on the raw scale, of standard normal noise."""
        return self.scaling.unrounded(self.enlarged(self.images(noise)))
