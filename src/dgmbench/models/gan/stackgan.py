"""StackGAN: a picture of a caption in two stages, a small rough one first, then a large one made of it and the caption.

A caption t has an embedding phi, learned first and then kept (``nn.adversarial_captions``). What generators are
conditioned on is drawn around it, c ~ N(mu(phi), diag sigma(phi)^2): *conditioning augmentation*. With s = G_1(z, c_1)
the small picture, x_1 the data at its size, x_2 = x, and G_2(s, c_2) the large one:

    stage i   D_i minimises  L_real(a(x_i, phi)) + 1/2 L_fake(a(G_i, phi)) + 1/2 L_fake(a(x_i, phi of another caption))
              G_i minimises  L_G(a(G_i, phi)) + kl_weight E KL(N(mu_i(phi), diag sigma_i(phi)^2) || N(0, I))

with the terms of a loss of ``nn.adversarial_losses``. D_i has to see that a real picture with a wrong caption is
wrong, too. G_1 is fixed in stage 2; G_2 sees s and no other noise but that of c_2.

Shapes and units: raw x (b, c, side, side), scaled to [-1, 1]; captions (b, t) tokens; small pictures have a side of
side / scale; KL is the sum over the dimensions of c, in nats. Until stage 2 begins, samples are stage 1's, enlarged.

Paper: Zhang et al. 2017, https://arxiv.org/abs/1612.03242.

What differs: the paper takes phi from a network trained elsewhere on pictures and captions; here a first stage does so
on the data's own (Reed et al. 2016, with a softmax over the batch in place of the hinge). Sides are the data's (the
paper's are 64 and 256), so the large picture is ``scale`` = 2 and not 4 times the small one. The authors' code averages
the KL over the dimensions where the paper has their sum, as here.
"""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.gan.captioned import ScoredByDraws
from dgmbench.nn.adversarial import with_planes
from dgmbench.nn.adversarial_captions import (
    CaptionEmbedding,
    ConditioningAugmentation,
    PairDiscriminator,
    Picture,
    Residual,
    Seed,
    captions_of,
    doublings,
    mixed,
    up,
)
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.batchnorm import BatchNorm, absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling


