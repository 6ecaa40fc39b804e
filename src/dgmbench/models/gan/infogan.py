"""InfoGAN: part of the generator's noise is made readable from the samples, so that it comes to mean something.

The noise is z and codes c: one category of K and a few numbers. A head Q on the discriminator's trunk guesses the codes
of a sample, and how well it does bounds the mutual information of codes and samples from below:

    L_I(G, Q) = E_{c, x ~ G(z, c)} log Q(c|x) + H(c)  <=  I(c; G(z, c)),   equal where Q is the posterior P(c|x)

    min_{G,Q} max_D  V(D, G) - lambda L_I(G, Q)

with V any game of ``nn.adversarial_losses``. Both players minimise -lambda L_I beside their own term: the generator
with its weights, the discriminator with Q's and those of the trunk that Q shares. Q(c|x) is a categorical distribution
times a Gaussian for each number; lambda is ``information`` for the category, ``continuous_information`` for them.

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged); z (b, latent) ~ N(0, I), the
category (b,) uniform on K, the numbers (b, continuous) uniform on [-1, 1]; L_I in nats, losses are batch means.

Paper: Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel 2016, https://arxiv.org/abs/1606.03657.

What differs: the default networks are small mlps; Q is one linear layer on the trunk; the Gaussian's deviation, fixed
at one in the authors' MNIST model, which makes the bound vacuous there, is learned down to 0.05.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.adversarial import NetName, joined, make_discriminator, make_generator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.labels import one_hot
from dgmbench.nn.scaling import Scaling

LEAST_LOG_STD = math.log(0.05)  # of Q's Gaussians: x is a function of the codes, so nothing else would hold it


class Codes(NamedTuple):
    """What the generator starts from: noise z (b, latent), categories (b,) and numbers (b, continuous)."""

    z: Tensor
    category: Tensor
    numbers: Tensor


class InfoGan(Model):
    """A GAN whose codes can be read from its samples (Chen et al. 2016).

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z that no code stands for.
        categories: K, the values of the categorical code.
        continuous: how many numbers there are.
        information: lambda of the category.
        continuous_information: lambda of the numbers, smaller so that both are of one scale.
        hidden_sizes: hidden layers of the mlp generator; the mlp discriminator has them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        loss: an object of ``nn.adversarial_losses`` or its name.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 62,
        categories: int = 10,
        continuous: int = 2,
        information: float = 1.0,
        continuous_information: float = 0.1,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec)
        require(least=1, latent=latent, hidden_sizes=hidden_sizes, channels=channels)
        require(least=2, categories=categories)
        require(least=0, continuous=continuous, information=information, continuous_information=continuous_information)
        self.adversarial = adversarial_loss(loss)
        self.latent, self.categories, self.continuous = latent, categories, continuous
        self.noise_dim = latent + 1 + continuous
        self.weight, self.continuous_weight = information, continuous_information
        self.scaling = Scaling(spec)
        sizes, inputs = tuple(hidden_sizes), latent + categories + continuous
        self.generator = make_generator(net, spec, latent=inputs, hidden_sizes=sizes, channels=channels)
        self.discriminator = make_discriminator(
            net, spec, hidden_sizes=sizes[::-1], channels=channels, bias=self.adversarial.sees_constant
        )
        self.reader = nn.Linear(self.discriminator.head.weight[0].numel(), categories + 2 * continuous)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The generator, and the discriminator with Q's head."""
        return {
            "discriminator": [*self.discriminator.parameters(), *self.reader.parameters()],
            "generator": list(self.generator.parameters()),
        }

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        x, codes = self.scaling(batch.x), self.draw(len(batch.x), generator)
        if player == "generator":
            with statistics_of(self.generator):
                samples = self.generated(codes)
            fake, guess = self.judged(samples)
            real = self.judged(x)[0] if self.adversarial.sees_real else None
            loss = self.adversarial.generator(fake, real)
        else:
            with torch.no_grad():
                samples = self.generated(codes)
            fake, guess = self.judged(samples)
            with statistics_of(self.discriminator):
                real = self.judged(x)[0]
            loss = self.adversarial.discriminator(real, fake)
        category, numbers = self.information(guess, codes)
        total = loss - self.weight * category - self.continuous_weight * numbers
        logs = {"loss": loss, "category_information": category, "continuous_information": numbers}
        return total, {name: value.detach() for name, value in logs.items()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    # ---- codes ----

    def draw(self, n: int, generator: Generator | None) -> Codes:
        """n draws of noise and codes."""
        device = next(self.parameters()).device
        z = torch.randn(n, self.latent, device=device, generator=generator)
        category = torch.randint(self.categories, (n,), device=device, generator=generator)
        return Codes(z, category, 2 * torch.rand(n, self.continuous, device=device, generator=generator) - 1)

    def generated(self, codes: Codes) -> Float[Tensor, " b *shape"]:
        """G(z, c), scaled."""
        category = one_hot(codes.category, self.categories, codes.z.dtype)
        return self.generator(joined(codes.z, category, codes.numbers))

    def judged(self, x: Float[Tensor, " b *shape"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b q"]]:
        """The discriminator's output a(x) at scaled values, and Q's parameters there, in one pass of the trunk."""
        features = self.discriminator.features(x)
        return self.discriminator.outputs(features).squeeze(1), self.reader(features)

    def log_q(self, guess: Float[Tensor, "b q"], codes: Codes) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """log Q(category | x) and log Q(numbers | x), by Q's parameters at x."""
        logits, mean, raw = guess.split([self.categories, self.continuous, self.continuous], 1)
        log_std = LEAST_LOG_STD + F.softplus(raw - LEAST_LOG_STD)
        category = logits.log_softmax(1).gather(1, codes.category[:, None])[:, 0]
        scaled = (codes.numbers - mean) * torch.exp(-log_std)
        return category, -(0.5 * scaled.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)

    def information(self, guess: Float[Tensor, "b q"], codes: Codes) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """L_I of the category and of the numbers, nats."""
        category, numbers = self.log_q(guess, codes)
        return category.mean() + math.log(self.categories), numbers.mean() + self.continuous * math.log(2)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Float[Tensor, "b codes"]:
        """What Q reads from raw values x (b, *shape): Q(category | x), (b, K), and the means of the numbers."""
        guess = self.judged(self.scaling(x))[1]
        return joined(guess[:, : self.categories].softmax(1), guess[:, self.categories :][:, : self.continuous])

    # ---- samples ----

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G(z, c), rounded to the data's levels."""
        return self.of_codes(self.draw(n, generator))

    @torch.no_grad()
    def of_codes(self, codes: Codes) -> Tensor:
        """The raw values of chosen noise and codes: vary one and keep the others to see what it means."""
        return self.scaling.inverse(self.generated(codes))

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """G(z, c), float (b, *shape) on the raw scale, of standard normal noise.

        Its columns are z, and those of which the category and the numbers are the quantiles.
        """
        quantiles = torch.special.ndtr(noise[:, self.latent :])
        category = (quantiles[:, 0].detach() * self.categories).long().clamp(max=self.categories - 1)
        return self.scaling.unrounded(
            self.generated(Codes(noise[:, : self.latent], category, 2 * quantiles[:, 1:] - 1))
        )
