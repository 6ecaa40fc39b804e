"""What EBGAN and BEGAN share: a generator, and a discriminator that is an autoencoder of scaled data.

The discriminator rec(x) = Dec(Enc(x)) is to rebuild data well and samples badly. How an error counts, and in which
proportion, is the subclass's; so are the losses, log-probabilities there are none.

Papers: Zhao, Mathieu, LeCun 2017, https://arxiv.org/abs/1609.03126; Berthelot, Schumm, Metz 2017,
https://arxiv.org/abs/1703.10717.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Model
from dgmbench.nn.adversarial import NetName, make_discriminator, make_generator
from dgmbench.nn.batchnorm import absorb_statistics
from dgmbench.nn.scaling import Scaling


class Autoencoder(nn.Module):
    """Scaled data -> code -> scaled data."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Float[Tensor, " b *shape"]) -> tuple[Float[Tensor, " b *shape"], Float[Tensor, "b code"]]:
        """The reconstruction of x, and its code."""
        code = self.encoder(x)
        return self.decoder(code), code


class AutoencodingGan(Model):
    """Two players, both stepping on every batch: ``discriminator``, an autoencoder, and ``generator``.

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        code: dimensions of the autoencoder's code.
        hidden_sizes: hidden layers of the mlp generator and decoder; the encoder has them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
    """

    def __init__(
        self, spec: DataSpec, *, net: NetName, latent: int, code: int, hidden_sizes: Sequence[int], channels: int
    ) -> None:
        super().__init__(spec)
        require(least=1, latent=latent, code=code, hidden_sizes=hidden_sizes, channels=channels)
        self.latent = self.noise_dim = latent
        self.scaling = Scaling(spec)
        sizes = tuple(hidden_sizes)
        self.generator = make_generator(net, spec, latent=latent, hidden_sizes=sizes, channels=channels)
        self.discriminator = Autoencoder(
            make_discriminator(net, spec, hidden_sizes=sizes[::-1], channels=channels, outputs=code),
            make_generator(net, spec, latent=code, hidden_sizes=sizes, channels=channels),
        )

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two networks."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    def latents(self, noise: Float[Tensor, "b latent"]) -> Float[Tensor, "b latent"]:
        """z as a function of standard normal noise: the noise itself."""
        return noise

    def samples(self, n: int, generator: Generator | None) -> Float[Tensor, " n *shape"]:
        """n scaled samples G(z)."""
        device = next(self.parameters()).device
        return self.generator(self.latents(torch.randn(n, self.latent, device=device, generator=generator)))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """G(z), float (b, *shape) on the raw scale, of standard normal noise."""
        return self.scaling.unrounded(self.generator(self.latents(noise)))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G(z) (n, *shape), rounded to the levels if there are levels."""
        return self.scaling.inverse(self.samples(n, generator))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Float[Tensor, "b code"]:
        """The autoencoder's codes of raw x (b, *shape)."""
        return self.discriminator.encoder(self.scaling(x))

    @torch.no_grad()
    def decode(self, code: Float[Tensor, "b code"]) -> Tensor:
        """The autoencoder's data of codes, float (b, *shape) on the raw scale."""
        return self.scaling.unrounded(self.discriminator.decoder(code))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The autoencoder at raw x (b, *shape), float on the raw scale; nothing is drawn."""
        return self.decode(self.encode(x))
