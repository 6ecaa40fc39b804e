"""StackGAN++: one generator that makes a picture in several sizes along a tree, with a judge for each size.

All sizes are trained together: hidden maps h_0 = F_0(z, c), h_i = F_i(h_(i-1), c) each become a picture s_i = P_i(h_i),
of twice the side of the one before. Judges ask two things of every picture, whether it is real and whether it fits its
caption, and a *colour-consistency* term asks that pictures of one tree have the same colours:

    D_i minimises  L(a_i(x_i), a_i(s_i)) + 1/2 L(a_i(x_i, phi), a_i(s_i, phi)) + 1/2 L(a_i(x_i, phi), a_i(x_i, phi'))
    G minimises    sum_i { L_G(a_i(s_i)) + L_G(a_i(s_i, phi)) } + kl_weight E KL(N(mu(phi), diag sigma^2) || N(0, I))
                   + consistency sum_(i > 0) E { mean_weight ||m_i - m_(i-1)||^2 + spread_weight ||C_i - C_(i-1)||_F^2 }

with L and L_G the terms of a loss of ``nn.adversarial_losses``, x_i the data at the size of s_i, phi the embedding
of the caption and phi' that of another one, c ~ N(mu(phi), diag sigma(phi)^2); m_i and C_i are the mean colour of the
pixels of s_i and their covariance. Without captions there are no terms of pairs, no KL and no c.

Shapes and units: raw x (b, c, side, side), scaled to [-1, 1], and colours on that scale; sizes are side / 2^k up to
side.

Paper: Zhang et al. 2018, https://arxiv.org/abs/1710.10916 (StackGAN-v2 there).

What differs: phi is learned in a first stage on the data's own pictures and captions (``nn.adversarial_captions``); the
paper takes it from another network. Sizes end with the data's (64, 128, 256 in the paper). As in the authors' code and
in StackGAN, judges also see real pictures with wrong captions, which the paper's formulas leave out.
"""

import torch
from jaxtyping import Float
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
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling


class Branch(nn.Module):
    """F_i: maps joined with c, a residual block or more, and twice the side with half as many maps."""

    def __init__(self, before: int, after: int, *, condition: int, blocks: int) -> None:
        super().__init__()
        self.join = mixed(before + condition, before)
        self.net = nn.Sequential(*[Residual(before) for _ in range(blocks)], up(before, after))

    def forward(self, h: Float[Tensor, "b d h w"], c: Float[Tensor, "b c"] | None) -> Float[Tensor, "b e i j"]:
        """The next maps."""
        return self.net(self.join(with_planes(h, c)))


class Tree(nn.Module):
    """(z, phi) -> scaled pictures of every size, the smallest first, and the KL of what they are conditioned on."""

    def __init__(
        self, spec: DataSpec, *, sizes: int, latent: int, embedding: int, condition: int, channels: int, blocks: int
    ) -> None:
        super().__init__()
        if embedding:
            self.augmentation = ConditioningAugmentation(embedding, condition)
        widths = [channels * 2**k for k in reversed(range(sizes))]
        smallest = spec.shape[1] // 2 ** (sizes - 1)
        self.root = Seed(latent + condition, side=smallest, channels=widths[0])
        self.branches = nn.ModuleList(
            Branch(widths[k], widths[k + 1], condition=condition, blocks=blocks) for k in range(sizes - 1)
        )
        self.leaves = nn.ModuleList(Picture(width, spec) for width in widths)

    def forward(
        self, z: Float[Tensor, "b z"], phi: Float[Tensor, "b e"] | None, generator: Generator | None
    ) -> tuple[list[Tensor], Tensor]:
        """Pictures (b, c, side_i, side_i) of all sizes, and a scalar."""
        c, kl = (None, z.new_zeros(())) if phi is None else self.augmentation.draw(phi, generator)
        maps = [self.root(z if c is None else torch.cat([z, c], 1))]
        for branch in self.branches:
            maps.append(branch(maps[-1], c))
        return [leaf(h) for leaf, h in zip(self.leaves, maps, strict=True)], kl


