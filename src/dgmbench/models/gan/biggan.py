"""BigGAN: a conditional GAN made to grow, in width and in batch, whose samples trade variety for quality afterwards.

G(z, y) takes the label at every level, by one embedding e(y) that all levels share, and the noise, too: a part of z at
each level (hierarchical latents), or with ``arch="deep"`` the whole of it, beside bottlenecks and twice as many blocks.
The discriminator is one by projection, a(x, y) = psi(phi(x)) + <V y, phi(x)>, and both networks attend to all
positions at one level and divide their weights by the largest singular value:

    D minimises  E_data max(0, 1 - a(x, y)) + E_{z,y} max(0, 1 + a(G(z, y), y))         twice to one step of G
    G minimises  -E_{z,y} a(G(z, y), y) + orthogonality sum_W ||W W' o (1 - I)||^2

over the weights W of G, which the second term holds near orthogonal rows, so that G is smooth where z is cut: samples
may take z from N(0, I) with |z_i| <= truncation, of fewer kinds and better quality.

Shapes and units: raw x (b, c, side, side) is scaled to [-1, 1] (``real`` data pass unchanged); labels (b,); z (b,
latent) ~ N(0, I); losses are means over the batch, without a unit.

Paper: Brock, Donahue, Simonyan 2019, https://arxiv.org/abs/1809.11096 (sections 3 and 4, appendix B).

What differs: the penalty is on W W' where the paper prints W' W, as in the authors' code: rows are outputs. Attention
is that of ``nn.attention``, at half of the image's side by default. Large batches (2048 there) are
``trainer.accumulate``, averaged weights ``trainer.ema``, and batch-norm's statistics for sampling are measured at both
the averaged weights and the truncation (``training.standing``, and ``settle`` here).
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.gan.projection import ProjectionGan
from dgmbench.nn.adversarial import base_and_doublings, joined
from dgmbench.nn.adversarial_attention import AttentiveDiscriminator, AttentiveGenerator
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName
from dgmbench.nn.adversarial_pairs import ProjectionDiscriminator
from dgmbench.nn.batchnorm import moments_layers, statistics_of
from dgmbench.nn.labels import draw_classes
from dgmbench.nn.orthogonal import orthogonal_penalty, start_orthogonal
from dgmbench.nn.spectral_norm import spectral_normalise

Arch = Literal["plain", "deep"]

PART, WHOLE = 20, 128
"""Dimensions of z: at every level (table 4 there), and in all with ``arch="deep"`` (appendix B)."""

DEPTH = 2
"""Bottlenecks to a side (tables 7 to 9 there)."""

PASSES, PASS = 16, 100
"""Batches, and samples in each, over which batch-norm's statistics are measured at a truncation."""


class LevelledGenerator(nn.Module):
    """G(z, y): the blocks get the shared embedding e(y) and their part of z, or (``deep``) the whole of z."""

    def __init__(
        self,
        spec: DataSpec,
        *,
        latent: int,
        classes: int,
        embedding: int,
        channels: int,
        attention: int,
        bottlenecks: int,
    ) -> None:
        super().__init__()
        self.deep = bottlenecks > 0
        self.levels = 1 if self.deep else 1 + base_and_doublings(spec, "resnet")[1]
        self.embedding = nn.Linear(classes, embedding, bias=False)
        condition = embedding + latent // self.levels
        self.net = AttentiveGenerator(
            spec,
            latent=condition if self.deep else latent // self.levels,
            condition=condition,
            channels=channels,
            attention=attention,
            bottlenecks=bottlenecks,
        )

    def forward(self, z: Float[Tensor, "b latent"], labels: Float[Tensor, "b classes"]) -> Float[Tensor, "b c h w"]:
        """Scaled images at latents z with one-hot labels."""
        e = self.embedding(labels)
        if self.deep:
            return self.net(joined(z, e), joined(z, e))
        first, *others = z.chunk(self.levels, 1)
        return self.net(first, [joined(part, e) for part in others])


