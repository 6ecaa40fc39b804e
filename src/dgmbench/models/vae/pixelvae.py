r"""PixelVAE: latents with a PixelCNN of few layers as their decoder, on one level or on two.

z says what the picture is about, a shallow PixelCNN draws it. On one level z is a vector with prior N(0, I), and

    p(x, z) = N(z; 0, I) prod_i p(x_i | x_before(i), z),      q(z | x) = N(mean(x), diag sigma(x)^2).

With ``maps`` > 0 there is a level between, a map z_1 of so many features at half the sides (rounded up), whose prior is
autoregressive too, over places in raster order with Gaussian conditionals, and z becomes z_2:

    p(x, z) = N(z_2; 0, I) prod_t N(z_{1,t}; mean_t, sigma_t^2)(z_{1,before t}, z_2) prod_i p(x_i | x_before(i), z_1),
    q(z | x) = q(z_1 | x) q(z_2 | x),      elbo(x) = E_q[log p(x | z_1)] - KL_1 - KL_2 <= log p(x).

KL_1 is in closed form for every place, given the draws of the places before it.

Shapes and units: x is raw (b, c, h, w), z_1 (k, b, maps, h', w'), z_2 or z (k, b, latent); nats per example.
``reconstruct`` is a draw of p(x | z).

Paper: Gulrajani, Kumar, Ahmed, Ali Taiga, Visin, Vazquez, Courville, "PixelVAE: A Latent Variable Model for Natural
Images", ICLR 2017, https://arxiv.org/abs/1611.05013.

Different from the paper: the map of z is added inside each block, where the paper joins it to the features once; plain
residual blocks in place of gated ones; q(z_2 | x) reads x itself, where the paper's goes through the features of z_1.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.autoregressive.pixelcnn import ResidualBlock
from dgmbench.models.autoregressive.raster import RasterBlock, RasterStack
from dgmbench.models.vae.pixel_decoder import LatentPixels
from dgmbench.models.vae.quantised import GrowingNet, ShrinkingNet, halved
from dgmbench.nn.encoders import NetName, build_decoder
from dgmbench.nn.gaussians import Moments, draw_normal, gaussian_kl, halves, standard
from dgmbench.nn.observation import gaussian_log_density


class LatentMaps(nn.Module):
    """The level between: q(z_1 | x), the autoregressive p(z_1 | z_2), and the way from z_1 to the decoder's map."""

    def __init__(
        self, spec: DataSpec, maps: int, *, net: NetName, hidden_sizes: Sequence[int], channels: int, latent: int,
        condition: int, features: int, blocks: int,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = halved((spec.shape[1], spec.shape[2]), 1)
        self.maps, self.size = maps, sizes[1]
        self.encoder = nn.Sequential(
            ShrinkingNet(spec.shape[0], channels, halvings=1, blocks=1), nn.Conv2d(channels, 2 * maps, 1)
        )
        plane = (1, *self.size)
        self.widen = build_decoder(net, latent, condition, plane, hidden_sizes=hidden_sizes[::-1], channels=channels)
        layers: list[RasterBlock] = [ResidualBlock(features, 1, condition) for _ in range(blocks)]
        self.net = RasterStack(
            1, inputs=maps, features=features, kernel=3, blocks=layers, head=features, parameters=2 * maps
        )
        self.grow = GrowingNet(maps, condition, channels, sizes=sizes, blocks=1)

    def posterior(self, x: Float[Tensor, "b c h w"]) -> Moments:
        """Moments of q(z_1 | x), each (b, maps, h', w')."""
        return halves(self.encoder(x))

    def prior(self, z: Float[Tensor, "n m i j"], above: Float[Tensor, "n z"]) -> Moments:
        """Moments of each place given those before it and z_2, for maps z_1 and vectors z_2."""
        return halves(self.net(z, self.map_of(above)))

    def map_of(self, above: Float[Tensor, "n z"]) -> Float[Tensor, "n f i j"]:
        """What z_2 says of each place."""
        wide: Tensor = self.widen(above)
        return wide[:, :, 0]

    @torch.no_grad()
    def sample(self, above: Float[Tensor, "n z"], generator: Generator | None) -> Float[Tensor, "n m i j"]:
        """Z_1 given z_2, place by place."""
        n, (height, width) = len(above), self.size
        noise = torch.randn(n, self.maps, height, width, generator=generator, device=above.device, dtype=above.dtype)
        z = torch.zeros_like(noise)
        cache = self.net.cached(n, width, self.map_of(above))
        for row in range(height):
            cache.start_row()
            for x in range(width):
                mean, log_sigma = halves(cache.read(x, 0))
                z[:, :, row, x] = mean + log_sigma.exp() * noise[:, :, row, x]
                cache.write(x, 0, z[:, :, row, x])
        return z


class PixelVae(LatentPixels):
    """PixelVAE of binary and discrete images (Gulrajani et al. 2017).

    Args:
        spec: The data space, images.
        maps: Features of the level between; 0 is one level.
        net: Kind of the encoder of z, and of the network from z to a map.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order. None: linear.
        channels: First width of conv and resnet, and of the networks beside the level between.
        latent: Dimensions of z, or of z_2.
        condition: Features of the maps that the PixelCNNs are given.
        features: Maps between their blocks.
        blocks: Residual blocks of each.
        kernel: Odd width of the decoder's first convolution.
        head: Hidden maps of its two last layers.
        samples: Draws of z for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL for each dimension that the loss does not charge for.
    """

    def __init__(
        self, spec: DataSpec, *, maps: int = 0, net: NetName = "resnet", hidden_sizes: Sequence[int] = (200, 200),
        channels: int = 32, latent: int = 64, condition: int = 32, features: int = 32, blocks: int = 3,
        kernel: int = 5, head: int = 32, samples: int = 1, kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            spec, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent, condition=condition,
            features=features, blocks=blocks, kernel=kernel, head=head, samples=samples, kl_warmup=kl_warmup,
            free_bits=free_bits,
        )  # fmt: skip
        require(least=0, maps=maps)
        self.between: LatentMaps | None = None
        if maps:
            del self.widen  # the decoder's map is one of z_1
            self.between = LatentMaps(
                spec, maps, net=net, hidden_sizes=tuple(hidden_sizes), channels=channels, latent=latent,
                condition=condition, features=features, blocks=blocks,
            )  # fmt: skip

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape), over all levels; the bound is their log-mean-exp."""
        q = self.posterior(x)
        z = draw_normal(q, k, generator)
        total = (gaussian_log_density(z, *standard(z)) - gaussian_log_density(z, *q)).sum(-1)
        if self.between is None:
            return self._log_likelihood(x, z) + total
        q1 = self.between.posterior(self.scaling(x).to(self._dtype))
        z1 = draw_normal(q1, k, generator)
        p1 = self.between.prior(z1.flatten(0, 1), z.flatten(0, 1))
        log_p1 = gaussian_log_density(z1.flatten(0, 1), *p1).flatten(1).sum(1).view(k, len(x))
        total = total + log_p1 - gaussian_log_density(z1, *q1).flatten(2).sum(2)
        return self._decoded(x, self.between.grow(z1.flatten(0, 1)), k) + total

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, *shape), from the top down."""
        z = self._noise(n, generator)
        given = self.map_of(z) if self.between is None else self.between.grow(self.between.sample(z, generator))
        return self.decoder.sample(n, given, generator=generator)

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """A draw x' ~ p(x' | z) at a draw z of q, of the lowest level, as float (b, *shape)."""
        if self.between is None:
            return super().reconstruct(x, generator=generator)
        z1 = draw_normal(self.between.posterior(self.scaling(x).to(self._dtype)), 1, generator)[0]
        return self.decoder.sample(len(x), self.between.grow(z1), generator=generator).to(self._dtype)

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        q = self.posterior(x)
        z = draw_normal(q, samples, generator)
        kl = gaussian_kl(q, standard(q.mean))
        if self.between is None:
            return self._log_likelihood(x, z).mean(0), kl
        q1 = self.between.posterior(self.scaling(x).to(self._dtype))
        z1 = draw_normal(q1, samples, generator)
        p1 = self.between.prior(z1.flatten(0, 1), z.flatten(0, 1))
        kl1 = gaussian_kl(q1, Moments(*(each.view(z1.shape) for each in p1))).mean(0)
        return self._decoded(x, self.between.grow(z1.flatten(0, 1)), samples).mean(0), torch.cat(
            [kl, kl1.flatten(1)], 1
        )
