"""TP-GAN: the frontal view of something seen from the side, by a path that sees all of it and one for each landmark.

The global path is a U-Net on the whole picture; each local path sees a patch around one landmark of the source, and its
maps are laid down where that landmark is in a frontal view. The maximum over the local maps and the maps of the global
path make the picture. A network of identities, trained first, says whether it still is the same one:

    recognise  F minimises  E -log F(y | x) - log F(y | a)
    frontalise G minimises  E |x' - x| + symmetry E |x' - mirrored x'| + identity sum_l E |F_l(x') - F_l(x)|
                            + adversarial L_G(D(x')) + variation E TV(x') - encoder E log c(y | code of a)
               D minimises  L_D(D(x), D(x')), a loss of ``nn.adversarial_losses``

a is the source, x the frontal view, x' = G(a), y its identity, F_l the last two hidden layers of F, and c a linear
layer on the global path's narrowest place. TV sums the absolute differences of neighbours and is divided by the number
of pixels, as |.| is a mean over them.

Shapes and units: raw images (b, c, h, w), scaled to [-1, 1]; given are the source and the heat maps of the joints of
both poses, of which those of the source are the landmarks; those of the target are only averaged, once, into the places
where the local paths put their maps. Labels are identities.

Paper: Huang et al. 2017, https://arxiv.org/abs/1704.04086.

What differs: F is trained here, on the data's own labels, instead of on a million faces; D judges patches; differences
are at the one scale of the picture, and there is no noise. G adds to the mean frontal image, near which it starts.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Stage
from dgmbench.models.gan.pose_transfer import PoseTransfer
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.adversarial_translation import PatchDiscriminator
from dgmbench.nn.labels import class_count, label_nll, labels_of
from dgmbench.nn.pose_networks import Recogniser, TwoPaths
from dgmbench.nn.poses import Posed, located


class TpGan(PoseTransfer):
    """Frontal views by a global and local pathways (Huang et al. 2017).

    Args:
        spec: the data's space, images given a source and poses, with labels.
        channels: maps of the global path at the finest scale, and of each local path.
        halvings: scales below it.
        code: units of the global path's narrowest place.
        patch: side of a local path's patch, pixels.
        recogniser_channels: maps of the identity network's first layer.
        patch_channels: maps of the discriminator's first layer.
        layers: convolutions of the discriminator that halve the side.
        loss: an object of ``nn.adversarial_losses`` or its name.
        symmetry, adversarial, identity, variation, encoder: weights of the terms; that of the pixels is 1.
        recognise: share of the budget for the identity network.
    """

    plain = "mean_frontal"
    frontal: Tensor
    places: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 64,
        halvings: int = 4,
        code: int = 256,
        patch: int = 32,
        recogniser_channels: int = 32,
        patch_channels: int = 64,
        layers: int = 3,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        symmetry: float = 0.3,
        adversarial: float = 1e-3,
        identity: float = 3e-3,
        variation: float = 1e-4,
        encoder: float = 1e-1,
        recognise: float = 0.2,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, code=code, patch=patch, layers=layers)
        require(least=1, recogniser_channels=recogniser_channels, patch_channels=patch_channels)
        require(least=0, halvings=halvings, symmetry=symmetry, adversarial=adversarial, identity=identity)
        require(least=0, variation=variation, encoder=encoder)
        if not 0 < recognise < 1:
            raise UserError(f"model.recognise={recognise} must be a share of the budget between 0 and 1.")
        classes, self.recognise = class_count(spec), recognise
        self.weights = {
            "pixel": 1.0, "symmetry": symmetry, "identity": identity, "game": adversarial, "variation": variation,
            "encoder": encoder,
        }  # fmt: skip
        self.adversarial = adversarial_loss(loss)
        self.generator = TwoPaths(
            spec, joints=self.poses.joints, classes=classes, channels=channels, halvings=halvings, code=code,
            patch=patch,
        )  # fmt: skip
        self.recogniser = Recogniser(spec, classes, channels=recogniser_channels)
        self.discriminator = PatchDiscriminator(replace(spec, given=None), channels=patch_channels, layers=layers)
        self.register_buffer("frontal", torch.zeros(spec.shape))
        middle = torch.tensor([self.size[1] / 2, self.size[0] / 2])
        self.register_buffer("places", middle.expand(self.poses.joints, 2).clone())

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The identity network, and the two of the game."""
        return {name: list(getattr(self, name).parameters()) for name in ("recogniser", "discriminator", "generator")}

    def stages(self) -> tuple[Stage, ...]:
        """Identities first."""
        first = Stage("recognise", ("recogniser",), self.recognise)
        return first, Stage("frontalise", ("discriminator", "generator"), 1 - self.recognise)

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Average the frontal views, which is what G is compared with, and where their landmarks are."""
        self.frontal.copy_(self.scaling(batch.x).mean(0))
        self.places.copy_(located(self.poses(batch.given).target).mean(0))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        posed, x, y = self.poses(batch.given), self.scaling(batch.x), labels_of(batch)
        if player == "recogniser":
            loss = label_nll(self.recogniser(x)[0], y) + label_nll(self.recogniser(posed.picture)[0], y)
            return loss, {"loss": loss.detach()}
        if player == "discriminator":
            with torch.no_grad():
                made = self.transferred(posed)
            real, fake = self.discriminator(x).flatten(), self.discriminator(made).flatten()
            loss = self.adversarial.discriminator(real, fake)
            return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}
        parts = self.terms(posed, x, y)
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in parts.items()}}

    def terms(self, posed: Posed, x: Float[Tensor, "b c h w"], y: Tensor) -> Mapping[str, Tensor]:
        """The six terms of the generator's loss, each without its weight."""
        made, scores = self.views(posed)
        with torch.no_grad():
            wanted = self.recogniser(x)[1]
        seen = self.discriminator(x).flatten() if self.adversarial.sees_real else None
        pairs = zip(self.recogniser(made)[1], wanted, strict=True)
        return {
            "pixel": (made - x).abs().mean(),
            "symmetry": asymmetry(made).mean(),
            "identity": torch.stack([(ours - theirs).abs().mean() for ours, theirs in pairs]).sum(),
            "game": self.adversarial.generator(self.discriminator(made).flatten(), seen),
            "variation": total_variation(made).mean(),
            "encoder": label_nll(scores, y),
        }

    def transferred(self, posed: Posed) -> Float[Tensor, "b c h w"]:
        """The scaled frontal views."""
        return self.views(posed)[0]

    def views(self, posed: Posed) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b classes"]]:
        """G: the scaled frontal views, and scores of the identity from the code."""
        change, scores = self.generator(posed.picture, located(posed.source), self.places)
        return self.baseline(posed) + change, scores

    def baseline(self, posed: Posed) -> Float[Tensor, "b c h w"]:
        """The mean frontal image."""
        return self.frontal.to(posed.picture.dtype).expand_as(posed.picture)

    def objectives(self) -> dict[str, HeldOut]:
        """The error of the frontal view beside that of the mean one, and how often the identity is still found."""
        return {**super().objectives(), "identity_kept": HeldOut("share", "higher")}

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Errors as of every model of poses, and whether the identity network finds y in the frontal view."""
        found, y = super().held_out(batch, generator=generator), labels_of(batch)
        assert batch.given is not None
        right = self.recogniser(self.transferred(self.poses(batch.given)))[0].argmax(1) == y
        return {**found, "identity_kept": right.to(self.frontal.dtype).masked_fill(y < 0, torch.nan)}


def asymmetry(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The mean absolute difference of each picture and its mirror image, left to right."""
    return (x - x.flip(3)).abs().flatten(1).mean(1)


def total_variation(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The sum of absolute differences of neighbours, across and down, divided by the number of pixels."""
    differences = x.diff(dim=2).abs().flatten(1).sum(1) + x.diff(dim=3).abs().flatten(1).sum(1)
    return differences / x[0].numel()
