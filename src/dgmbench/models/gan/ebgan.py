"""Energy-based GAN: the discriminator is an energy, an autoencoder's error, low at data and high elsewhere.

The generator looks for samples of low energy; the discriminator raises the energy of samples, but only up to a margin,
beyond which they no longer move it. With the energy E(x) = ||Dec(Enc(x)) - x||, [a]+ = max(0, a), and the codes
S = Enc(G(z)) of a batch of N samples, whose pulling-away term keeps them from all pointing in one direction,

    discriminator  minimises  E_data E(x) + E_z [margin - E(G(z))]+
    generator      minimises  E_z E(G(z)) + pulling_away sum_{i != j} (S_i' S_j / (|S_i| |S_j|))^2 / (N (N - 1))

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged); energies (b,) are Euclidean
distances of scaled values; z ~ N(0, I) (b, latent), codes (b, code).

Paper: Zhao, Mathieu, LeCun 2017, https://arxiv.org/abs/1609.03126 (equations 2 to 5; margin 10 and weight 0.1 are those
of its MNIST models).

What differs: the mlp has two hidden layers a side and no batch-norm, where the paper searches over 2 to 5 with it. A
margin is a distance in all of x, so a useful one grows with the root of the number of pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs
from dgmbench.models.gan.autoencoding import AutoencodingGan
from dgmbench.nn.adversarial import NetName
from dgmbench.nn.batchnorm import statistics_of


def pulling_away_term(codes: Float[Tensor, "n code"]) -> Float[Tensor, ""]:
    """The mean squared cosine between the codes of two different examples: 0 if all are orthogonal, 1 if parallel."""
    n = len(codes)
    directions = F.normalize(codes, dim=1)
    squares = (directions @ directions.T).square()
    return (squares.sum() - squares.diagonal().sum()) / max(n * (n - 1), 1)


class EbGan(AutoencodingGan):
    """A generator against an autoencoder's energy (Zhao et al. 2017).

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        code: dimensions of the autoencoder's code.
        hidden_sizes: hidden layers of the mlp generator and decoder; the encoder has them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        margin: the energy up to which samples move the discriminator.
        pulling_away: weight of the pulling-away term.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 32,
        code: int = 32,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        margin: float = 10.0,
        pulling_away: float = 0.1,
    ) -> None:
        super().__init__(spec, net=net, latent=latent, code=code, hidden_sizes=hidden_sizes, channels=channels)
        require(above=0, margin=margin)
        require(least=0, pulling_away=pulling_away)
        self.margin, self.pulling_away = margin, pulling_away

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        n = len(batch.x)
        if player == "generator":
            with statistics_of(self.generator):
                samples = self.samples(n, generator)
            energy, codes = self.energy(samples)
            repulsion = pulling_away_term(codes)
            loss = energy.mean() + self.pulling_away * repulsion
            return loss, {"loss": loss.detach(), "pulling_away": repulsion.detach()}
        with torch.no_grad():
            samples = self.samples(n, generator)
        fake, _ = self.energy(samples)
        with statistics_of(self.discriminator):
            real, _ = self.energy(self.scaling(batch.x))
        loss = real.mean() + F.relu(self.margin - fake).mean()
        return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}

    def energy(self, x: Float[Tensor, " b *shape"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b code"]]:
        """E(x) at scaled values, and their codes."""
        reconstruction, codes = self.discriminator(x)
        return torch.linalg.vector_norm((reconstruction - x).flatten(1), dim=1), codes
