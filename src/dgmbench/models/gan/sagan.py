"""Self-attention GAN: every position of an image may look at all others, in the generator and the discriminator.

Convolutions see a neighbourhood; a layer of self-attention, y = x + gamma o(x) with gamma from 0 (``nn.attention``),
lets a network that has learned neighbourhoods go on to what belongs together far apart. G(z, y) takes the label in its
batch-norm, the discriminator by projection, a(x, y) = psi(phi(x)) + <V y, phi(x)>, and every weight of both networks
but the label's scales and shifts is divided by its largest singular value:

    D minimises  E_data max(0, 1 - a(x, y)) + E_{z,y} max(0, 1 + a(G(z, y), y))
    G minimises  -E_{z,y} a(G(z, y), y)

in turn, one step each, with a learning rate of D four times that of G (optimizer=adam_ttur).

Shapes and units: raw x (b, c, side, side) is scaled to [-1, 1] (``real`` data pass unchanged); labels (b,); z (b,
latent) ~ N(0, I); losses are means over the batch, without a unit.

Paper: Zhang, Goodfellow, Metaxas, Odena 2019, https://arxiv.org/abs/1805.08318.

What differs: one layer of attention in each network, at half of the image's side by default (the paper's best is at 32
or 64 of 128 pixels), with c / 8 channels inside as in the paper (the authors' code pools keys and values and has c / 2
channels of values); widths by side are BigGAN's (``nn.adversarial_attention``), and so are orthogonal weights at the
start.
"""

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.gan.projection import ProjectionGan
from dgmbench.nn.adversarial_attention import AttentiveDiscriminator, AttentiveGenerator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName
from dgmbench.nn.adversarial_pairs import ProjectionDiscriminator
from dgmbench.nn.batchnorm import ConditionalBatchNorm
from dgmbench.nn.orthogonal import start_orthogonal
from dgmbench.nn.spectral_norm import spectral_normalise


class SaGan(ProjectionGan):
    """A conditional GAN with self-attention (Zhang et al. 2019).

    Args:
        spec: square images, with labels.
        latent: dimensions of the noise z.
        channels: maps at the highest resolution of a network for 128 pixels; the others have multiples of it.
        attention: side of the maps with self-attention in both networks; half of the image's by default.
        n_critic: discriminator steps, each on a batch of its own, to one generator step, on the last of them.
        loss: an object of ``nn.adversarial_losses`` or its name.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int = 128,
        channels: int = 64,
        attention: int | None = None,
        n_critic: int = 1,
        loss: AdversarialLossName | AdversarialLoss = "hinge",
    ) -> None:
        super().__init__(spec, latent=latent, n_critic=n_critic, loss=loss)
        require(least=1, channels=channels, attention=attention)
        side = spec.shape[-1] // 2 if attention is None else attention
        self.generator = AttentiveGenerator(
            spec, latent=latent, condition=self.classes, channels=channels, attention=side
        )
        game = AttentiveDiscriminator(spec, channels=channels, attention=side, bias=self.adversarial.sees_constant)
        self.discriminator = ProjectionDiscriminator(game, classes=self.classes, features=game.head.in_features)
        for network in (self.generator, self.discriminator):
            start_orthogonal(network)
        for norm in self.generator.modules():
            if isinstance(norm, ConditionalBatchNorm):
                norm.start_plain()
        spectral_normalise(self.generator, but=(ConditionalBatchNorm,))
        spectral_normalise(self.discriminator)