class StackGanPp(ScoredByDraws):
    """Pictures in several sizes by a tree of generators, of captions or of nothing (Zhang et al. 2018).

    Args:
        spec: the data's space, square images, given tokens or nothing.
        sizes: how many sizes there are, each twice the one before.
        latent: dimensions of the noise z.
        embedding: dimensions of phi.
        condition: dimensions of c, and planes that phi becomes in a discriminator.
        channels: maps at the largest size, doubling with each halving.
        judge_channels: maps of a discriminator's first layer, doubling likewise.
        blocks: residual blocks of each branch.
        width: of the embeddings of words and of the state of the network that reads captions.
        loss: an object of ``nn.adversarial_losses`` or its name.
        kl_weight: weight of the KL.
        consistency: weight of the colour-consistency terms, alpha; by default 50 without captions and 0 with.
        mean_weight: weight of the mean colours in them, lambda_1.
        spread_weight: weight of the covariances, lambda_2.
        embedding_share: share of the budget for learning phi.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        sizes: int = 3,
        latent: int = 100,
        embedding: int = 1024,
        condition: int = 128,
        channels: int = 64,
        judge_channels: int = 64,
        blocks: int = 2,
        width: int = 64,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        kl_weight: float = 1.0,
        consistency: float | None = None,
        mean_weight: float = 1.0,
        spread_weight: float = 5.0,
        embedding_share: float = 0.1,
    ) -> None:
        super().__init__(spec)
        require(least=1, sizes=sizes, latent=latent, channels=channels, judge_channels=judge_channels, blocks=blocks)
        require(least=1, embedding=embedding, condition=condition, width=width)
        require(least=0, kl_weight=kl_weight, consistency=consistency)
        require(least=0, mean_weight=mean_weight, spread_weight=spread_weight)
        require(above=0, below=1, embedding_share=embedding_share)
        self.captioned = spec.given is not None
        if self.captioned:
            captions_of(spec)
        elif not spec.is_image or spec.shape[1] != spec.shape[2]:
            raise UserError(f"stackgan_pp takes square images, not {spec}; choose data=digits32, say.")
        if doublings(spec.shape[1]) < sizes:
            raise UserError(
                f"model.sizes={sizes} sizes need a side of at least {2 ** (sizes + 2)}, so that the smallest has 8 "
                f"pixels; the data's is {spec.shape[1]}."
            )
        self.latent, self.kl_weight, self.share = latent, kl_weight, embedding_share
        self.consistency = (0.0 if self.captioned else 50.0) if consistency is None else consistency
        self.weights = mean_weight, spread_weight
        self.adversarial, self.scaling = adversarial_loss(loss), Scaling(spec)
        own = {"embedding": embedding, "condition": condition} if self.captioned else {"embedding": 0, "condition": 0}
        if self.captioned:
            self.embedding = CaptionEmbedding(spec, embedding=embedding, width=width, channels=judge_channels)
        self.generator = Tree(spec, sizes=sizes, latent=latent, channels=channels, blocks=blocks, **own)
        bias = self.adversarial.sees_constant
        self.discriminator = nn.ModuleList(
            PairDiscriminator(spec, side=spec.shape[1] // 2**k, channels=judge_channels, alone=True, bias=bias, **own)
            for k in reversed(range(sizes))
        )

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The embedding, all discriminators as one player, and the tree."""
        names = (["embedding"] if self.captioned else []) + ["discriminator", "generator"]
        return {name: list(getattr(self, name).parameters()) for name in names}

    def stages(self) -> tuple[Stage, ...]:
        """The embedding, if there are captions, then the game of all sizes."""
        game = Stage("game", ("discriminator", "generator"), 1 - self.share)
        return (Stage("embedding", ("embedding",), self.share), game) if self.captioned else (game,)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        x = self.scaling(batch.x)
        if player == "embedding":
            assert batch.given is not None
            loss = self.embedding.loss(x, batch.given)
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            phi = self.phi(batch.given)
        data = [F.adaptive_avg_pool2d(x, x.shape[2] // 2**k) for k in reversed(range(len(self.discriminator)))]
        if player == "discriminator":
            with torch.no_grad():
                pictures, _ = self.pictures(len(x), phi, generator)
            each = [self._judged(k, *sized, phi) for k, sized in enumerate(zip(data, pictures, strict=True))]
            loss = torch.stack(each).sum()
            return loss, {"loss": loss.detach(), **{f"size_{k}": value.detach() for k, value in enumerate(each)}}
        with statistics_of(self.generator):
            pictures, kl = self.pictures(len(x), phi, generator)
        each = [self._fooled(k, *sized, phi) for k, sized in enumerate(zip(data, pictures, strict=True))]
        game, colours = torch.stack(each).sum(), self.inconsistency(pictures)
        loss = game + self.kl_weight * kl + self.consistency * colours
        parts = {"loss": loss, "game": game, "kl": kl, "colours": colours}
        return loss, {name: value.detach() for name, value in parts.items()}

    def _judged(self, k: int, x: Tensor, s: Tensor, phi: Tensor | None) -> Tensor:
        """What one discriminator minimises; the wrong caption of a picture is that of the one before it."""
        judge = self.judge(k)
        fake = judge.features(s)
        with statistics_of(judge):
            real = judge.features(x)
            pair = None if phi is None else judge.pair(real, phi)
        loss = self.adversarial.discriminator(judge.single(real), judge.single(fake))
        if phi is None or pair is None:
            return loss
        others = judge.pair(fake, phi), judge.pair(real, phi.roll(1, 0))
        return loss + 0.5 * torch.stack([self.adversarial.discriminator(pair, other) for other in others]).sum()

    def _fooled(self, k: int, x: Tensor, s: Tensor, phi: Tensor | None) -> Tensor:
        """What the generator minimises at one size."""
        judge = self.judge(k)
        fake, real = judge.features(s), None
        if self.adversarial.sees_real:
            with torch.no_grad():
                real = judge.features(x)
        loss = self.adversarial.generator(judge.single(fake), None if real is None else judge.single(real))
        if phi is None:
            return loss
        return loss + self.adversarial.generator(judge.pair(fake, phi), None if real is None else judge.pair(real, phi))

    def judge(self, k: int) -> PairDiscriminator:
        """The discriminator of the k-th size, the smallest first."""
        judge = self.discriminator[k]
        assert isinstance(judge, PairDiscriminator)
        return judge

    def inconsistency(self, pictures: list[Tensor]) -> Float[Tensor, ""]:
        """The colour-consistency terms of pictures of all sizes, a mean over the batch."""
        found = [colours(picture) for picture in pictures]
        terms = [pictures[0].new_zeros(())]
        for (mean, spread), (before, spread_before) in zip(found[1:], found, strict=False):
            apart = (mean - before).square().sum(1).mean(), (spread - spread_before).square().sum((1, 2)).mean()
            terms.append(self.weights[0] * apart[0] + self.weights[1] * apart[1])
        return torch.stack(terms).sum()

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the networks that stepped."""
        absorb_statistics(getattr(self, player))

    def phi(self, captions: Tensor | None) -> Tensor | None:
        """Embeddings of captions, None where the data have none."""
        if self.captioned and captions is None:
            raise UserError("This stackgan_pp draws pictures of captions: pass given=, tokens of one for each picture.")
        return self.embedding(captions) if self.captioned else None

    def pictures(self, n: int, phi: Tensor | None, generator: Generator | None) -> tuple[list[Tensor], Tensor]:
        """n scaled samples of all sizes, the smallest first, and the KL of the augmentation."""
        device = next(self.parameters()).device
        return self.generator(torch.randn(n, self.latent, device=device, generator=generator), phi, generator)

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """n raw pictures of the largest size, one of each caption (n, t) if the data have captions."""
        return self.scaling.inverse(self.pictures(n, self.phi(given), generator)[0][-1])


def colours(x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c c"]]:
    """The mean colour of the pixels of each picture, and the covariance of their colours."""
    pixels = x.flatten(2)
    mean = pixels.mean(2)
    apart = pixels - mean[:, :, None]
    return mean, apart @ apart.mT / pixels.shape[2]
