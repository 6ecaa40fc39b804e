"""What adversarial models share whose networks grow with the training: stages, fading in, the game at every side.

A stage for each side from ``start`` pixels up to the data's. A new side fades in during the first half of its stage, by
alpha from 0 to 1; data are seen at the same side, and fade in likewise from their own half:

    x_s(alpha) = (1 - alpha) up(down(x_s)) + alpha x_s,     x_s the data at side s, means of their pixels

All sides have the same share of the budget for fading in, and the same for training on, as published; with ``pace``
each has that many times the share of the one before.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Parameters, Stage
from dgmbench.nn.adversarial_growing import GrowingDiscriminator, doubled, halved, sides_of
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.scaling import Scaling

FADE = 0.5  # share of a stage in which its side fades in


class GrowingGan(Model):
    """Base of models that grow; a subclass adds the generator, its images and the discriminator's penalty."""

    level: Tensor
    alpha: Tensor
    generator: nn.Module

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int,
        capacity: int,
        group: int,
        start: int | None,
        pace: float,
        loss: AdversarialLossName | AdversarialLoss,
        first: int = 0,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, capacity=capacity, group=group)
        self.sides = sides_of(spec)
        start = self.sides[first] if start is None else start
        if start not in self.sides:
            raise UserError(f"model.start={start} must be one of {self.sides}, the sides up to that of the data.")
        self.adversarial = adversarial_loss(loss)
        if self.adversarial.sees_real:
            raise UserError(f"The generator judges samples alone; model.loss={self.adversarial} looks at data too.")
        require(above=0, pace=pace)
        self.first_level, self.pace = self.sides.index(start), pace
        self.scaling = Scaling(spec)
        self.maps = [max(1, min(channels, capacity // side)) for side in self.sides]
        self.discriminator = GrowingDiscriminator(spec.shape[0], self.sides, self.maps, group=group)
        self.register_buffer("level", torch.tensor(len(self.sides) - 1))  # full-grown, until a training begins
        self.register_buffer("alpha", torch.tensor(1.0))

    def players(self) -> "dict[str, Parameters]":
        """The two networks."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def stages(self) -> tuple[Stage, ...]:
        """One for each side; the first has nothing to fade in, so it needs the other half of a stage only."""
        players = tuple(self.players())
        return tuple(
            Stage(f"side_{side}", players, self.pace**k * (1.0 if k else 1 - FADE))
            for k, side in enumerate(self.sides[self.first_level :])
        )

    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Grow to the stage's side."""
        self.level.fill_(self.sides.index(int(stage.name.removeprefix("side_"))))

    def advance(self, stage: Stage, share: float) -> None:
        """Fade in, but for the first side."""
        begins = int(self.level) == self.first_level
        self.alpha.fill_(1.0 if begins else min(1.0, share / FADE))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player``, as a mean over the batch."""
        n = len(batch.x)
        if player == "generator":
            loss = self.adversarial.generator(self.judged(self.drawn(n, generator)))
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            samples = self.drawn(n, generator)
        data = self.seen(self.scaling(batch.x))
        real, fake = self.judged(data), self.judged(samples)
        loss = self.adversarial.discriminator(real, fake)
        penalty = self.penalty(data, samples, real, generator)
        logs = {"loss": loss, "real": real.mean(), "fake": fake.mean(), "penalty": penalty}
        return loss + penalty, {name: value.detach() for name, value in logs.items()}

    @abstractmethod
    def drawn(self, n: int, generator: Generator | None) -> Float[Tensor, "n c h w"]:
        """n scaled images at the side of now, as the generator is trained on them."""

    @abstractmethod
    def penalty(self, data: Tensor, samples: Tensor, real: Tensor, generator: Generator) -> Tensor:
        """What the discriminator minimises besides its game, at data with outputs ``real`` (n,) and at samples."""

    def judged(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The discriminator's outputs at scaled images of the side of now."""
        return self.discriminator(x, int(self.level), float(self.alpha))

    def seen(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """Scaled data at the side of now, fading in as the networks do."""
        for _ in range(len(self.sides) - 1 - int(self.level)):
            x = halved(x)
        alpha = float(self.alpha)
        return x if alpha == 1 else torch.lerp(doubled(halved(x)), x, alpha)

    def enlarged(self, x: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c h w"]:
        """Images of the side of now at that of the data, by larger pixels, and within their bounds."""
        x = F.interpolate(x, self.spec.shape[1:])
        return x.clamp(-1, 1) if self.scaling.bounded else x
