"""SOD-MTGAN: small objects are enlarged by a generator that a discriminator with three tasks teaches.

A region proposal of a small object is too blurred to be recognised, and enlarging it by interpolation does not help. A
generator G makes it as large and sharp as those of large objects; a discriminator D says of a region whether it is
real or made (a), what it shows, and where in it the object is, and all three reach G:

    G minimises  E |G(L) - H|^2 + adversarial_weight L_G(a(F)) + class_weight CE(F) + box_weight B(F)
    D minimises  L_D(a(H), a(F)) + CE(H) + CE(F) + B(H) + B(F)

H are regions of large objects, drawn around the true boxes as a proposal network would; L is an H made smaller, and F
is G(S) of regions S of small objects and G(L). L_D, L_G are a loss of ``nn.adversarial_losses``, CE(R) is the mean of
-log P(class | R), B(R) the smooth absolute difference (Girshick 2015) of the box that D says and the true one, both
relative to the proposal.

Shapes and units: raw pictures x (b, c, h, w), scaled to [-1, 1], with an object each whose class and box are factors of
the label (``data=digits_canvas_sizes``); H (n, c, crop, crop), S and L (n, c, crop / scale, crop / scale).

Paper: Bai, Zhang, Ding, Ghanem 2018, https://doi.org/10.1007/978-3-030-01261-8_13.

What differs: proposals are the true boxes, moved and stretched by up to ``jitter``, so there are none without an object
and no class for them. D is small, where the paper's is a ResNet-50. D's heads for class and box also learn from
regions enlarged by bicubic interpolation, so that there is a plain detector to compare with on the same regions;
``enlarge=bicubic`` trains that alone.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.batchnorm import absorb_statistics, statistics_of
from dgmbench.nn.detection import RegionDiscriminator, Said, box_loss, class_loss, mean_where, overlap, right
from dgmbench.nn.regions import cropped, decoded, framed, iou, jittered, objects_of, require_objects
from dgmbench.nn.scaling import Scaling
from dgmbench.nn.super_resolution import Enlarger, resized


class MtGan(Model):
    """Super-resolution of small objects, taught by real or made, class and box (Bai et al. 2018).

    Args:
        spec: the data's space, pictures with the factors digit, size, row and column of an object.
        crop: side of the regions that the discriminator sees.
        scale: how many times larger the generator makes a region, a power of two.
        small: the largest side in pixels of an object that counts as small.
        jitter: by how much of their side proposals are moved and stretched at most.
        enlarge: ``generator``, or ``bicubic`` for the plain detector alone.
        channels: maps of the generator, and of the discriminator's first layer.
        blocks: residual blocks of the generator.
        hidden: units of the discriminator's fully connected layer.
        loss: an object of ``nn.adversarial_losses`` or its name.
        adversarial_weight: weight of the generator's adversarial term.
        class_weight: weight of the generator's class term.
        box_weight: weight of the generator's box term.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        crop: int = 16,
        scale: int = 4,
        small: int = 8,
        jitter: float = 0.15,
        enlarge: Literal["generator", "bicubic"] = "generator",
        channels: int = 64,
        blocks: int = 5,
        hidden: int = 256,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        adversarial_weight: float = 1e-3,
        class_weight: float = 1e-2,
        box_weight: float = 1e-2,
    ) -> None:
        super().__init__(spec)
        classes = require_objects(spec)
        require(least=1, small=small, channels=channels, blocks=blocks, hidden=hidden)
        require(least=0, adversarial_weight=adversarial_weight, class_weight=class_weight, box_weight=box_weight)
        require(least=0, below=1, jitter=jitter)
        if enlarge not in ("generator", "bicubic"):
            raise UserError(f"model.enlarge must be generator or bicubic, not '{enlarge}'.")
        if scale < 2 or scale & (scale - 1) or crop % scale:
            raise UserError(f"model.scale={scale} must be a power of two that divides model.crop={crop}.")
        self.crop, self.scale, self.small, self.jitter, self.enlarge = crop, scale, small, jitter, enlarge
        self.weights = {"adversarial": adversarial_weight, "class": class_weight, "box": box_weight}
        self.adversarial, self.scaling = adversarial_loss(loss), Scaling(spec)
        self.discriminator = RegionDiscriminator(
            spec.shape[0], crop, classes, channels=channels, hidden=hidden, bias=self.adversarial.sees_constant
        )
        if enlarge == "generator":
            self.generator = Enlarger(
                spec, rrdb=False, channels=channels, blocks=blocks, growth=1, scale=scale, bicubic=True
            )

    def players(self) -> dict[str, list[nn.Parameter]]:
        """Discriminator and generator, where there is one."""
        names = ("discriminator", "generator") if self.enlarge == "generator" else ("discriminator",)
        return {name: list(getattr(self, name).parameters()) for name in names}

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas."""
        label, size, boxes = objects_of(batch, self.spec)
        proposals = jittered(boxes, self.jitter, generator)
        known, large = size > 0, size > self.small
        if not bool(large.any()) or not bool((known & ~large).any()):
            raise UserError(f"A batch of {len(size)} lacks large or small objects; set trainer.batch_size to more.")
        x = self.scaling(batch.x)
        real, low = cropped(x, proposals, self.crop), self.low(x, proposals, large)

        def tasks(said: Said, counts: Bool[Tensor, " b"]) -> dict[str, Tensor]:
            return {"class": class_loss(said, label, counts), "box": box_loss(said, boxes, proposals, counts)}

        if player == "generator":
            with statistics_of(self.generator):
                fake = self.generator(low)
            outputs, said = self.discriminator(fake)
            at_real = self.discriminator(real[large])[0] if self.adversarial.sees_real else None
            terms = {"adversarial": self.adversarial.generator(outputs[known], at_real), **tasks(said, known)}
            pixels = mean_where((fake - real).square().flatten(1).mean(1), large)
            loss = pixels + sum(self.weights[name] * term for name, term in terms.items())
            return loss, {"loss": loss.detach(), "pixels": pixels.detach(), **_detached(terms)}
        outputs, said = self.discriminator(real)
        losses = [*tasks(said, large).values()]
        losses += tasks(self.discriminator(resized(low, (self.crop, self.crop)))[1], known).values()
        if self.enlarge == "generator":
            with torch.no_grad():
                fake = self.generator(low)
            at_fake, said = self.discriminator(fake)
            losses += [*tasks(said, known).values(), self.adversarial.discriminator(outputs[large], at_fake[known])]
        loss = torch.stack(losses).sum()
        return loss, {"loss": loss.detach()}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the generator's batch-norm statistics."""
        if player == "generator":
            absorb_statistics(self.generator)

    def low(
        self, x: Float[Tensor, "b c h w"], proposals: Float[Tensor, "b 4"], large: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b c i i"]:
        """What the generator enlarges of scaled pictures: S of small objects, L of large ones."""
        side = self.crop // self.scale
        shrunk = resized(cropped(x, proposals, self.crop), (side, side))
        return torch.where(large[:, None, None, None], shrunk, cropped(x, proposals, side))

    def enlarged(self, low: Float[Tensor, "b c i i"]) -> Float[Tensor, "b c crop crop"]:
        """Regions as the discriminator sees them: by the generator, or by interpolation where there is none."""
        return self.generator(low) if self.enlarge == "generator" else resized(low, (self.crop, self.crop))

    def objectives(self) -> dict[str, HeldOut]:
        """How many small objects are recognised, and how well their boxes fit, beside bicubic enlargement."""
        share = HeldOut("share", "higher", some=True)
        names = ("small_accuracy", "small_accuracy_bicubic", "small_accuracy_over_bicubic")
        return dict.fromkeys((*names, "small_iou", "small_iou_bicubic", "small_iou_proposal", "large_accuracy"), share)

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Right classes and intersections over unions of boxes, under proposals drawn by the generator."""
        label, size, boxes = objects_of(batch, self.spec)
        proposals, large = jittered(boxes, self.jitter, generator), size > self.small
        x = self.scaling(batch.x)
        low = self.low(x, proposals, large)
        ours = self.discriminator(self.enlarged(low))[1]
        plain = self.discriminator(resized(low, (self.crop, self.crop)))[1]
        seen = self.discriminator(cropped(x, proposals, self.crop))[1]
        found = {
            "small_accuracy": right(ours, label),
            "small_accuracy_bicubic": right(plain, label),
            "small_accuracy_over_bicubic": right(ours, label) - right(plain, label),
            "small_iou": overlap(ours, boxes, proposals),
            "small_iou_bicubic": overlap(plain, boxes, proposals),
            "small_iou_proposal": iou(proposals, boxes),
        }
        found = {name: value.where((size > 0) & ~large, torch.nan) for name, value in found.items()}
        return {**found, "large_accuracy": right(seen, label).where(large, torch.nan)}

    @torch.no_grad()
    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Float[Tensor, "b 5 c h w"]:
        """The picture, the true box, the box that is found, and the region by interpolation and as D sees it."""
        _, size, boxes = objects_of(batch, self.spec)
        proposals, x = jittered(boxes, self.jitter, generator), self.scaling(batch.x)
        low = self.low(x, proposals, size > self.small)
        seen = self.enlarged(low)
        boxed = [framed(x, boxes, 1.0), framed(x, decoded(self.discriminator(seen)[1].box, proposals), 1.0)]
        regions = [resized(region, self.spec.shape[1:]) for region in (resized(low, (self.crop, self.crop)), seen)]
        return self.scaling.unrounded(torch.stack([x, *boxed, *regions], 1).clamp(-1, 1))


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}
