"""What conditional models with a projection discriminator share: the game a(x, y), its turns, its power steps.

    D minimises  real(a(x, y)) + fake(a(G(z, y'), y'))       G minimises  generated(a(G(z, y'), y'))

with labels y' from the prior and the functions of ``nn.adversarial_losses``, the hinge's by default. Examples without a
label are left out.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from dgmbench.data.policy import BatchPolicy
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.gan.labelled import LabelledGame
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName
from dgmbench.nn.adversarial_pairs import ProjectionDiscriminator
from dgmbench.nn.batchnorm import statistics_of
from dgmbench.nn.labels import labels_of, one_hot
from dgmbench.nn.spectral_norm import power_step


class ProjectionGan(LabelledGame):
    """Base of models whose discriminator judges x under its label; a subclass adds both networks."""

    discriminator: ProjectionDiscriminator

    def __init__(
        self, spec: DataSpec, *, latent: int, n_critic: int, loss: AdversarialLossName | AdversarialLoss
    ) -> None:
        super().__init__(spec, latent=latent, loss=loss)
        require(least=1, n_critic=n_critic)
        if self.adversarial.sees_real:
            raise UserError(f"The generator judges samples alone; model.loss={self.adversarial} looks at data too.")
        self.n_critic = n_critic

    def batch_policy(self) -> BatchPolicy:
        """Labelled examples alone."""
        return BatchPolicy(labelled=1.0)

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        """The discriminator on every step, the generator after it on every ``n_critic``-th."""
        return ("discriminator", "generator") if (step + 1) % self.n_critic == 0 else ("discriminator",)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        x = self.scaling(batch.x)
        samples, y = self.drawn(player, len(x), generator)
        fake = self.judged(samples, y)
        if player == "generator":
            loss = self.adversarial.generator(fake)
            return loss, {"loss": loss.detach()}
        with statistics_of(self.discriminator):
            real = self.judged(x, labels_of(batch))
        loss = self.adversarial.discriminator(real, fake)
        return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}

    def judged(self, x: Tensor, y: Tensor) -> Tensor:
        """a(x, y) (b,) at scaled values x (b, *shape) and labels y (b,)."""
        return self.discriminator(x, one_hot(y, self.classes, x.dtype)).squeeze(1)

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Follow the singular vectors and take up the batch-norm statistics of the network that stepped."""
        power_step(getattr(self, player))
        super().after_step(player, batch, generator)
