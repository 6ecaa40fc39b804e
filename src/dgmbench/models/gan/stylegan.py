"""StyleGAN: a mapping network makes styles of latents, and every layer of the synthesis takes a style of its own.

Styles at coarse layers decide what is large in a picture, those at fine layers its details, and noise at every layer
what is left to chance (``nn.style_synthesis``). In training, part of the samples mix the styles of two latents, w_1 in
the layers before a random one and w_2 from there on, so that layers do not rely on each other's style. The networks
grow (``models.gan.growing``); the game is the logistic one, with a penalty R1 on the slope of D at data:

    D minimises  -E log D(x) - E log(1 - D(G(z))) + penalty_weight / 2 E ||grad a(x)||^2      D = sigmoid(a)
    G minimises  -E log D(G(z))

*Truncation.* w is drawn towards the mean style, w_bar + psi (w - w_bar), psi = ``truncation``: fewer kinds of samples,
and safer ones. w_bar is the mean over 10,000 latents, taken before each validation. ``temperature`` is psi, too.

*Path length.* How far pictures move on the way from one style to another, in features: ``evaluation.quality.paths``.

Shapes and units: raw images x (b, c, side, side), scaled to [-1, 1] (``real`` data pass unchanged); z (b, latent), the
noise of all layers (b, noise) ~ N(0, I), z is put on a sphere; w (b, layers, latent); losses are means over the batch,
in nats. Before the networks are full-grown, samples have larger pixels.

Paper: Karras, Laine, Aila 2019, https://arxiv.org/abs/1812.04948; R1: Mescheder et al. 2018,
https://arxiv.org/abs/1801.04406.

What differs: the discriminator halves sides by means of 2 x 2 pixels; Adam goes on at a new side. The mapping network's
rate, 1/100 of the others' in the paper, and averaged weights are settings (optimizer=adam_stylegan, trainer.ema).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Parameters
from dgmbench.models.gan.growing import GrowingGan
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, slope_penalty
from dgmbench.nn.style_synthesis import Mapping, StyledGenerator
from dgmbench.nn.truncation import normal_noise

MEAN_OF = 10_000  # latents whose mean style is w_bar


class StyleGan(GrowingGan):
    """A style-based generator (Karras et al. 2019).

    Args:
        spec: square images with a side of 4 or 7 times a power of two.
        latent: dimensions of the noise z and of the styles.
        mapping: layers of the mapping network.
        channels: the most maps that a layer has.
        capacity: maps times side: at side s a layer has ``capacity`` / s maps, but no more than ``channels``.
        start: the side that training starts with; by default the second smallest, 8 pixels.
        pace: how many times the share of the side before it each side has of the budget.
        group: examples whose difference from each other the discriminator sees.
        loss: an object of ``nn.adversarial_losses`` or its name.
        penalty_weight: weight of R1, gamma.
        mixing: share of the training samples with the styles of two latents.
        truncation: psi, for samples only; 1 leaves styles as they are.
    """

    generator: StyledGenerator
    mean_style: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 512,
        mapping: int = 8,
        channels: int = 512,
        capacity: int = 16384,
        start: int | None = None,
        pace: float = 1.0,
        group: int = 4,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        penalty_weight: float = 10.0,
        mixing: float = 0.9,
        truncation: float = 1.0,
    ) -> None:
        super().__init__(
            spec, channels=channels, capacity=capacity, start=start, pace=pace, group=group, loss=loss, first=1
        )
        require(least=1, latent=latent, mapping=mapping)
        require(least=0, penalty_weight=penalty_weight, truncation=truncation)
        require(least=0, most=1, mixing=mixing)
        self.latent, self.penalty_weight, self.mixing = latent, penalty_weight, mixing
        self.temperature = truncation
        self.mapping = Mapping(latent, mapping)
        self.generator = StyledGenerator(spec.shape[0], self.sides, self.maps, latent=latent)
        self.noise_dim = latent + self.generator.noise_dim
        self.register_buffer("mean_style", torch.zeros(latent))

    def players(self) -> "dict[str, Parameters]":
        """The discriminator, and the generator in two groups: ``mapping`` and ``synthesis``."""
        synthesis, mapping = list(self.generator.parameters()), list(self.mapping.parameters())
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": {"mapping": mapping, "synthesis": synthesis},
        }

    def truncate(self, truncation: float, generator: Generator | None = None) -> None:
        """Draw samples of styles drawn towards the mean one by this factor from now on."""
        require(least=0, truncation=truncation)
        self.temperature = truncation

    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Take the mean style; the training set has no part in it."""
        self.mean_style.copy_(self.mapping(self.normal(MEAN_OF, self.latent, generator)).mean(0))

    def drawn(self, n: int, generator: Generator | None) -> Float[Tensor, "n c h w"]:
        """n scaled images at the side of now; in part of them styles are mixed."""
        first, second = (self.mapping(self.normal(n, self.latent, generator)) for _ in range(2))
        w = self.mixed(first, second, generator)
        return self.styled(w, self.normal(n, self.generator.noise_dim, generator))

    def mixed(
        self, first: Float[Tensor, "n latent"], second: Float[Tensor, "n latent"], generator: Generator | None
    ) -> Float[Tensor, "n layers latent"]:
        """Styles of every layer: those of ``first``, and in a share ``mixing`` from a random layer on the second's."""
        n, device = len(first), first.device
        layers = 2 * int(self.level) + 2  # that have grown
        crossing = torch.randint(1, layers, (n, 1), device=device, generator=generator)
        mixes = torch.rand(n, 1, device=device, generator=generator) < self.mixing
        later = mixes & (torch.arange(self.generator.layers, device=device) >= crossing)
        return torch.where(later[:, :, None], second[:, None], first[:, None])

    def styled(self, w: Float[Tensor, "n layers latent"], noise: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """Scaled images at the side of now, of the styles of all layers and noise."""
        return self.generator(w, noise, int(self.level), float(self.alpha))

    def penalty(self, data: Tensor, samples: Tensor, real: Tensor, generator: Generator) -> Tensor:
        """R1 with its weight."""
        if not self.penalty_weight:
            return real.new_zeros(())
        return 0.5 * self.penalty_weight * slope_penalty(self.judged, data).mean()

    def styles(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n latent"]:
        """w of latents, drawn towards the mean by truncation."""
        return torch.lerp(self.mean_style.expand(len(z), -1), self.mapping(z), self.temperature)

    def pictures(self, w: Float[Tensor, "n latent"], noise: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """Scaled images of the data's size, of one style for all layers."""
        return self.enlarged(self.styled(w[:, None].expand(-1, self.generator.layers, -1), noise))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw images, rounded to the levels, at the truncation; styles are not mixed."""
        if y is not None:
            raise UserError("labels were given, but stylegan has no classes; leave them out.")
        w = self.styles(self.normal(n, self.latent, generator))
        return self.scaling.inverse(self.pictures(w, self.normal(n, self.generator.noise_dim, generator)))

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """A sample before rounding, float (b, *shape) on the raw scale, of standard normal z and noise side by side."""
        w = self.styles(noise[:, : self.latent])
        return self.scaling.unrounded(self.pictures(w, noise[:, self.latent :]))

    @torch.no_grad()
    def style_mixtures(self, n: int, columns: int, *, generator: Generator | None = None) -> Tensor:
        """n samples for rows, others for columns, and mixtures with the row's style in the coarser half of the layers.

        Raw (n + 1, columns + 1, *shape): the first column and row are the samples themselves, the corner is empty. All
        have the same noise.
        """
        w = self.styles(self.normal(n + columns, self.latent, generator))
        noise = self.normal(1, self.generator.noise_dim, generator)
        alone = self.pictures(w, noise.expand(len(w), -1))
        coarse = torch.arange(self.generator.layers, device=w.device) < self.generator.layers // 2
        both = torch.where(coarse[:, None], w[:n, None, None], w[None, n:, None])
        mixtures = self.enlarged(self.styled(both.flatten(0, 1), noise.expand(n * columns, -1)))
        grid = alone.new_full((n + 1, columns + 1, *self.spec.shape), -1.0)
        grid[1:, 0], grid[0, 1:] = alone[:n], alone[n:]
        grid[1:, 1:] = mixtures.unflatten(0, (n, columns))
        return self.scaling.inverse(grid.flatten(0, 1)).unflatten(0, (n + 1, columns + 1))

    @torch.no_grad()
    def path_points(self, n: int, step: float, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Two pictures (n, *shape), float and raw, of each of n straight ways between two styles, ``step`` apart.

        Where on the way is uniform; both have the same noise.
        """
        first, last = (self.styles(self.normal(n, self.latent, generator)) for _ in range(2))
        at = torch.rand(n, 1, device=first.device, generator=generator)
        noise = self.normal(n, self.generator.noise_dim, generator)
        here, there = (self.pictures(torch.lerp(first, last, t), noise) for t in (at, at + step))
        return self.scaling.unrounded(here), self.scaling.unrounded(there)

    def normal(self, n: int, size: int, generator: Generator | None) -> Float[Tensor, "n size"]:
        """Standard normal numbers."""
        return normal_noise(n, size, device=self.mean_style.device, generator=generator)
