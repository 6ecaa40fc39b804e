"""What adversarial models of labelled data share: a generator G(z, y), its label prior, its draws.

Some labels may be unknown (-1). Samples for training take labels from the prior, the frequencies of the known ones, so
that unlabelled examples take part in whatever asks for no label of theirs.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Model
from dgmbench.nn.adversarial import Labels, NetName, make_generator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.labels import classes_of_noise, count_classes, draw_classes, one_hot, start_class_prior
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.truncation import cut, normal_noise


class LabelledGame(Model):
    """Base of models with a generator G(z, y); a subclass adds both networks and the two losses."""

    class_log_prior: Tensor
    discriminator: nn.Module
    generator: nn.Module
    truncation: float | None = None
    """Samples take z from N(0, I) cut to |z_i| <= truncation; training never does."""

    def __init__(self, spec: DataSpec, *, latent: int, loss: AdversarialLossName | AdversarialLoss) -> None:
        super().__init__(spec)
        require(least=1, latent=latent)
        start_class_prior(self, spec)  # refuses data without labels
        self.adversarial = adversarial_loss(loss)
        self.latent, self.noise_dim, self.classes = latent, latent + 1, len(self.class_log_prior)
        self.scaling = Scaling(spec)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two networks."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def batch_policy(self) -> BatchPolicy:
        """Half of every batch is labelled where some examples are not: the others show what data look like."""
        return BatchPolicy(labelled=0.5)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Keep the frequencies of the known labels."""
        count_classes(self.class_log_prior, batch.y)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    def generated(self, z: Float[Tensor, "b latent"], y: Tensor) -> Float[Tensor, " b *shape"]:
        """G(z, y), scaled, for labels y (b,)."""
        return self.generator(z, one_hot(y, self.classes, z.dtype))

    def drawn(self, player: str, n: int, generator: Generator) -> tuple[Float[Tensor, " n *shape"], Tensor]:
        """Samples G(z, y) and their labels, drawn from the prior; only the generator's loss gets gradients of them."""
        y = draw_classes(self.class_log_prior, n, generator)
        z = self.noise(n, generator)
        if player == "generator":
            with statistics_of(self.generator):
                return self.generated(z, y), y
        with torch.no_grad():
            return self.generated(z, y), y

    def noise(
        self, n: int, generator: Generator | None, *, truncation: float | None = None
    ) -> Float[Tensor, "n latent"]:
        """Latents from N(0, I), or from its truncation."""
        device = self.class_log_prior.device
        return normal_noise(n, self.latent, device=device, generator=generator, truncation=truncation)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """n raw values G(z, y), rounded to the levels, of classes y (n,), by default as frequent as in the data."""
        y = draw_classes(self.class_log_prior, n, generator) if y is None else y
        z = self.noise(n, generator, truncation=self.truncation)
        return self.scaling.inverse(self.generated(z, y))

    def generate(self, noise: Float[Tensor, "b n"]) -> Tensor:
        """G(z, y), float (b, *shape) on the raw scale, of standard normal noise whose last column decides the label."""
        y = classes_of_noise(self.class_log_prior, noise[:, self.latent])
        return self.scaling.unrounded(self.generated(cut(noise[:, : self.latent], self.truncation), y))


class LabelledGan(LabelledGame):
    """The same with a generator of ``nn.adversarial``; a subclass adds ``discriminator`` and the two losses."""

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName,
        latent: int,
        hidden_sizes: Sequence[int],
        channels: int,
        loss: AdversarialLossName | AdversarialLoss,
        labels: Labels = "joined",
    ) -> None:
        super().__init__(spec, latent=latent, loss=loss)
        require(least=1, hidden_sizes=hidden_sizes, channels=channels)
        self.generator = make_generator(
            net,
            spec,
            latent=latent,
            hidden_sizes=tuple(hidden_sizes),
            channels=channels,
            classes=self.classes,
            labels=labels,
        )