class BigGan(ProjectionGan):
    """A conditional GAN with shared class embedding and latents at every level (Brock et al. 2019).

    Args:
        spec: square images, with labels.
        arch: ``plain``, or ``deep`` for BigGAN-deep.
        latent: dimensions of the noise z; by default 20 for each of the generator's levels, or 128 if it is deep.
        embedding: dimensions of the class embedding that all blocks of the generator share.
        channels: maps at the highest resolution of a network for 128 pixels; the others have multiples of it.
        depth: blocks to a side with ``arch="deep"``; 2 by default. There is one with ``plain``.
        attention: side of the maps with self-attention in both networks; half of the image's by default, 0 for none.
        orthogonality: weight of the penalty on products of different rows of G's weights.
        truncation: samples take z from the normal distribution cut to |z_i| <= truncation; training never does.
        n_critic: discriminator steps, each on a batch of its own, to one generator step, on the last of them.
        loss: an object of ``nn.adversarial_losses`` or its name.
    """

    generator: LevelledGenerator

    def __init__(
        self,
        spec: DataSpec,
        *,
        arch: Arch = "plain",
        latent: int | None = None,
        embedding: int = 128,
        channels: int = 96,
        depth: int | None = None,
        attention: int | None = None,
        orthogonality: float = 1e-4,
        truncation: float | None = None,
        n_critic: int = 2,
        loss: AdversarialLossName | AdversarialLoss = "hinge",
    ) -> None:
        if arch not in ("plain", "deep"):
            raise UserError(f"model.arch must be plain or deep, not '{arch}'.")
        deep, levels = arch == "deep", 1 + base_and_doublings(spec, "resnet")[1]
        if depth is not None and not deep:
            raise UserError(f"model.depth={depth} counts bottlenecks; leave it out, or set model.arch=deep.")
        bottlenecks = depth or DEPTH if deep else 0
        if latent is None:
            latent = WHOLE if deep else PART * levels
        super().__init__(spec, latent=latent, n_critic=n_critic, loss=loss)
        require(least=1, embedding=embedding, channels=channels, depth=depth)
        require(least=0, orthogonality=orthogonality, attention=attention)
        require(above=0, truncation=truncation)
        if not deep and latent % levels:
            raise UserError(
                f"model.latent={latent} must be a multiple of {levels}, for each of the generator's {levels} levels "
                f"takes an equal part of z; {latent // levels * levels or levels} is."
            )
        self.orthogonality, self.truncation = orthogonality, truncation
        side = spec.shape[-1] // 2 if attention is None else attention
        self.generator = LevelledGenerator(
            spec,
            latent=latent,
            classes=self.classes,
            embedding=embedding,
            channels=channels,
            attention=side,
            bottlenecks=bottlenecks,
        )
        game = AttentiveDiscriminator(
            spec, channels=channels, attention=side, bottlenecks=bottlenecks, bias=self.adversarial.sees_constant
        )
        self.discriminator = ProjectionDiscriminator(game, classes=self.classes, features=game.head.in_features)
        for network in (self.generator, self.discriminator):
            start_orthogonal(network)
        spectral_normalise(self.generator.net)  # the embedding is free: its length says how much the label counts
        spectral_normalise(self.discriminator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        loss, logs = super().loss(player, batch, generator)
        if player != "generator" or not self.orthogonality:
            return loss, logs
        penalty = orthogonal_penalty(self.penalised().values())
        return loss + self.orthogonality * penalty, {**logs, "orthogonality": penalty.detach()}

    def penalised(self) -> Mapping[str, Tensor]:
        """The weights that should have orthogonal rows, before spectral normalisation: all of G's but the embedding."""
        return {name: p for name, p in self.generator.net.named_parameters() if p.dim() > 1}

    def settle(self, batches: Iterator[Batch], generator: Generator) -> None:
        """Measure batch-norm's statistics for samples at the truncation, if there is one."""
        if self.truncation is not None:
            self.stand(generator)

    def truncate(self, truncation: float, generator: Generator | None = None) -> None:
        """Draw samples at this truncation from now on, with batch-norm's statistics for them."""
        require(above=0, truncation=truncation)
        self.truncation = truncation
        self.stand(generator)  # batch-norm sees other moments there

    @torch.no_grad()
    def stand(self, generator: Generator | None = None) -> None:
        """Set the generator's batch-norm statistics to the mean moments of samples at the truncation."""
        layers, training = [layer for _, layer in moments_layers(self.generator)], self.training
        kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
        self.generator.train()
        for _ in range(PASSES):
            y = draw_classes(self.class_log_prior, PASS, generator)
            with statistics_of(self.generator):
                self.generated(self.noise(PASS, generator, truncation=self.truncation), y)
            for own, layer in zip(kept, layers, strict=True):
                assert layer.seen is not None
                own.append(layer.seen)
                layer.seen = None
        self.generator.train(training)
        for own, layer in zip(kept, layers, strict=True):
            layer.running_mean.copy_(torch.stack([mean for mean, _ in own]).mean(0))
            layer.running_var.copy_(torch.stack([var for _, var in own]).mean(0))
