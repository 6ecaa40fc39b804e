r"""The variational lossy autoencoder: a decoder that sees little of the picture leaves the rest to the latents.

A decoder that models everything by itself leaves nothing for z to say. Here it is a PixelCNN with a small window, so
that local texture is its business and all that reaches further must go through z; the prior is learned, an
autoregressive flow f from z to noise:

    p(x, z) = N(f(z); 0, I) |det df/dz| prod_i p(x_i | x_window(i), z),      q(z | x) = N(mean(x), diag sigma(x)^2),
    elbo(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z)) <= log p(x),      loss = -E_data[elbo].

In u = f(z) this is a model with prior N(0, I), an inverse autoregressive flow as posterior, and a decoder that begins
with f^-1: the two have the same bound (paper, section 3.2), but the prior costs no sampling of z in a generated path.
The KL is estimated with the closed part in closed form, KL(q || N(0, I)) + 1/2 (|f(z)|^2 - |z|^2) - log |det df/dz|.

Shapes and units: x is raw (b, c, h, w), z (k, b, latent), in nats per example. The window is ``kernel // 2 + blocks``
rows above and as many columns on both sides. ``reconstruct`` is a draw of p(x | z).

Paper: Chen, Kingma, Salimans, Duan, Dhariwal, Schulman, Sutskever, Abbeel, "Variational Lossy Autoencoder", ICLR 2017,
https://arxiv.org/abs/1611.02731.

Different from the paper: residual blocks between masked convolutions, without weight normalisation; free bits are for
all of z together, since the determinant is not shared out; affine autoregressive steps, alternating in order.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.vae.pixel_decoder import LatentPixels
from dgmbench.nn.bijections import Chain
from dgmbench.nn.encoders import NetName
from dgmbench.nn.gaussians import draw_normal, gaussian_kl, standard
from dgmbench.nn.masked import MaskedMlp
from dgmbench.nn.masked_flows import MaskedAffine
from dgmbench.nn.observation import gaussian_log_density


class Vlae(LatentPixels):
    """Variational lossy autoencoder of binary and discrete images (Chen et al. 2017).

    Args:
        spec: The data space, images.
        net: Kind of the encoder, and of the network from z to a map.
        hidden_sizes: Widths of the mlp's hidden layers, encoder order. None: linear.
        channels: First width of conv and resnet.
        latent: Dimensions of z.
        steps: Autoregressive steps of the prior; 0 is N(0, I).
        flow_sizes: Hidden widths of each step's network.
        condition: Features of the map that the decoder is given.
        features: Maps between the decoder's blocks.
        blocks: Residual blocks of the decoder; each adds a pixel to its window.
        kernel: Odd width of its first convolution.
        head: Hidden maps of its two last layers.
        samples: Draws of z for each example in one estimate of the bound.
        kl_warmup: Updates over which the weight of the KL rises from 0 to 1.
        free_bits: Nats of KL that the loss does not charge for.
    """

    def __init__(
        self, spec: DataSpec, *, net: NetName = "resnet", hidden_sizes: Sequence[int] = (200, 200), channels: int = 32,
        latent: int = 64, steps: int = 2, flow_sizes: Sequence[int] = (640,), condition: int = 32, features: int = 32,
        blocks: int = 2, kernel: int = 5, head: int = 32, samples: int = 1, kl_warmup: int = 0, free_bits: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            spec, net=net, hidden_sizes=hidden_sizes, channels=channels, latent=latent, condition=condition,
            features=features, blocks=blocks, kernel=kernel, head=head, samples=samples, kl_warmup=kl_warmup,
            free_bits=free_bits,
        )  # fmt: skip
        require(least=0, steps=steps)
        require(least=1, flow_sizes=flow_sizes)
        turns = ("natural", "reversed")
        nets = [MaskedMlp(latent, flow_sizes, 2, order=turns[number % 2]) for number in range(steps)]  # type: ignore[arg-type]
        with torch.no_grad():  # the prior starts near N(0, I)
            for each in nets:
                each.linear(each.depth).weight.mul_(0.1)
        self.prior = Chain(MaskedAffine(each) for each in nets)

    def log_prior(self, z: Float[Tensor, "k b z"]) -> Float[Tensor, "k b"]:
        """Log p(z)."""
        u, log_det = self._noise_of(z)
        return gaussian_log_density(u, *standard(u)).sum(-1) + log_det

    def log_weights(self, x: Tensor, k: int, *, generator: Generator | None = None) -> Float[Tensor, "k b"]:
        """Draw k importance weights of each raw x (b, *shape); the bound is their log-mean-exp."""
        q = self.posterior(x)
        z = draw_normal(q, k, generator)
        return self._log_likelihood(x, z) + self.log_prior(z) - gaussian_log_density(z, *q).sum(-1)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n examples, raw (n, *shape): z from the prior, dimension by dimension, then pixel by pixel."""
        z, _ = self.prior.inverse(self._noise(n, generator))
        return self.decoder.sample(n, self.map_of(z), generator=generator)

    def _terms(self, x: Tensor, samples: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
        q = self.posterior(x)
        z = draw_normal(q, samples, generator)
        u, log_det = self._noise_of(z)
        change = 0.5 * (u.square() - z.square()).sum(-1) - log_det
        kl = gaussian_kl(q, standard(q.mean)).sum(1) + change.mean(0)
        return self._log_likelihood(x, z).mean(0), kl[:, None]

    def _noise_of(self, z: Float[Tensor, "k b z"]) -> tuple[Float[Tensor, "k b z"], Float[Tensor, "k b"]]:
        """F(z), and log |det df/dz|."""
        u, log_det = self.prior(z.flatten(0, 1))
        return u.view(z.shape), log_det.view(z.shape[:2])
