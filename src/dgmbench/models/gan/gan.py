"""Generative adversarial networks: GAN, and by settings DCGAN, WGAN, WGAN-GP, SNGAN, conditional GAN, other losses.

A generator G turns noise into samples; a discriminator D is trained to tell them from data, and the generator is
trained on the discriminator's answer alone, so that neither needs a likelihood. With a(x) the discriminator's output
and D = sigmoid(a):

    minimax, non_saturating   D minimises  -E_data log D(x) - E_z log(1 - D(G(z)))
      minimax                 G minimises   E_z log(1 - D(G(z)))
      non_saturating          G minimises  -E_z log D(G(z))
    wasserstein               D minimises   E_z a(G(z)) - E_data a(x)
                              G minimises  -E_z a(G(z))
    others                    see ``nn.adversarial_losses``: least_squares, hinge, f_divergence, relativistic_average
    gradient_penalty          D also minimises  penalty_weight E (||grad a(x_hat)|| - 1)^2 between data and samples
    spectral_norm             every weight W of D is W / sigma(W), sigma its largest singular value

Shapes and units: raw x (b, *shape) is scaled to [-1, 1] (``real`` data pass unchanged); z (b, latent) ~ N(0, I); losses
are means over the batch, in nats where D is a probability.

Papers: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661; Radford et al. 2016 (dcgan),
https://arxiv.org/abs/1511.06434; Arjovsky et al. 2017 (wgan), https://arxiv.org/abs/1701.07875; Gulrajani et al. 2017
(wgan_gp), https://arxiv.org/abs/1704.00028; Mirza and Osindero 2014 (cgan), https://arxiv.org/abs/1411.1784; Miyato et
al. 2018 (sngan), https://arxiv.org/abs/1802.05957.

What differs: the mlp has leaky ReLU in place of maxout with dropout, and a Gaussian z in place of a uniform one, as
later work does. DCGAN follows the authors' Torch release (4x4 kernels, 64 channels); the paper's figure 1 draws 5x5
kernels and, with ``channels=128``, the same widths. Batch-norm's running statistics serve evaluation only: they are
those of samples in G and of data in D, and move in ``after_step``.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.nn.adversarial import NetName, make_discriminator, make_generator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss, gradient_penalty
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.labels import classes_of_noise, count_classes, draw_classes, start_class_prior
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.spectral_norm import power_step, spectral_normalise
from dgmbench.nn.truncation import cut, normal_noise


class Gan(Model):
    """A generator and a discriminator that train against each other (Goodfellow et al. 2014).

    Args:
        spec: the data's space.
        net: the networks: ``mlp`` for any data, ``dcgan`` and ``resnet`` for square images.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the mlp generator; the mlp discriminator has them in reverse.
        channels: maps in the widest-resolution layer of dcgan (doubling with each halving of the side), or in every
            layer of resnet.
        loss: an object of ``nn.adversarial_losses`` or its name; see the formulas above.
        regulariser: ``gradient_penalty`` holds the critic's gradient norm at one between data and samples;
            ``spectral_norm`` divides each of its weights by the largest singular value (``nn.spectral_norm``).
        penalty_weight: weight of the gradient penalty, lambda.
        clip: bound on every weight of the critic after its step (WGAN), or none.
        n_critic: discriminator steps, each on a batch of its own, to one generator step, on the last of them.
        label_smoothing: D aims at 1 - label_smoothing on data (one-sided).
        instance_noise: standard deviation of Gaussian noise on all that D sees, on the scale [-1, 1].
        truncation: samples take z from the normal distribution cut to |z_i| <= truncation; training never does.
        conditional: labels enter both networks (Mirza and Osindero 2014); unlabelled examples are left out of training.
    """

    class_log_prior: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "mlp",
        latent: int = 32,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        regulariser: Literal["none", "gradient_penalty", "spectral_norm"] = "none",
        penalty_weight: float = 10.0,
        clip: float | None = None,
        n_critic: int = 1,
        label_smoothing: float = 0.0,
        instance_noise: float = 0.0,
        truncation: float | None = None,
        conditional: bool = False,
    ) -> None:
        super().__init__(spec)
        self.adversarial = adversarial_loss(loss)
        if regulariser not in ("none", "gradient_penalty", "spectral_norm"):
            raise UserError(f"regulariser must be none, gradient_penalty or spectral_norm, not '{regulariser}'.")
        require(least=1, latent=latent, hidden_sizes=hidden_sizes, channels=channels, n_critic=n_critic)
        require(least=0, penalty_weight=penalty_weight, instance_noise=instance_noise)
        require(least=0, below=1, label_smoothing=label_smoothing)
        require(above=0, clip=clip, truncation=truncation)
        if label_smoothing and not self.adversarial.has_targets:
            raise UserError(f"label_smoothing needs a loss with labels; loss={self.adversarial} has none.")
        if conditional and not spec.num_classes:
            raise UserError("conditional=true needs data with labels, and this data set has none.")
        self.latent = latent
        self.penalty_weight = penalty_weight if regulariser == "gradient_penalty" else 0.0
        self.clip, self.n_critic = clip, n_critic
        self.label_smoothing, self.instance_noise, self.truncation = label_smoothing, instance_noise, truncation
        self.classes = (spec.num_classes or 0) if conditional else 0
        self.scaling = Scaling(spec)
        sizes = tuple(hidden_sizes)
        self.generator = make_generator(
            net, spec, latent=latent, hidden_sizes=sizes, channels=channels, classes=self.classes
        )
        self.discriminator = make_discriminator(
            net,
            spec,
            hidden_sizes=sizes[::-1],
            channels=channels,
            classes=self.classes,
            norm="layer" if self.penalty_weight else "none" if regulariser == "spectral_norm" else "batch",
            bias=self.adversarial.sees_constant,
        )
        if regulariser == "spectral_norm":
            spectral_normalise(self.discriminator)
        self.noise_dim = latent + bool(self.classes)
        if self.classes:
            start_class_prior(self, spec)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two networks."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        """The discriminator on every step, the generator after it on every ``n_critic``-th."""
        return ("discriminator", "generator") if (step + 1) % self.n_critic == 0 else ("discriminator",)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Keep the classes' frequencies, from which ``sample`` draws labels where none are given."""
        if self.classes:
            count_classes(self.class_log_prior, batch.y)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        labels = self.one_hot(batch.y)
        z = self.noise(len(batch.x), generator)
        if player == "generator":
            with statistics_of(self.generator):
                samples = self.generator(z, labels)
            fake = self.critic(self.blurred(samples, generator), labels)
            real = None
            if self.adversarial.sees_real:
                with torch.no_grad():
                    real = self.critic(self.blurred(self.scaling(batch.x), generator), labels)
            loss = self.adversarial.generator(fake, real)
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            samples = self.blurred(self.generator(z, labels), generator)
        data = self.blurred(self.scaling(batch.x), generator)
        fake = self.critic(samples, labels)
        with statistics_of(self.discriminator):
            real = self.critic(data, labels)
        loss = self.adversarial.discriminator(real, fake, label_smoothing=self.label_smoothing)
        logs = {"real": real.mean().detach(), "fake": fake.mean().detach()}
        if self.penalty_weight:
            penalty = gradient_penalty(lambda x: self.critic(x, labels), data, samples, generator=generator).mean()
            logs["penalty"] = penalty.detach()
            loss = loss + self.penalty_weight * penalty
        return loss, {"loss": loss.detach(), **logs}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Clip the critic's weights, follow their singular vectors; take up batch-norm statistics of who stepped."""
        if player == "discriminator" and self.clip is not None:
            for parameter in self.discriminator.parameters():
                parameter.clamp_(-self.clip, self.clip)
        if player == "discriminator":
            power_step(self.discriminator)
        absorb_statistics(getattr(self, player))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G(z), rounded to the levels; of classes y (n,), by default as frequent as in the data."""
        if y is not None and not self.classes:
            raise UserError("labels were given, but the model is not conditional; set model.conditional=true.")
        if y is None and self.classes:
            y = draw_classes(self.class_log_prior, n, generator)
        z = self.noise(n, generator, truncation=self.truncation)
        return self.scaling.inverse(self.generator(z, self.one_hot(y)))

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """G(z) before rounding, float (b, *shape) on the raw scale, of standard normal noise.

        The noise is z, cut as in ``sample``; a conditional model takes one more column, whose quantile is the label.
        """
        z, labels = cut(noise[:, : self.latent], self.truncation), None
        if self.classes:
            labels = self.one_hot(classes_of_noise(self.class_log_prior, noise[:, self.latent]))
        return self.scaling.unrounded(self.generator(z, labels))

    def critic(self, x: Float[Tensor, " b *shape"], labels: Tensor | None = None) -> Float[Tensor, " b"]:
        """The discriminator's output a(x) at scaled values, before any sigmoid."""
        return self.discriminator(x, labels).squeeze(1)

    def noise(
        self, n: int, generator: Generator | None, *, truncation: float | None = None
    ) -> Float[Tensor, "n latent"]:
        """Latents from N(0, I), or from its truncation by the inverse distribution function."""
        device = next(self.parameters()).device
        return normal_noise(n, self.latent, device=device, generator=generator, truncation=truncation)

    def blurred(self, x: Tensor, generator: Generator) -> Tensor:
        """Return x with instance noise, where there is any."""
        if not self.instance_noise:
            return x
        return x + self.instance_noise * torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)

    def one_hot(self, y: Tensor | None) -> Tensor | None:
        """Labels (b,) as (b, classes) where the model is conditional, else None."""
        if not self.classes:
            return None
        if y is None:
            raise UserError("conditional=true needs labels with every batch, and this one has none.")
        return F.one_hot(y, self.classes).float()
