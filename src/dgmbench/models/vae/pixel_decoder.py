r"""A PixelCNN as the decoder of latents, and what VAEs with such a decoder share.

    p(x | z) = prod_i p(x_i | x_before(i), f(z)),

by the residual PixelCNN of ``autoregressive/pixelcnn.py``: f(z) is a map of features that every block adds, so that z
reaches every pixel, while x reaches only those after it, and at most ``kernel // 2 + blocks`` rows and columns away.

Shapes and units: x is raw (n, c, h, w), f(z) (n, condition, h, w), z (k, b, latent); nats per example.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.autoregressive.pixelcnn import ResidualBlock
from dgmbench.models.autoregressive.raster import Cache, RasterBlock, RasterModel, RasterStack, require_stack
from dgmbench.models.vae.vae import ElboModel
from dgmbench.nn.encoders import NetName, build_decoder, build_encoder
from dgmbench.nn.gaussians import Moments, draw_normal, moments
from dgmbench.nn.scaling import Scaling


class PixelDecoder(RasterModel):
    """PixelCNN whose blocks add a map of what is known of each pixel; it takes the place of labels y.

    Args:
        spec: the images.
        condition: features of that map.
        features: maps between the blocks.
        blocks: residual blocks.
        kernel: odd width of the first convolution.
        head: hidden maps of the two last layers.
    """

    def __init__(self, spec: DataSpec, *, condition: int, features: int, blocks: int, kernel: int, head: int) -> None:
        super().__init__(spec)
        require_stack(spec, kernel=kernel, features=features, head=head)
        require(least=0, blocks=blocks)
        channels = spec.shape[0]
        layers: list[RasterBlock] = [ResidualBlock(features, channels, condition) for _ in range(blocks)]
        self.net = RasterStack(
            channels, features=features, kernel=kernel, blocks=layers, head=head, parameters=self.parameters_per_value
        )

    def given(self, x: Tensor, y: Tensor | None) -> Float[Tensor, "b d p"]:
        """The parameters of all conditionals for raw x (b, *shape) and maps y (b, condition, h, w)."""
        return self._by_dimension(self.net(self._inputs(x), y))

    def cache(self, n: int, y: Tensor | None) -> Cache:
        """The cache of n images, at their first pixel."""
        return self.net.cached(n, self.spec.shape[2], y)

    def output_biases(self) -> list[Tensor]:
        """The bias of the output layer, channel by channel."""
        return [cast(Tensor, self.net.head.out.bias)]


class LatentPixels(ElboModel):
    """A Gaussian encoder of a vector z, and a ``PixelDecoder`` given f(z). A subclass gives the prior.

    The arguments are those of ``Vlae`` and ``PixelVae``.
    """

    def __init__(
        self, spec: DataSpec, *, net: NetName, hidden_sizes: Sequence[int], channels: int, latent: int, condition: int,
        features: int, blocks: int, kernel: int, head: int, samples: int, kl_warmup: int, free_bits: float,
    ) -> None:  # fmt: skip
        super().__init__(spec, samples=samples, kl_warmup=kl_warmup, free_bits=free_bits)
        require(
            least=1, hidden_sizes=hidden_sizes, channels=channels, latent=latent, condition=condition, blocks=blocks
        )
        self.latent = latent
        self.scaling = Scaling(spec, low=0.0)
        self.decoder = PixelDecoder(
            spec, condition=condition, features=features, blocks=blocks, kernel=kernel, head=head
        )
        sizes = tuple(hidden_sizes)
        self.encoder = build_encoder(net, spec.shape, 2 * latent, hidden_sizes=sizes, channels=channels)
        plane = (1, *spec.shape[1:])
        self.widen = build_decoder(net, latent, condition, plane, hidden_sizes=sizes[::-1], channels=channels)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output biases to each channel's frequencies."""
        self.decoder.initialise(batch, generator)

    def posterior(self, x: Tensor) -> Moments:
        """Mean and log sigma of q(z | x), each (b, latent), of raw x (b, *shape)."""
        return moments(self.encoder(self.scaling(x).to(self._dtype)))

    def encode(self, x: Tensor) -> Float[Tensor, "b z"]:
        """The mean of q(z | x) of raw x (b, *shape)."""
        return self.posterior(x).mean

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """A draw x' ~ p(x' | z) at a draw z ~ q(z | x), as float (b, *shape): the mean over x' is in no closed form."""
        z = draw_normal(self.posterior(x), 1, generator)[0]
        return self.decoder.sample(len(x), self.map_of(z), generator=generator).to(self._dtype)

    def map_of(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n f h w"]:
        """F(z)."""
        wide: Tensor = self.widen(z)
        return wide[:, :, 0]

    def _log_likelihood(self, x: Tensor, z: Float[Tensor, "k b z"]) -> Float[Tensor, "k b"]:
        return self._decoded(x, self.map_of(z.flatten(0, 1)), len(z))

    def _decoded(self, x: Tensor, condition: Float[Tensor, "kb f h w"], k: int) -> Float[Tensor, "k b"]:
        """Log p(x | map) of raw x (b, *shape) for k maps of each."""
        repeated = x.expand(k, *x.shape).flatten(0, 1)
        return self.decoder.log_prob(repeated, condition).view(k, len(x))

    def _noise(self, n: int, generator: Generator | None) -> Float[Tensor, "n z"]:
        return torch.randn(n, self.latent, generator=generator, device=self.step.device, dtype=self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype
