"""VAE/GAN: a variational autoencoder whose likelihood is measured in a discriminator's feature layer.

The decoder is also a GAN's generator, and the squared error of pixels gives way to the squared error of what a
discriminator D sees in them, f(x), its last hidden layer; so reconstructions are judged by a learned similarity. With
q(z|x) = N(mu(x), sigma(x)^2), x_rec = Dec(z), z ~ q(z|x), and x_prior = Dec(z), z ~ N(0, I):

    prior    = KL(q(z|x) || N(0, I))
    feature  = 1/2 ||f(x) - f(x_rec)||^2                          -log N(f(x); f(x_rec), I) without its constant
    gan      = -log D(x) - log(1 - D(x_rec)) - log(1 - D(x_prior))

    encoder        minimises  prior + feature
    decoder        minimises  gamma feature - gan
    discriminator  minimises  gan

Shapes and units: raw x (b, *shape), scaled to [-1, 1]; z (b, latent); sums over dimensions, means over the batch, nats.

Paper: Larsen, Sonderby, Larochelle, Winther 2016, https://arxiv.org/abs/1512.09300 (algorithm 1).

What differs: the three players step one after the other, each on its own forward pass, where the paper takes all
gradients at one point. log sigma(x) has a soft ceiling, 1 - softplus(1 - s): its exponential in the KL else throws a
network of many inputs off its course at a single unusual batch. The default networks are fully connected, for small
data; ``net=dcgan`` is the paper's kind. Batch-norm's running statistics are those of data in the encoder and the
discriminator, and those of samples of the prior in the decoder.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.adversarial import NetName, make_discriminator, make_generator
from dgmbench.nn.adversarial_losses import AdversarialLoss, Logistic, adversarial_loss
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling

LARGEST_LOG_STD = 1.0  # of the posterior; the prior's is 0


class VaeGan(Model):
    """An autoencoder with a learned similarity, and a GAN, in one (Larsen et al. 2016).

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the code z.
        hidden_sizes: hidden layers of the mlp decoder; encoder and discriminator have them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        gamma: weight of the feature loss against the GAN loss, for the decoder.
        loss: ``minimax`` is the paper's -gan; ``non_saturating`` lets the decoder minimise -log D at its outputs.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 16,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        gamma: float = 1.0,
        loss: Literal["minimax", "non_saturating"] | AdversarialLoss = "minimax",
    ) -> None:
        super().__init__(spec)
        adversarial = adversarial_loss(loss)
        if not isinstance(adversarial, Logistic):
            raise UserError(f"loss must be minimax or non_saturating, not '{loss}'.")
        require(least=1, latent=latent, hidden_sizes=hidden_sizes, channels=channels)
        require(least=0, gamma=gamma)
        self.latent = self.noise_dim = latent
        self.gamma, self.adversarial = gamma, adversarial
        self.scaling = Scaling(spec)
        sizes = tuple(hidden_sizes)
        self.encoder = make_discriminator(net, spec, hidden_sizes=sizes[::-1], channels=channels, outputs=2 * latent)
        self.decoder = make_generator(net, spec, latent=latent, hidden_sizes=sizes, channels=channels)
        self.discriminator = make_discriminator(net, spec, hidden_sizes=sizes[::-1], channels=channels)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The three networks, in the order of algorithm 1."""
        return {
            "encoder": list(self.encoder.parameters()),
            "decoder": list(self.decoder.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        x = self.scaling(batch.x)
        if player == "encoder":
            with statistics_of(self.encoder):
                mean, log_std = self.posterior(x)
            prior = 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(1).mean()
            feature = self.feature_nll(x, self.decoder(self.code(mean, log_std, generator))).mean()
            loss = prior + feature
            return loss, {"loss": loss.detach(), "kl": prior.detach(), "feature_nll": feature.detach()}
        with torch.no_grad():  # the other players take codes as given
            z = self.code(*self.posterior(x), generator)
            z_prior = torch.randn(z.shape, device=z.device, generator=generator)
        if player == "decoder":
            reconstruction = self.decoder(z)
            with statistics_of(self.decoder):
                sample = self.decoder(z_prior)
            feature = self.feature_nll(x, reconstruction).mean()
            generated = self.adversarial.generated
            gan = (generated(self.critic(reconstruction)) + generated(self.critic(sample))).mean()
            loss = self.gamma * feature + gan
            return loss, {"loss": loss.detach(), "feature_nll": feature.detach(), "gan": gan.detach()}
        with torch.no_grad():
            reconstruction, sample = self.decoder(z), self.decoder(z_prior)
        reconstructed, fake = self.critic(reconstruction), self.critic(sample)
        with statistics_of(self.discriminator):
            real = self.critic(x)
        loss = (self.adversarial.real(real) + self.adversarial.fake(reconstructed) + self.adversarial.fake(fake)).mean()
        return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    def posterior(self, x: Float[Tensor, " b *shape"]) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]]:
        """Mean and log standard deviation of q(z|x) at scaled values."""
        mean, log_std = self.encoder(x).chunk(2, 1)
        return mean, LARGEST_LOG_STD - F.softplus(LARGEST_LOG_STD - log_std)

    def code(self, mean: Tensor, log_std: Tensor, generator: Generator) -> Float[Tensor, "b latent"]:
        """One draw of q(z|x), differentiable in its mean and log standard deviation."""
        return mean + log_std.exp() * torch.randn(mean.shape, device=mean.device, generator=generator)

    def feature_nll(
        self, x: Float[Tensor, " b *shape"], reconstruction: Float[Tensor, " b *shape"]
    ) -> Float[Tensor, " b"]:
        """Half the summed squared difference of the discriminator's features, per example."""
        difference = self.discriminator.features(x) - self.discriminator.features(reconstruction)
        return 0.5 * difference.square().sum(1)

    def critic(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, " b"]:
        """The discriminator's logit at scaled values."""
        return self.discriminator(x).squeeze(1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Float[Tensor, "b latent"]:
        """The mean of q(z|x) at raw values x (b, *shape)."""
        return self.posterior(self.scaling(x))[0]

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The decoder's output at the mean code of raw values x, as floats on the raw scale; nothing is drawn."""
        return self.generate(self.encode(x))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """Dec(z) at z = noise, as floats (b, *shape) on the raw scale."""
        return self.scaling.unrounded(self.decoder(noise))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values Dec(z), z ~ N(0, I), rounded to the data's levels."""
        device = next(self.parameters()).device
        return self.scaling.inverse(self.decoder(torch.randn(n, self.latent, device=device, generator=generator)))
