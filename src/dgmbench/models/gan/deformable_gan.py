"""Deformable GAN: a picture in another pose by skip connections that carry every part of the source to its new place.

A U-Net's skips put features where they were, which is the wrong place in another pose. Here the maps of the source's
encoder are cut into parts by rectangles around the bones, each part moves by the affine map from its rectangle in the
one pose to that in the other, and the decoder sees, next to the maps of the target's pose, the maximum over the parts:

    skip(phi)(q) = max( max_parts (phi o mask_part)(f_part(q)),  (phi o outside all parts)(q) )
    G minimises  L_G(D(a, x')) + nn_weight E sum_q min_{r in N(q)} |patch(x', q) - patch(x, r)|
    D minimises  L_D(D(a, x), D(a, x')), a loss of ``nn.adversarial_losses`` at all patches; D sees both poses, too.

The second term is the nearest-neighbour loss: N(q) is a window of ``window`` x ``window`` places around q, so that
details may be a little off without a blur being the better answer.

Shapes and units: raw images (b, c, h, w), scaled to [-1, 1]; given are the source's picture and the heat maps of the
joints of both poses (``nn.poses``); maps phi are not negative, so that a place outside every part is 0.

Paper: Siarohin et al. 2018, https://arxiv.org/abs/1801.00055.

What differs: a part is a rectangle around a bone that reaches beyond its joints by half its width, and what lies
outside of all parts stays where it is, so that equal poses give the plain skips of a U-Net; patches of 3 x 3 pixels
take the place of VGG's features; there is no dropout, so no noise, and no tanh at the end, which goes dead on a black
ground.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs
from dgmbench.models.gan.pose_transfer import PoseTransfer
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.adversarial_translation import PatchDiscriminator
from dgmbench.nn.poses import Posed, deformed, inside, located, nearest_neighbour_loss, rectangles, rescaled
from dgmbench.nn.unet import Ascent, Pyramid, require_halvings


class DeformableGan(PoseTransfer):
    """Pose transfer by deformable skip connections (Siarohin et al. 2018).

    Args:
        spec: the data's space, images given a source and poses.
        channels: maps of both encoders and of the decoder at the finest scale.
        halvings: scales below it.
        patch_channels: maps of the discriminator's first layer.
        layers: convolutions of the discriminator that halve the side.
        width: of the rectangles, in mean lengths of a bone.
        window: side of the window of the nearest-neighbour loss, odd; 1 compares the same places.
        nn_weight: weight of the nearest-neighbour loss, lambda.
        loss: an object of ``nn.adversarial_losses`` or its name.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 64,
        halvings: int = 5,
        patch_channels: int = 64,
        layers: int = 3,
        width: float = 1 / 3,
        window: int = 5,
        nn_weight: float = 0.01,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, patch_channels=patch_channels, layers=layers, window=window)
        require(least=0, halvings=halvings, nn_weight=nn_weight)
        require(above=0, width=width)
        require_halvings(self.size, halvings)
        if window % 2 == 0:
            raise UserError(f"model.window={window} must be odd, so that a place is in the middle of its window.")
        self.adversarial, self.nn_weight = adversarial_loss(loss), nn_weight
        self.width, self.window = width, window
        c, k = spec.shape[0], self.poses.joints
        source = Pyramid(c + k, channels=channels, halvings=halvings)
        target = Pyramid(k, channels=channels, halvings=halvings)
        decoder = Ascent([2 * width for width in source.widths], c, channels=channels)
        self.generator = nn.ModuleDict({"source": source, "target": target, "decoder": decoder})
        seen = replace(spec, shape=(2 * c + 2 * k, *self.size))
        self.discriminator = PatchDiscriminator(seen, channels=patch_channels, layers=layers)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The two networks."""
        return {"discriminator": list(self.discriminator.parameters()), "generator": list(self.generator.parameters())}

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        posed, x = self.poses(batch.given), self.scaling(batch.x)
        if player == "discriminator":
            with torch.no_grad():
                made = self.transferred(posed)
            real, fake = self.verdict(posed, x), self.verdict(posed, made)
            loss = self.adversarial.discriminator(real, fake)
            return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}
        made = self.transferred(posed)
        seen = self.verdict(posed, x) if self.adversarial.sees_real else None
        game = self.adversarial.generator(self.verdict(posed, made), seen)
        apart = nearest_neighbour_loss(made, x, self.window).mean()
        loss = game + self.nn_weight * apart
        return loss, {"loss": loss.detach(), "game": game.detach(), "apart": apart.detach()}

    def transferred(self, posed: Posed) -> Float[Tensor, "b c h w"]:
        """G: the scaled pictures in the target's pose."""
        kept = self.generator["source"](torch.cat([posed.picture, posed.source], 1))
        wanted = self.generator["target"](posed.target)
        skips = zip(self.skips(kept, posed), wanted, strict=True)
        return self.generator["decoder"]([torch.cat(both, 1) for both in skips])

    def skips(self, maps: list[Tensor], posed: Posed) -> list[Tensor]:
        """Maps of the source at every scale, carried to the target's pose."""
        bones = self.poses.bones
        source, target = (rectangles(located(each), bones, self.width) for each in (posed.source, posed.target))
        parts, found = inside(source, self.size), []
        for each in maps:
            scale, masks = each.shape[2] / self.size[0], F.adaptive_max_pool2d(parts, each.shape[2:])
            found.append(deformed(each.relu(), rescaled(source, scale), rescaled(target, scale), masks))
        return found

    def verdict(self, posed: Posed, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " n"]:
        """D's outputs at the source, a picture and both poses, of all patches."""
        return self.discriminator(torch.cat([posed.picture, x, posed.source, posed.target], 1)).flatten()
