"""Coupled GANs: a joint distribution of several domains learned from each domain alone, never from pairs.

Every domain k has a generator G_k and a discriminator D_k. All generators start from one z and share their first
layers, which decide what is shown; the discriminators share their last ones. So one z gives a tuple (G_1(z), G_2(z),
...) that differs in how it looks but not in what it is:

    max_G min_D  sum_k  E_{x in domain k} -log D_k(x) + E_z -log(1 - D_k(G_k(z)))

with ``minimax``; each summand is a game of ``nn.adversarial_losses``.

Shapes and units: raw x (b, *shape) of all domains, scaled to [-1, 1] (``real`` data pass unchanged); z (b, latent) ~
N(0, I); losses are means over each domain's part of a batch, summed over domains, in nats.

Paper: Liu and Tuzel 2016, https://arxiv.org/abs/1606.07536.

What differs: any number of domains; networks are DCGAN's, of which each domain has one layer at the data's end to
itself. A convolution as the domain's own layer can change how things look but hardly where they are, which is what
makes the tuples correspond; mlps, whose own layer may do anything, learn each domain but no correspondence. The domain
is the data's factor of that name, else the label; nothing else of a label is used.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.adversarial_coupled import CoupledNetName, make_coupled_discriminator, make_coupled_generator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.labels import (
    by_domain,
    classes_of_noise,
    count_classes,
    domain_of,
    domains_in,
    domains_of,
    draw_classes,
)
from dgmbench.nn.scaling import Scaling


class CoGan(Model):
    """GANs of several domains that share layers (Liu and Tuzel 2016).

    Args:
        spec: the data's space, with domains: a factor called ``domain``, or labels.
        net: the networks: ``dcgan`` for square images, ``mlp`` for any data.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the mlp generators; the mlp discriminators have them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        own: layers at the data's end that each domain has to itself; all of them make GANs that share nothing.
        loss: an object of ``nn.adversarial_losses`` or its name.
    """

    domain_log_prior: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: CoupledNetName = "dcgan",
        latent: int = 32,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        own: int = 1,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec)
        if net not in ("mlp", "dcgan"):
            raise UserError(f"net must be mlp or dcgan, not '{net}'.")
        require(least=1, latent=latent, hidden_sizes=hidden_sizes, channels=channels, own=own)
        self.domain, domains = domains_of(spec)
        self.adversarial = adversarial_loss(loss)
        self.latent, self.noise_dim = latent, latent + 1
        self.scaling = Scaling(spec)
        self.register_buffer("domain_log_prior", torch.zeros(domains).log_softmax(0))
        sizes = tuple(hidden_sizes)
        self.generator = make_coupled_generator(
            net, spec, domains=domains, own=own, latent=latent, hidden_sizes=sizes, channels=channels
        )
        self.discriminator = make_coupled_discriminator(
            net,
            spec,
            domains=domains,
            own=own,
            hidden_sizes=sizes[::-1],
            channels=channels,
            bias=self.adversarial.sees_constant,
        )

    def players(self) -> dict[str, list[nn.Parameter]]:
        """All discriminators as one player, all generators as the other."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def batch_policy(self) -> BatchPolicy:
        """As many examples of each domain in every batch."""
        return BatchPolicy(balanced=self.domain or "label")

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Keep the domains' frequencies, from which ``sample`` draws where no label is given."""
        count_classes(self.domain_log_prior, domains_in(batch, self.spec))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas: means over each domain, summed over domains."""
        data = by_domain(batch, self.scaling(batch.x), self.spec)
        z = self.noise(max(map(len, data)), generator)
        if player == "generator":
            with statistics_of(self.generator):
                samples = self.generator(z)
            fakes = self.discriminator(samples)
            reals = self.discriminator(data) if self.adversarial.sees_real else [None] * len(fakes)
            each = [self.adversarial.generator(fake, real) for fake, real in zip(fakes, reals, strict=True)]
        else:
            with torch.no_grad():
                samples = self.generator(z)
            fakes = self.discriminator(samples)
            with statistics_of(self.discriminator):
                reals = self.discriminator(data)
            each = [self.adversarial.discriminator(real, fake) for real, fake in zip(reals, fakes, strict=True)]
        return torch.stack(each).sum(), {f"domain_{k}": loss.detach() for k, loss in enumerate(each)}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    def noise(self, n: int, generator: Generator | None) -> Float[Tensor, "n latent"]:
        """Latents from N(0, I)."""
        return torch.randn(n, self.latent, device=self.domain_log_prior.device, generator=generator)

    def picked(self, z: Float[Tensor, "b latent"], domain: Tensor) -> Float[Tensor, " b *shape"]:
        """G_k(z), scaled, in the domain k of each row."""
        return torch.stack(self.generator(z))[domain, torch.arange(len(z), device=z.device)]

    @torch.no_grad()
    def tuples(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """n corresponding examples of all domains (n, domains, *shape), raw: one z each."""
        samples = self.generator(self.noise(n, generator))
        return torch.stack([self.scaling.inverse(x) for x in samples], 1)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n raw values G_k(z), in the domains of labels y (n,), by default as frequent as in the data."""
        domain = draw_classes(self.domain_log_prior, n, generator) if y is None else domain_of(y, self.spec)
        return self.scaling.inverse(self.picked(self.noise(n, generator), domain))

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """G_k(z), float (b, *shape) on the raw scale, of standard normal noise whose last column decides the domain."""
        domain = classes_of_noise(self.domain_log_prior, noise[:, self.latent])
        return self.scaling.unrounded(self.picked(noise[:, : self.latent], domain))
