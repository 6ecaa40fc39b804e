"""SeGAN: the whole of an object that something hides, its mask first, then its looks.

A segmentor S sees the picture and the visible part V of an object's mask, and says where the object is. A generator G
paints it there; a discriminator D of patches tells pairs of picture and painted object from pairs with the true one:

    segment   S minimises  E sum_p w_p BCE(S(picture, V)_p, M_p) / sum_p w_p
    paint     G minimises  E L_G(D(picture, V, Y)) + pixel_weight E |Y - X|
              D minimises  its term of a loss of ``nn.adversarial_losses`` at D(picture, V, X) and D(picture, V, Y)

M is the whole mask, X the object alone, w_p is 1, and ``hidden_weight`` at hidden pixels. Painted is
Y = picture V + G(picture, V, m) m with m = [S > 1/2] and not V, the pixels that are hidden in S's opinion (in training
also those that are): visible pixels are the picture's, whatever G says.

Shapes and units: x (b, 3, h, w) raw are the object alone, its mask, and its hidden part; given (b, 3, h, w) are the
picture, V, and zeros, masks 0 and ``levels - 1`` (``data=digits_canvas_occluded``). Networks see them scaled to [0, 1];
|.| is a mean over all pixels.

Paper: Ehsani, Mottaghi, Farhadi 2018, https://arxiv.org/abs/1703.10239.

What differs: S is a small network that halves the side and doubles it again, with skips, where the paper's starts from
a ResNet-18 trained on ImageNet and adds a fully connected layer; G is of the same kind. The two stages follow one
another; the paper then trains both together. One weight tells hidden pixels from all others.
"""

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.adversarial_translation import PatchDiscriminator
from dgmbench.nn.regions import convex_hull, iou_of_masks
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.unet import UNet

PICTURE, MASK, HIDDEN = 0, 1, 2  # channels of x; those of given are the picture and the visible mask


