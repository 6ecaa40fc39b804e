"""Boundary equilibrium GAN: autoencoder losses of data and samples, held in a stated proportion by a controller.

The discriminator is an autoencoder, and what generator and discriminator play for is the distance between the
distributions of its *errors* on data and on samples. An easy win of either side is kept away by the weight k of the
samples' error, which a proportional controller moves such that E L(G(z)) = gamma E L(x): a smaller ``gamma`` favours
quality, a larger one diversity. With L(v) = mean over dimensions of |v - Dec(Enc(v))|^power,

    discriminator  minimises  E_data L(x) - k E_z L(G(z))
    generator      minimises  E_z L(G(z))
    k <- min(1, max(0, k + rate (gamma L(x) - L(G(z)))))                  after each update, from 0
    M = L(x) + |gamma L(x) - L(G(z))|                                     falls as training converges

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged), on which scale L is measured;
z ~ U(-1, 1) (b, latent), codes (b, code); losses are means over the batch.

Paper: Berthelot, Schumm, Metz 2017, https://arxiv.org/abs/1703.10717 (sections 3.3 and 3.4).

What differs: the networks are those of the other models here, of which ``dcgan`` has batch-norm, which the paper's do
without. k is updated with the losses at the weights after the step, with a fresh draw of z; there is no halving of the
learning rate where M stalls. The mlp generator starts with weights that keep the variance of z (He et al. 2015): one
that starts nearly constant satisfies the equilibrium as it is, and stays so.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs
from dgmbench.models.gan.autoencoding import AutoencodingGan
from dgmbench.nn.adversarial import NetName
from dgmbench.nn.batchnorm import statistics_of


class Began(AutoencodingGan):
    """A generator against an autoencoder, in an equilibrium that a controller keeps (Berthelot et al. 2017).

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        code: dimensions of the autoencoder's code.
        hidden_sizes: hidden layers of the mlp generator and decoder; the encoder has them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        gamma: the diversity ratio, E L(G(z)) / E L(x) at equilibrium.
        rate: of the controller, lambda_k.
        power: of the absolute error, 1 or 2.
    """

    k: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 64,
        code: int = 64,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        gamma: float = 0.5,
        rate: float = 0.001,
        power: Literal[1, 2] = 1,
    ) -> None:
        super().__init__(spec, net=net, latent=latent, code=code, hidden_sizes=hidden_sizes, channels=channels)
        require(least=0, most=1, gamma=gamma)
        require(above=0, rate=rate)
        require(least=1, most=2, power=power)
        self.gamma, self.rate, self.power = gamma, rate, power
        self.register_buffer("k", torch.zeros(()))
        if net == "mlp":
            for module in self.generator.modules():
                if isinstance(module, nn.Linear):
                    nn.init.kaiming_normal_(module.weight, a=0.2)  # the slope of the leaky ReLUs
                    nn.init.zeros_(module.bias)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        n = len(batch.x)
        if player == "generator":
            with statistics_of(self.generator):
                samples = self.samples(n, generator)
            loss = self.error(samples)
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            samples = self.samples(n, generator)
        fake = self.error(samples)
        with statistics_of(self.discriminator):
            real = self.error(self.scaling(batch.x))
        loss = real - self.k * fake
        logs = {"loss": loss, "real": real, "fake": fake, "k": self.k, "convergence": self.convergence(real, fake)}
        return loss, {name: value.detach().clone() for name, value in logs.items()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up batch-norm statistics, and move k once both players have stepped."""
        super().after_step(player, batch, generator)
        if player == "generator":
            real, fake = self.error(self.scaling(batch.x)), self.error(self.samples(len(batch.x), generator))
            self.k.add_(self.rate * self.balance(real, fake)).clamp_(0, 1)

    def error(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, ""]:
        """L, the mean over scaled values and the batch."""
        return (x - self.discriminator(x)[0]).abs().pow(self.power).mean()

    def balance(self, real: Tensor, fake: Tensor) -> Tensor:
        """gamma L(x) - L(G(z)), which the controller brings to zero."""
        return self.gamma * real - fake

    def convergence(self, real: Tensor, fake: Tensor) -> Tensor:
        """M, the global measure of convergence."""
        return real + self.balance(real, fake).abs()

    def latents(self, noise: Float[Tensor, "b latent"]) -> Float[Tensor, "b latent"]:
        """z ~ U(-1, 1), by the distribution function of the noise."""
        return torch.erf(noise / 2**0.5)
