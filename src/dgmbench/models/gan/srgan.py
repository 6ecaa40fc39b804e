"""SRGAN and ESRGAN: a picture behind a small one, judged by features and by a discriminator rather than by pixels.

The mean of all pictures behind a small one minimises the squared error and is a blur; feature maps phi and a
discriminator ask for one that looks real. Training has two stages, with L the small picture of x:

    pretrain      G minimises  E d(G(L), x)                                               (SRResNet, RRDB-PSNR)
    adversarial   G minimises  E d(phi(G(L)), phi(x)) + pixel_weight E d(G(L), x) + adversarial_weight L_G
                  D minimises  L_D: a loss of ``nn.adversarial_losses`` at a(x) and a(G(L))

d is the mean squared (SRGAN) or absolute (ESRGAN) difference. ESRGAN is a setting: generator=rrdb, the relativistic
average loss, features before activation, d absolute.

Shapes and units: raw images x (b, c, h, w), scaled to [-1, 1]; L (b, c, h / scale, w / scale) is raw, too, made of x by
bicubic interpolation and rounding. ``enhance`` is fully convolutional, so given may have other sides.

*Network interpolation* (ESRGAN, section 3.4): with the attribute ``interpolation`` = alpha, ``enhance`` uses the
weights (1 - alpha) theta_pretrained + alpha theta; 1, the default, is the model as trained and 0 the end of its
pre-training.

Papers: Ledig et al. 2017, https://arxiv.org/abs/1609.04802; Wang et al. 2018, https://arxiv.org/abs/1809.00219.

What differs: the feature net is VGG19 where a file of its weights is given (``features``), else a random one, which is
always there; its maps are not rescaled. With ``bicubic`` the generator adds to the bicubic enlargement, so that a short
training starts there. ESRGAN's discriminator is SRGAN's.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.super_resolution import Enlarger, FeatureMaps, SrDiscriminator, resized


class SrGan(Model):
    """Super-resolution by a generator that is pre-trained on pixels (Ledig et al. 2017, Wang et al. 2018).

    Args:
        spec: the data's space, images.
        scale: how many times larger the picture gets, a power of two that divides the sides.
        generator: ``srresnet`` or ``rrdb``.
        channels: maps of the generator, and of the discriminator's first layer.
        blocks: residual blocks of the generator.
        growth: maps that each convolution of a dense block adds.
        loss: an object of ``nn.adversarial_losses`` or its name.
        distance: d, ``squared`` or ``absolute``.
        features: a file with torchvision's VGG19 weights; none takes random feature maps.
        activated: compare features after their ReLU.
        adversarial_weight: weight of the generator's adversarial term.
        pixel_weight: weight of the distance of pixels in the adversarial stage.
        pretrain: share of the budget for the pre-training; 1 trains nothing else.
        bicubic: the generator adds to the bicubic enlargement, and starts there.
    """

    parent: Tensor
    adversarial_stage: Tensor

    def __init__(
        self,
        spec: DataSpec,
        *,
        scale: int = 4,
        generator: Literal["srresnet", "rrdb"] = "srresnet",
        channels: int = 64,
        blocks: int = 16,
        growth: int = 32,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        distance: Literal["squared", "absolute"] = "squared",
        features: str | None = None,
        activated: bool = True,
        adversarial_weight: float = 1e-3,
        pixel_weight: float = 0.0,
        pretrain: float = 0.9,
        bicubic: bool = False,
    ) -> None:
        super().__init__(spec)
        require(least=1, channels=channels, blocks=blocks, growth=growth)
        require(least=0, adversarial_weight=adversarial_weight, pixel_weight=pixel_weight)
        if not 0 < pretrain <= 1:
            raise UserError(f"model.pretrain={pretrain} must be a share of the budget above 0, at most 1.")
        if generator not in ("srresnet", "rrdb"):
            raise UserError(f"model.generator must be srresnet or rrdb, not '{generator}'.")
        if distance not in ("squared", "absolute"):
            raise UserError(f"model.distance must be squared or absolute, not '{distance}'.")
        if not spec.is_image or spec.shape[0] not in (1, 3):
            raise UserError(f"Super-resolution takes images of 1 or 3 channels, not {spec}; choose photo_patches, say.")
        if scale < 2 or scale & (scale - 1) or any(side % scale for side in spec.shape[1:]):
            raise UserError(
                f"model.scale={scale} must be a power of two that divides the sides of the images, "
                f"{spec.shape[1]}x{spec.shape[2]}."
            )
        self.scale, self.distance, self.pretrain = scale, distance, pretrain
        self.adversarial, self.adversarial_weight = adversarial_loss(loss), adversarial_weight
        self.pixel_weight, self.interpolation = pixel_weight, 1.0
        self.scaling = Scaling(spec)
        self.generator = Enlarger(
            spec,
            rrdb=generator == "rrdb",
            channels=channels,
            blocks=blocks,
            growth=growth,
            scale=scale,
            bicubic=bicubic,
        )
        self.register_buffer("adversarial_stage", torch.tensor(False))
        self.register_buffer("parent", self._flat().clone())
        if pretrain < 1:
            self.features = FeatureMaps(weights=features, activated=activated)
            self.discriminator = SrDiscriminator(spec, channels=channels, bias=self.adversarial.sees_constant)

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The generator and, unless pre-training is all, the discriminator."""
        generator = {"generator": list(self.generator.parameters())}
        if self.pretrain == 1:
            return generator
        return {"discriminator": list(self.discriminator.parameters()), **generator}

    def stages(self) -> tuple[Stage, ...]:
        """On pixels first, then against the discriminator."""
        first = Stage("pretrain", ("generator",), self.pretrain)
        if self.pretrain == 1:
            return (first,)
        return first, Stage("adversarial", ("discriminator", "generator"), 1 - self.pretrain)

    @torch.no_grad()
    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        """Keep the pre-trained generator as one parent of the interpolation."""
        self.adversarial_stage.fill_(stage.name == "adversarial")
        if stage.name == "adversarial":
            self.parent.copy_(self._flat())

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas, as a mean over the batch."""
        data, small = self.scaling(batch.x), self.scaling(self.degrade(batch.x))
        if player == "discriminator":
            with torch.no_grad():
                large = self.generator(small)
            fake = self.discriminator(large)
            with statistics_of(self.discriminator):
                real = self.discriminator(data)
            loss = self.adversarial.discriminator(real, fake)
            return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}
        with statistics_of(self.generator):
            large = self.generator(small)
        pixels = self.apart(large, data).mean()
        if not self.adversarial_stage:
            return pixels, {"loss": pixels.detach()}
        with torch.no_grad():
            wanted = self.features(data)
            real = self.discriminator(data) if self.adversarial.sees_real else None
        content = self.apart(self.features(large), wanted).mean()
        game = self.adversarial.generator(self.discriminator(large), real)
        loss = content + self.pixel_weight * pixels + self.adversarial_weight * game
        parts = {"loss": loss, "content": content, "pixels": pixels, "game": game}
        return loss, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped."""
        absorb_statistics(getattr(self, player))

    def apart(self, ours: Float[Tensor, "b ..."], theirs: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        """d of each example: the mean squared or absolute difference."""
        difference = (ours - theirs).flatten(1)
        return (difference.square() if self.distance == "squared" else difference.abs()).mean(1)

    @torch.no_grad()
    def degrade(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The small pictures of raw images x (b, c, h, w), raw."""
        small = resized(self.scaling(x), [side // self.scale for side in x.shape[2:]])
        return self.scaling.inverse(small)

    @torch.no_grad()
    def enhance(self, given: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The large pictures (b, c, scale h, scale w) of raw small ones, float on the raw scale, within its bounds."""
        small = self.scaling(given)
        if self.interpolation == 1:
            large = self.generator(small)
        else:
            large = torch.func.functional_call(self.generator, self._between(self.interpolation), (small,))
        return self.scaling.unrounded(large.clamp(-1, 1) if self.scaling.bounded else large)

    def objectives(self) -> dict[str, HeldOut]:
        """The distance that the generator has to lower: of features, or of pixels where pre-training is all."""
        pixels = HeldOut("scaled pixels" + ("^2" if self.distance == "squared" else ""), "lower")
        if self.pretrain == 1:
            return {"pixel_distance": pixels}
        features = HeldOut("features" + ("^2" if self.distance == "squared" else ""), "lower")
        return {"content_distance": features, "pixel_distance": pixels}

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Both distances of each example."""
        data, large = self.scaling(batch.x), self.scaling(self.enhance(self.degrade(batch.x)))
        found = {"pixel_distance": self.apart(large, data)}
        if self.pretrain < 1:
            found["content_distance"] = self.apart(self.features(large), self.features(data))
        return found

    def _state(self) -> dict[str, Tensor]:
        """All that the generator's output depends on."""
        return {**dict(self.generator.named_parameters()), **dict(self.generator.named_buffers())}

    def _flat(self) -> Tensor:
        return torch.cat([value.detach().flatten() for value in self._state().values()])

    def _between(self, alpha: float) -> dict[str, Tensor]:
        """The generator's state between its parent's (alpha = 0) and its own (1)."""
        own, start = self._state(), 0
        found = {}
        for name, value in own.items():
            before = self.parent[start : start + value.numel()].view_as(value)
            found[name], start = torch.lerp(before, value.detach(), alpha), start + value.numel()
        return found