class FirstGenerator(nn.Module):
    """(z, phi) -> small scaled pictures, and the KL of what they are conditioned on."""

    def __init__(
        self, spec: DataSpec, *, side: int, embedding: int, condition: int, latent: int, channels: int
    ) -> None:
        super().__init__()
        self.augmentation = ConditioningAugmentation(embedding, condition)
        self.net = nn.Sequential(Seed(latent + condition, side=side, channels=channels), Picture(channels, spec))

    def forward(
        self, z: Float[Tensor, "b z"], phi: Float[Tensor, "b e"], generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Pictures (b, c, side, side) and a scalar."""
        c, kl = self.augmentation.draw(phi, generator)
        return self.net(torch.cat([z, c], 1)), kl


class SecondGenerator(nn.Module):
    """(small picture, phi) -> large scaled pictures: made smaller, joined with c, residual blocks, made larger."""

    def __init__(
        self, spec: DataSpec, *, side: int, scale: int, embedding: int, condition: int, channels: int, blocks: int
    ) -> None:
        super().__init__()
        self.augmentation = ConditioningAugmentation(embedding, condition)
        halvings = min(2, doublings(side))
        width = channels * 2**halvings
        down: list[nn.Module] = [nn.Conv2d(spec.shape[0], channels, 3, padding=1), nn.ReLU()]
        for k in range(halvings):
            after = channels * 2 ** (k + 1)
            down += [nn.Conv2d(after // 2, after, 4, 2, 1, bias=False), BatchNorm(after), nn.ReLU()]
        self.down, self.join = nn.Sequential(*down), mixed(width + condition, width)
        self.blocks = nn.Sequential(*[Residual(width) for _ in range(blocks)])
        doubled = halvings + scale.bit_length() - 1
        widths = [max(channels, width // 2**k) for k in range(doubled + 1)]
        self.up = nn.Sequential(*[up(widths[k], widths[k + 1]) for k in range(doubled)], Picture(widths[-1], spec))

    def forward(
        self, small: Float[Tensor, "b c h w"], phi: Float[Tensor, "b e"], generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Pictures (b, c, scale h, scale w) and a scalar."""
        c, kl = self.augmentation.draw(phi, generator)
        return self.up(self.blocks(self.join(with_planes(self.down(small), c)))), kl


class StackGan(ScoredByDraws):
    """Pictures of captions in two stages, with conditioning augmentation (Zhang et al. 2017).

    Args:
        spec: the data's space, square images given tokens.
        scale: how many times larger the pictures of stage 2 are, a power of two.
        latent: dimensions of the noise z.
        embedding: dimensions of phi.
        condition: dimensions of c, and planes that phi becomes in a discriminator.
        channels: maps of a generator at its largest side, doubling with each halving.
        judge_channels: maps of a discriminator's first layer, doubling likewise.
        blocks: residual blocks of stage 2.
        width: of the embeddings of words and of the state of the network that reads captions.
        loss: an object of ``nn.adversarial_losses`` or its name.
        kl_weight: weight of the KL.
        embedding_share: share of the budget for learning phi.
        first_share: share of the budget for stage 1; the rest is for stage 2.
    """

    second_stage: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        scale: int = 4,
        latent: int = 100,
        embedding: int = 1024,
        condition: int = 128,
        channels: int = 64,
        judge_channels: int = 64,
        blocks: int = 4,
        width: int = 64,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        kl_weight: float = 1.0,
        embedding_share: float = 0.1,
        first_share: float = 0.45,
    ) -> None:
        super().__init__(spec)
        captions_of(spec)
        require(least=1, latent=latent, embedding=embedding, condition=condition, channels=channels)
        require(least=1, judge_channels=judge_channels, blocks=blocks, width=width)
        require(least=0, kl_weight=kl_weight)
        require(above=0, below=1, embedding_share=embedding_share, first_share=first_share)
        if embedding_share + first_share >= 1:
            raise UserError(
                f"model.embedding_share={embedding_share} and model.first_share={first_share} leave nothing of the "
                "budget for stage 2; together they must be below 1."
            )
        side = spec.shape[1]
        if scale < 2 or scale & (scale - 1) or side % scale or side // scale < 8:
            raise UserError(
                f"model.scale={scale} must be a power of two, at least 2, that leaves small pictures of 8 pixels or "
                f"more; the data's side is {side}."
            )
        self.small, self.latent, self.kl_weight = side // scale, latent, kl_weight
        self.shares = {"embedding": embedding_share, "first": first_share, "second": 1 - embedding_share - first_share}
        self.adversarial = adversarial_loss(loss)
        self.scaling = Scaling(spec)
        self.embedding = CaptionEmbedding(spec, embedding=embedding, width=width, channels=judge_channels)
        self.first = FirstGenerator(
            spec, side=self.small, embedding=embedding, condition=condition, latent=latent, channels=channels
        )
        self.second = SecondGenerator(
            spec,
            side=self.small,
            scale=scale,
            embedding=embedding,
            condition=condition,
            channels=channels,
            blocks=blocks,
        )
        self.first_judge, self.second_judge = (
            PairDiscriminator(
                spec,
                side=own,
                channels=judge_channels,
                embedding=embedding,
                condition=condition,
                alone=False,
                bias=self.adversarial.sees_constant,
            )
            for own in (self.small, side)
        )
        self.register_buffer("second_stage", torch.tensor(False))

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The embedding, and a discriminator and a generator of each stage."""
        names = ("embedding", "first_judge", "first", "second_judge", "second")
        return {name: list(getattr(self, name).parameters()) for name in names}

    def stages(self) -> tuple[Stage, ...]:
        """The embedding first, then small pictures, then large ones."""
        return (
            Stage("embedding", ("embedding",), self.shares["embedding"]),
            Stage("first", ("first_judge", "first"), self.shares["first"]),
            Stage("second", ("second_judge", "second"), self.shares["second"]),
        )

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """From the second stage on, samples are its large pictures."""
        self.second_stage.fill_(stage.name == "second")

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        x, captions = self.scaling(batch.x), self.captions(batch.given)
        if player == "embedding":
            loss = self.embedding.loss(x, captions)
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            phi = self.embedding(captions)
        if player.endswith("_judge"):
            return self._judged(x, phi, second=player == "second_judge", generator=generator)
        judge = self.second_judge if player == "second" else self.first_judge
        with statistics_of(getattr(self, player)):
            pictures, kl = self.pictures(phi, second=player == "second", generator=generator)
        fake, real = judge.pair(judge.features(pictures), phi), None
        if self.adversarial.sees_real:
            with torch.no_grad():
                real = judge.pair(judge.features(self.sized(x, second=player == "second")), phi)
        game = self.adversarial.generator(fake, real)
        loss = game + self.kl_weight * kl
        return loss, {"loss": loss.detach(), "game": game.detach(), "kl": kl.detach()}

    def _judged(self, x: Tensor, phi: Tensor, *, second: bool, generator: Generator) -> tuple[Tensor, Logs]:
        """What a discriminator minimises; the wrong caption of a picture is that of the one before it."""
        judge = self.second_judge if second else self.first_judge
        with torch.no_grad():
            pictures, _ = self.pictures(phi, second=second, generator=generator)
        fake = judge.pair(judge.features(pictures), phi)
        with statistics_of(judge):
            features = judge.features(self.sized(x, second=second))
            real = judge.pair(features, phi)
        wrong = judge.pair(features, phi.roll(1, 0))
        terms = [self.adversarial.discriminator(real, other) for other in (fake, wrong)]
        logs = {"real": real, "fake": fake, "wrong": wrong}
        loss = 0.5 * (terms[0] + terms[1])
        return loss, {"loss": loss.detach(), **{name: value.mean().detach() for name, value in logs.items()}}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    def pictures(
        self, phi: Float[Tensor, "b e"], *, second: bool, generator: Generator | None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, ""]]:
        """Scaled samples of a stage under embeddings, and the KL of its augmentation."""
        z = torch.randn(len(phi), self.latent, device=phi.device, generator=generator)
        if not second:
            return self.first(z, phi, generator)
        with torch.no_grad():
            small, _ = self.first(z, phi, generator)
        return self.second(small, phi, generator)

    def sized(self, x: Float[Tensor, "b c h w"], *, second: bool) -> Float[Tensor, "b c i j"]:
        """Scaled data at a stage's size: means over squares of pixels."""
        return x if second else F.adaptive_avg_pool2d(x, self.small)

    def captions(self, given: Int[Tensor, "b t"] | None) -> Int[Tensor, "b t"]:
        """The captions; without any there is nothing to draw."""
        if given is None:
            raise UserError("stackgan draws pictures of captions: pass given=, tokens of one for each picture.")
        return given

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """One raw picture of each caption (n, t); small ones, enlarged by repetition, until stage 2 begins."""
        phi = self.embedding(self.captions(given))
        x, _ = self.pictures(phi, second=bool(self.second_stage), generator=generator)
        return self.scaling.inverse(F.interpolate(x, self.spec.shape[1:], mode="nearest"))