class SeGan(Model):
    """Segments the hidden part of an object, then paints it (Ehsani et al. 2018).

    Args:
        spec: the data's space: object, mask and hidden part, given the picture and the visible mask.
        channels: maps of the first layer of segmentor and generator, doubling with each halving of the side.
        halvings: how often they halve the side.
        patch_channels: maps of the discriminator's first layer.
        layers: convolutions of the discriminator that halve the side.
        hidden_weight: weight of a hidden pixel in the segmentor's loss.
        loss: an object of ``nn.adversarial_losses`` or its name.
        pixel_weight: weight of the mean absolute difference beside the adversarial term.
        segment: share of the budget for the segmentor.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 32,
        halvings: int = 2,
        patch_channels: int = 64,
        layers: int = 3,
        hidden_weight: float = 3.0,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        pixel_weight: float = 100.0,
        segment: float = 0.5,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, halvings=halvings, patch_channels=patch_channels, layers=layers)
        require(least=0, pixel_weight=pixel_weight)
        require(above=0, hidden_weight=hidden_weight)
        if not 0 < segment < 1:
            raise UserError(f"model.segment={segment} must be a share of the budget between 0 and 1.")
        if spec.given is None or not spec.is_image or spec.shape[0] != 3 or spec.given.shape != spec.shape:
            raise UserError(
                f"se_gan takes an object, its mask and its hidden part as three channels, given three, not {spec}; "
                "choose data=digits_canvas_occluded."
            )
        self.segment, self.hidden_weight, self.pixel_weight = segment, hidden_weight, pixel_weight
        self.adversarial = adversarial_loss(loss)
        self.scaling = Scaling(spec, low=0.0)
        size = spec.shape[1], spec.shape[2]
        self.segmentor, self.generator = (UNet(n, 1, size, channels=channels, halvings=halvings) for n in (2, 3))
        self.discriminator = PatchDiscriminator(spec, channels=patch_channels, layers=layers)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The three networks."""
        names = ("segmentor", "discriminator", "generator")
        return {name: list(getattr(self, name).parameters()) for name in names}

    def stages(self) -> tuple[Stage, ...]:
        """Where the object is first, then what it looks like."""
        paint = Stage("paint", ("discriminator", "generator"), 1 - self.segment)
        return Stage("segment", ("segmentor",), self.segment), paint

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas."""
        x, given = self.seen(batch)
        if player == "segmentor":
            weight = 1 + (self.hidden_weight - 1) * x[:, HIDDEN]
            loss = F.binary_cross_entropy_with_logits(
                self.mask_logits(given), x[:, MASK], weight=weight / weight.mean()
            )
            return loss, {"loss": loss.detach()}
        beside, truth = given[:, : MASK + 1], x[:, PICTURE : PICTURE + 1]
        # also where the segmentor has missed it, or a generator would learn nothing of an object that was not found
        where = self.hidden(given) | ((x[:, HIDDEN] >= 0.5) & (given[:, MASK] < 0.5))
        painted = self.painted(given, where)
        fake = self.discriminator(torch.cat([beside, painted.detach() if player == "discriminator" else painted], 1))
        if player == "discriminator":
            real = self.discriminator(torch.cat([beside, truth], 1))
            loss = self.adversarial.discriminator(real.flatten(), fake.flatten())
            return loss, {"loss": loss.detach()}
        real = self.discriminator(torch.cat([beside, truth], 1)).flatten() if self.adversarial.sees_real else None
        fooled, pixels = self.adversarial.generator(fake.flatten(), real), (painted - truth).abs().mean()
        loss = fooled + self.pixel_weight * pixels
        return loss, {"loss": loss.detach(), "adversarial": fooled.detach(), "pixels": pixels.detach()}

    def seen(self, batch: Batch) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
        """What the networks see of x and of what is given."""
        if batch.given is None:
            raise UserError("se_gan needs what is given of each example, and this batch has nothing.")
        return self.scaling(batch.x), self.scaling(batch.given)

    def mask_logits(self, given: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """The logits of S that a pixel is the object's, of scaled pictures and visible masks."""
        return self.segmentor(2 * given[:, :HIDDEN] - 1)[:, 0]

    @torch.no_grad()
    def hidden(self, given: Float[Tensor, "b 3 h w"]) -> Bool[Tensor, "b h w"]:
        """m: the object's pixels that are not visible, in the segmentor's opinion."""
        return (self.mask_logits(given) > 0) & (given[:, MASK] < 0.5)

    def painted(self, given: Float[Tensor, "b 3 h w"], hidden: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 1 h w"]:
        """Y: the visible pixels of the picture, and painted ones where it is hidden, black elsewhere."""
        picture, visible = given[:, PICTURE : PICTURE + 1], (given[:, MASK : MASK + 1] >= 0.5).float()
        m = hidden[:, None].float()
        paint = self.generator(2 * torch.cat([picture * visible, visible, m], 1) - 1).sigmoid()
        return picture * visible + paint * m

    @torch.no_grad()
    def enhance(self, given: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Float (b, 3, h, w) on the raw scale: the painted object, its mask and its hidden part, of raw given."""
        scaled = self.scaling(given)
        hidden = self.hidden(scaled)
        whole = hidden | (scaled[:, MASK] >= 0.5)
        parts = [self.painted(scaled, hidden), whole[:, None].float(), hidden[:, None].float()]
        return self.scaling.unrounded(torch.cat(parts, 1))

    def objectives(self) -> dict[str, HeldOut]:
        """How much of the hidden part is found, beside the visible mask's hull, and how near the paint is."""
        share, pixels = HeldOut("share", "higher"), HeldOut("scaled pixels", "lower")
        return {
            "hidden_error": HeldOut("scaled pixels", "lower"),
            "hidden_iou": share,
            "hull_iou": share,
            "hidden_iou_over_hull": share,
            "mask_iou": share,
            "black_error": pixels,
        }

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Intersection over union of masks, and mean absolute differences over the hidden pixels of each example.

        The hull is the convex hull of the visible mask without that mask; black is a hidden part that nobody paints.
        """
        x, given = self.seen(batch)
        hidden, true = self.hidden(given), x[:, HIDDEN] >= 0.5
        visible = given[:, MASK] >= 0.5
        found, hull = iou_of_masks(hidden, true), iou_of_masks(convex_hull(visible) & ~visible, true)
        union = (hidden | true).float()
        painted = self.painted(given, hidden)[:, 0]

        def apart(y: Tensor) -> Tensor:
            return ((y - x[:, PICTURE]).abs() * union).flatten(1).sum(1) / union.flatten(1).sum(1).clamp(min=1)

        return {
            "hidden_error": apart(painted),
            "hidden_iou": found,
            "hull_iou": hull,
            "hidden_iou_over_hull": found - hull,
            "mask_iou": iou_of_masks(hidden | visible, x[:, MASK] >= 0.5),
            "black_error": apart(given[:, PICTURE] * visible),
        }
