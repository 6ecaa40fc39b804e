"""S3GAN: a conditional GAN of few labels, whose discriminator tells rotations apart and labels the rest by itself.

On the features phi of a projection discriminator, a(x, y) = psi(phi(x)) + <V y, phi(x)>, stand two further linear
heads: one names the class of x and learns from labelled data, the other names by which of four quarter turns R a
picture was turned and learns from all. An unlabelled picture enters the game with the class that the first head finds
most probable, y^(x):

    D minimises  E_data [1 - a(x, y or y^)]_+ + E_{z,y} [1 + a(G(z, y), y)]_+
                 + label_weight E_labelled -log P(y|x) + rotation_weight E_{data, r} -log P(R = r | x turned r times)
    G minimises  -E_{z,y} a(G(z, y), y) + generator_rotation_weight E_{z,y,r} -log P(R = r | G(z, y) turned r times)

with the hinge loss. With all labels this is the class-conditional model plus the rotation loss (and a class head that
nothing but the features' training depends on; ``label_weight=0`` removes that). No gradient passes through y^.

Shapes and units: raw x (b, c, side, side), scaled to [-1, 1]; labels (b,), -1 where unknown; z (b, latent) ~ N(0, I);
each expectation is a mean over those of the batch that it is about; a quarter of the batch is turned, in all four ways.

Paper: Lucic, Tschannen, Ritter, Zhai, Bachem, Gelly 2019, https://arxiv.org/abs/1903.02271 (S3GAN with the classifier
trained beside the GAN, section 3.2 there); weights are those of the authors' code.

What differs: the networks are this project's, in place of BigGAN's, without spectral norm, self-attention and
hierarchical z: residual or DCGAN's with conditional batch-norm in the generator, or mlps.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.gan.labelled import LabelledGan
from dgmbench.nn.adversarial import NetName
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName
from dgmbench.nn.adversarial_pairs import ProjectionDiscriminator, make_projection_discriminator
from dgmbench.nn.batchnorm import statistics_of
from dgmbench.nn.labels import label_nll, labels_of, one_hot

TURNS = 4


class HeadedDiscriminator(nn.Module):
    """A projection discriminator with heads for the class and for the rotation on its features."""

    def __init__(self, game: ProjectionDiscriminator, *, classes: int) -> None:
        super().__init__()
        self.game = game
        features = game.embedding.out_features
        self.label_head, self.turn_head = nn.Linear(features, classes), nn.Linear(features, TURNS)

    def outputs(self, features: Float[Tensor, "b f"], labels: Float[Tensor, "b classes"]) -> Float[Tensor, " b"]:
        """a(x, y) at features of x and one-hot labels."""
        projection = (self.game.embedding(labels) * features).sum(1)
        return self.game.net.outputs(features).squeeze(1) + projection


class S3Gan(LabelledGan):
    """A conditional GAN that labels its own data and tells rotations apart (Lucic et al. 2019).

    Args:
        spec: square images, with labels.
        net: the networks: ``resnet`` or ``dcgan``, whose generator takes the label in its batch-norm, or ``mlp``.
        latent: dimensions of the noise z.
        hidden_sizes: hidden layers of the mlp generator; the mlp discriminator has them in reverse.
        channels: width of the convolutional nets, as in ``Gan``.
        label_weight: of the class head's loss.
        rotation_weight: of the rotation loss on data, for the discriminator.
        generator_rotation_weight: of the rotation loss on samples, for the generator.
        n_critic: discriminator steps, each on a batch of its own, to one generator step, on the last of them.
        loss: an object of ``nn.adversarial_losses`` or its name.
    """

    discriminator: HeadedDiscriminator

    def __init__(
        self,
        spec: DataSpec,
        *,
        net: NetName = "resnet",
        latent: int = 120,
        hidden_sizes: Sequence[int] = (256, 256),
        channels: int = 64,
        label_weight: float = 1.0,
        rotation_weight: float = 1.0,
        generator_rotation_weight: float = 0.2,
        n_critic: int = 2,
        loss: AdversarialLossName | AdversarialLoss = "hinge",
    ) -> None:
        if not (spec.is_image and spec.shape[1] == spec.shape[2]):
            raise UserError(f"s3gan turns its pictures, so it takes square images, not {spec}; choose other data.")
        super().__init__(
            spec,
            net=net,
            latent=latent,
            hidden_sizes=hidden_sizes,
            channels=channels,
            loss=loss,
            labels="joined" if net == "mlp" else "batch_norm",
        )
        require(least=1, n_critic=n_critic)
        require(least=0, label_weight=label_weight, rotation_weight=rotation_weight)
        require(least=0, generator_rotation_weight=generator_rotation_weight)
        if self.adversarial.sees_real:
            raise UserError(f"s3gan's generator judges samples alone; loss={self.adversarial} looks at data too.")
        self.n_critic, self.label_weight = n_critic, label_weight
        self.turn_weights = {"discriminator": rotation_weight, "generator": generator_rotation_weight}
        sizes = tuple(hidden_sizes)[::-1]
        # Within the hinge's margins data and samples pull at a bias with equal force, so there is none.
        game = make_projection_discriminator(
            net, spec, classes=self.classes, hidden_sizes=sizes, channels=channels, bias=False
        )
        self.discriminator = HeadedDiscriminator(game, classes=self.classes)

    def turn(self, step: int, stage: object) -> Sequence[str]:
        """The discriminator on every step, the generator after it on every ``n_critic``-th."""
        return ("discriminator", "generator") if (step + 1) % self.n_critic == 0 else ("discriminator",)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as means over the batch."""
        d, x, truth = self.discriminator, self.scaling(batch.x), labels_of(batch)
        samples, y = self.drawn(player, len(x), generator)
        fake = d.outputs(d.game.features(samples), one_hot(y, self.classes, x.dtype))
        if player == "generator":
            game, rotation = self.adversarial.generator(fake), self.rotation_nll(samples)
            loss = game + self.turn_weights[player] * rotation
            return loss, {"game": game.detach(), "rotation": rotation.detach()}
        with statistics_of(d):
            h = d.game.features(x)
        scores = d.label_head(h)
        real = d.outputs(h, one_hot(self.completed(truth, scores), self.classes, x.dtype))
        game, labels, rotation = (
            self.adversarial.discriminator(real, fake),
            label_nll(scores, truth),
            self.rotation_nll(x),
        )
        loss = game + self.label_weight * labels + self.turn_weights[player] * rotation
        logs = {"game": game, "labels": labels, "rotation": rotation, "real": real.mean(), "fake": fake.mean()}
        return loss, {name: value.detach() for name, value in logs.items()}

    @staticmethod
    def completed(y: Tensor, scores: Float[Tensor, "b classes"]) -> Tensor:
        """Labels y (b,), in place of unknown ones the class of the largest score."""
        return torch.where(y >= 0, y, scores.argmax(1))

    def rotation_nll(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """-log P(R = r | x turned r times), the mean over all four turns r of a quarter of the pictures."""
        some = x[: max(1, len(x) // TURNS)]
        turned = torch.cat([torch.rot90(some, r, (2, 3)) for r in range(TURNS)])
        turns = torch.arange(TURNS, device=x.device).repeat_interleave(len(some))
        return F.cross_entropy(self.discriminator.turn_head(self.discriminator.game.features(turned)), turns)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Float[Tensor, "b classes"]:
        """The class head's scores of raw values x (b, *shape)."""
        return self.discriminator.label_head(self.discriminator.game.features(self.scaling(x)))
