"""Bidirectional GAN: an encoder learns beside the generator, against a discriminator that judges data with their codes.

D is shown pairs, (x, E(x)) of data and (G(z), z) of samples; generator and encoder together try to make the two joint
distributions the same, which they are only where E inverts G. With a(x, z) the discriminator's output, D = sigmoid(a):

    minimax         min_{G,E} max_D  E_data log D(x, E(x)) + E_z log(1 - D(G(z), z))
                    = 2 JS(P_(x, E(x)) || P_(G(z), z)) - 2 log 2  at the best D
    non_saturating  the same D; G and E minimise  -E_z log D(G(z), z) - E_data log(1 - D(x, E(x)))

Adversarially learned inference (ALI) is the same game with a stochastic encoder, ``encoding=stochastic``: the code is
a draw mu(x) + sigma(x) * noise of a Gaussian q(z|x).

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged); z (b, latent) ~ N(0, I); losses
are means over the batch, in nats where D is a probability.

Papers: Donahue, Krahenbuhl, Darrell 2017, https://arxiv.org/abs/1605.09782 (BiGAN); Dumoulin et al. 2017,
https://arxiv.org/abs/1606.00704 (ALI).

What differs: BiGAN's experiments draw z uniformly, ALI's and ours from a Gaussian. The default networks are small mlps
without batch-norm, for small data; the generator of ``encoding=stochastic`` stays deterministic, as in ALI's networks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Parameters
from dgmbench.nn.adversarial import NetName, make_discriminator, make_generator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.adversarial_pairs import make_joint_discriminator
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling


class BiGan(Model):
    """A generator and an encoder that train together against a discriminator of pairs (Donahue et al. 2017).

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the code z.
        hidden_sizes: hidden layers of the mlp generator; encoder and discriminator have them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        encoding: ``deterministic`` (BiGAN), or ``stochastic`` (ALI), a Gaussian q(z|x).
        loss: an object of ``nn.adversarial_losses`` or its name; see the formulas above.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 16,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        encoding: Literal["deterministic", "stochastic"] = "deterministic",
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec)
        if encoding not in ("deterministic", "stochastic"):
            raise UserError(f"encoding must be deterministic or stochastic, not '{encoding}'.")
        require(least=1, latent=latent, hidden_sizes=hidden_sizes, channels=channels)
        self.adversarial = adversarial_loss(loss)
        self.latent = self.noise_dim = latent
        self.stochastic = encoding == "stochastic"
        self.scaling = Scaling(spec)
        sizes = tuple(hidden_sizes)
        self.generator = make_generator(net, spec, latent=latent, hidden_sizes=sizes, channels=channels)
        outputs = 2 * latent if self.stochastic else latent
        self.encoder = make_discriminator(net, spec, hidden_sizes=sizes[::-1], channels=channels, outputs=outputs)
        self.discriminator = make_joint_discriminator(
            net,
            spec,
            latent=latent,
            hidden_sizes=sizes[::-1],
            channels=channels,
            bias=self.adversarial.sees_constant,
        )

    def players(self) -> dict[str, Parameters]:
        """The discriminator, and its opponents as one player of two groups."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "opponents": {"generator": list(self.generator.parameters()), "encoder": list(self.encoder.parameters())},
        }

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        x = self.scaling(batch.x)
        z = self.noise(len(x), generator)
        if player == "opponents":
            with statistics_of(self.generator):
                samples = self.generator(z)
            with statistics_of(self.encoder):
                codes = self.code(x, generator)
            loss = self.adversarial.opponents(self.critic(x, codes), self.critic(samples, z))
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            samples, codes = self.generator(z), self.code(x, generator)
        fake = self.critic(samples, z)
        with statistics_of(self.discriminator):
            real = self.critic(x, codes)
        loss = self.adversarial.discriminator(real, fake)
        return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the networks that stepped."""
        for net in (self.generator, self.encoder) if player == "opponents" else (self.discriminator,):
            absorb_statistics(net)

    def critic(self, x: Float[Tensor, " b *shape"], code: Float[Tensor, "b latent"]) -> Float[Tensor, " b"]:
        """The discriminator's output a(x, z) at scaled values and codes, before any sigmoid."""
        return self.discriminator(x, code=code).squeeze(1)

    def mean_code(self, x: Float[Tensor, " b *shape"]) -> Float[Tensor, "b latent"]:
        """E(x) at scaled values, or the mean of q(z|x)."""
        return self.encoder(x)[:, : self.latent]

    def code(self, x: Float[Tensor, " b *shape"], generator: Generator) -> Float[Tensor, "b latent"]:
        """E(x) at scaled values, or one draw of q(z|x), differentiable in its mean and standard deviation."""
        if not self.stochastic:
            return self.encoder(x)
        mean, log_std = self.encoder(x).chunk(2, 1)
        return mean + log_std.exp() * self.noise(len(x), generator)

    def noise(self, n: int, generator: Generator | None) -> Float[Tensor, "n latent"]:
        """Latents from N(0, I)."""
        return torch.randn(n, self.latent, device=next(self.parameters()).device, generator=generator)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Float[Tensor, "b latent"]:
        """E(x) at raw values x (b, *shape), or the mean of q(z|x)."""
        return self.mean_code(self.scaling(x))

    @torch.no_grad()
    def decode(self, code: Float[Tensor, "b latent"]) -> Tensor:
        """G(code), as floats (b, *shape) on the raw scale."""
        return self.generate(code)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """G(E(x)) of raw values x at their mean code, as floats on the raw scale; nothing is drawn."""
        return self.generate(self.encode(x))

    def generate(self, noise: Float[Tensor, "b latent"]) -> Tensor:
        """G(z) at z = noise, as floats (b, *shape) on the raw scale."""
        return self.scaling.unrounded(self.generator(noise))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G(z), z ~ N(0, I), rounded to the data's levels."""
        return self.scaling.inverse(self.generator(self.noise(n, generator)))
