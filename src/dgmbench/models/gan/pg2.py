"""PG2: a picture of somebody in another pose, coarse first, then refined by a difference that a discriminator judges.

From a picture a and the joints p of the target's pose, a U-Net G1 makes a coarse picture of the pose, held to the truth
x where the body is; a second one, G2, adds details that the coarse picture lacks, so that (a, result) looks like (a, x)
to D.

    pose    G1 minimises  E |(G1(a, p) - x) (1 + M)|
    refine  G2 minimises  L_G(D(a, x2)) + l1_weight E |(x2 - x) (1 + M)|,     x2 = G1(a, p) + G2(a, G1(a, p))
            D minimises   L_D(D(a, x), D(a, x2)), a loss of ``nn.adversarial_losses``

M is the pose mask, 1 within ``radius`` pixels of a bone of the target and 0 elsewhere, so that the body counts twice.

Shapes and units: raw images (b, c, h, w), scaled to [-1, 1]; given are the source's picture and the heat maps of the
joints of both poses (``nn.poses``), of which the target's alone is used. |.| is the mean over all pixels.

Paper: Ma et al. 2017, https://arxiv.org/abs/1705.09368.

What differs: two 3 x 3 convolutions a scale instead of residual blocks; G2's last convolution starts at zero, so that
refinement starts as the coarse picture; M is drawn from the bones themselves, which the paper dilates on the pixel
grid; D gives a map of outputs, one a patch.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.gan.pose_transfer import PoseTransfer
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.adversarial_translation import PatchDiscriminator
from dgmbench.nn.poses import Posed, located, pose_mask
from dgmbench.nn.unet import UNet


class Pg2(PoseTransfer):
    """Pose-guided generation in two stages (Ma et al. 2017).

    Args:
        spec: the data's space, images given a source and poses.
        channels: maps of both U-Nets at the finest scale.
        halvings: scales below it.
        bottleneck: units of G1's linear layer between the coarsest maps.
        patch_channels: maps of the discriminator's first layer.
        layers: convolutions of the discriminator that halve the side.
        radius: how far the pose mask reaches from a bone, pixels.
        loss: an object of ``nn.adversarial_losses`` or its name.
        l1_weight: weight of the masked difference in the second stage, lambda.
        coarse: share of the budget for the first stage; 1 trains nothing else.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 64,
        halvings: int = 5,
        bottleneck: int = 64,
        patch_channels: int = 64,
        layers: int = 3,
        radius: float = 4.0,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        l1_weight: float = 10.0,
        coarse: float = 0.6,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, bottleneck=bottleneck, patch_channels=patch_channels, layers=layers)
        require(least=0, halvings=halvings, radius=radius, l1_weight=l1_weight)
        if not 0 < coarse <= 1:
            raise UserError(f"model.coarse={coarse} must be a share of the budget above 0, at most 1.")
        self.adversarial, self.l1_weight = adversarial_loss(loss), l1_weight
        self.radius, self.coarse = radius, coarse
        c, k = spec.shape[0], self.poses.joints
        net = {"channels": channels, "halvings": halvings}
        self.poser = UNet(c + k, c, self.size, bottleneck=bottleneck, **net)
        if coarse < 1:
            self.refiner = UNet(2 * c, c, self.size, **net)
            nn.init.zeros_(self.refiner.up.last.weight)
            nn.init.zeros_(self.refiner.up.last.bias)  # type: ignore[arg-type]
            pairs = replace(spec, shape=(2 * c, *self.size))
            self.discriminator = PatchDiscriminator(pairs, channels=patch_channels, layers=layers)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two U-Nets and the discriminator; the first U-Net alone where the first stage is all."""
        names = ("poser",) if self.coarse == 1 else ("poser", "discriminator", "refiner")
        return {name: list(getattr(self, name).parameters()) for name in names}

    def stages(self) -> tuple[Stage, ...]:
        """The pose first, then the details against the discriminator."""
        first = Stage("pose", ("poser",), self.coarse)
        return (first,) if self.coarse == 1 else (first, Stage("refine", ("discriminator", "refiner"), 1 - self.coarse))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        posed, x = self.poses(batch.given), self.scaling(batch.x)
        if player == "poser":
            loss = self.apart(self.posed(posed), x, posed).mean()
            return loss, {"loss": loss.detach()}
        with torch.no_grad():
            coarse = self.posed(posed)
        if player == "discriminator":
            with torch.no_grad():
                made = self.refined(posed, coarse)
            real, fake = self.verdict(posed, x), self.verdict(posed, made)
            loss = self.adversarial.discriminator(real, fake)
            return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}
        made = self.refined(posed, coarse)
        seen = self.verdict(posed, x) if self.adversarial.sees_real else None
        game = self.adversarial.generator(self.verdict(posed, made), seen)
        apart = self.apart(made, x, posed).mean()
        loss = game + self.l1_weight * apart
        return loss, {"loss": loss.detach(), "game": game.detach(), "apart": apart.detach()}

    def posed(self, posed: Posed) -> Float[Tensor, "b c h w"]:
        """G1: the coarse picture."""
        return self.poser(torch.cat([posed.picture, posed.target], 1))

    def refined(self, posed: Posed, coarse: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The coarse picture with G2's difference."""
        return coarse + self.refiner(torch.cat([posed.picture, coarse], 1))

    def verdict(self, posed: Posed, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " n"]:
        """D's outputs at pairs of the source and a picture, of all patches."""
        return self.discriminator(torch.cat([posed.picture, x], 1)).flatten()

    def apart(self, ours: Float[Tensor, "b c h w"], x: Float[Tensor, "b c h w"], posed: Posed) -> Float[Tensor, " b"]:
        """The masked mean absolute difference of each example."""
        mask = pose_mask(located(posed.target), self.poses.bones, self.size, self.radius)
        return ((ours - x) * (1 + mask)).abs().flatten(1).mean(1)

    def transferred(self, posed: Posed) -> Float[Tensor, "b c h w"]:
        """The refined picture, scaled; the coarse one where nothing refines it."""
        coarse = self.posed(posed)
        return coarse if self.coarse == 1 else self.refined(posed, coarse)
