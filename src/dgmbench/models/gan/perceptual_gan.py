"""Perceptual GAN: the features of small objects are made like those of large ones, by a residual that a GAN learns.

A detector pools features of a region from deep, coarse maps, on which little is left of a small object. A generator
adds to its features what it finds in fine, shallow maps; a discriminator tells the sum from features of large objects,
and the detector's own heads have to recognise it:

    detector    the detector minimises  CE(f) + B(f)                                          at all objects
    perceptual  G minimises  adversarial_weight L_G(a(f_S + G(e_S))) + CE(f_S + G(e_S)) + B(f_S + G(e_S))
                D minimises  L_D(a(f_L), a(f_S + G(e_S)))

f are the features of a region on the deep maps, e on the first ones, S and L small and large objects. L_D, L_G are a
loss of ``nn.adversarial_losses`` at D's output a; CE is the mean of -log P(class), B the smooth absolute difference
(Girshick 2015) of the box that is said and the true one, relative to the proposal. In the second stage the detector
stays as it is, so that it is there beside the generator: G starts at zero, and with no residual it is the plain one.

Shapes and units: raw pictures x (b, c, h, w), scaled to [-1, 1], with an object each whose class and box are factors of
the label (``data=digits_canvas_sizes``); f (b, 4 channels, pool, pool), e (b, channels, 2 pool, 2 pool).

Paper: Li et al. 2017, https://arxiv.org/abs/1706.05274.

What differs: the detector is three convolutions, where the paper's is a VGG16, and learns from all objects, the
paper's perception branch from large ones first. Proposals are the true boxes, moved and stretched by up to ``jitter``,
so there are none without an object and no class for them. Which objects are small is known from the proposals.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model, Stage
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.adversarial_losses import AdversarialLoss, AdversarialLossName, adversarial_loss
from dgmbench.nn.detection import Perception, Said, box_loss, class_loss, overlap, right
from dgmbench.nn.regions import cropped, decoded, framed, iou, jittered, objects_of, require_objects
from dgmbench.nn.scaling import Scaling


class ResidualFeatures(nn.Module):
    """Fine features (n, channels, 2 pool, 2 pool) -> a residual (n, 4 channels, pool, pool), zero at first.

    A convolution that halves the side, residual blocks of two 3 x 3 convolutions, and a 1 x 1 convolution.
    """

    def __init__(self, channels: int, wide: int, *, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, wide, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1), nn.ReLU(), nn.Conv2d(wide, wide, 3, 1, 1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(wide, wide, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, fine: Float[Tensor, "n c i i"]) -> Float[Tensor, "n d j j"]:
        """The residual of each region."""
        h = F.relu(self.first(fine))
        for block in self.blocks:
            h = h + block(h)
        return self.last(F.relu(h))


class PerceptualGan(Model):
    """A detector whose features of small objects a generator completes (Li et al. 2017).

    Args:
        spec: the data's space, pictures with the factors digit, size, row and column of an object.
        channels: maps of the first convolution; the others have two and four times as many, at half of the side.
        pool: side of a region's features on the deep maps.
        small: the largest side in pixels of an object that counts as small.
        jitter: by how much of their side proposals are moved and stretched at most.
        blocks: residual blocks of the generator (6 in the paper).
        hidden: units of the fully connected layers of heads and discriminator.
        loss: an object of ``nn.adversarial_losses`` or its name.
        adversarial_weight: weight of the generator's adversarial term.
        detector: share of the budget for the detector; 1 trains nothing else.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        channels: int = 64,
        pool: int = 7,
        small: int = 8,
        jitter: float = 0.15,
        blocks: int = 6,
        hidden: int = 1024,
        loss: AdversarialLossName | AdversarialLoss = "non_saturating",
        adversarial_weight: float = 1.0,
        detector: float = 0.5,
    ) -> None:
        super().__init__(spec)
        classes = require_objects(spec)
        require(least=1, channels=channels, pool=pool, small=small, blocks=blocks, hidden=hidden)
        require(least=0, adversarial_weight=adversarial_weight)
        require(least=0, below=1, jitter=jitter)
        if not 0 < detector <= 1:
            raise UserError(f"model.detector={detector} must be a share of the budget above 0, at most 1.")
        self.pool, self.small, self.jitter, self.share = pool, small, jitter, detector
        self.adversarial, self.adversarial_weight = adversarial_loss(loss), adversarial_weight
        self.scaling = Scaling(spec)
        wide = 4 * channels
        self.fine = nn.Conv2d(spec.shape[0], channels, 3, 1, 1)
        self.deep = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(2 * channels, wide, 3, 1, 1), nn.ReLU()
        )
        self.heads = Perception(wide * pool**2, classes, hidden=hidden)
        if detector < 1:
            self.generator = ResidualFeatures(channels, wide, blocks=blocks)
            self.discriminator = nn.Sequential(
                nn.Flatten(),
                nn.Linear(wide * pool**2, hidden),
                nn.LeakyReLU(0.2),
                nn.Linear(hidden, 1, bias=self.adversarial.sees_constant),
            )

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The detector and, unless it is all, discriminator and generator."""
        detector = [p for net in (self.fine, self.deep, self.heads) for p in net.parameters()]
        if self.share == 1:
            return {"detector": detector}
        others = {name: list(getattr(self, name).parameters()) for name in ("discriminator", "generator")}
        return {"detector": detector, **others}

    def stages(self) -> tuple[Stage, ...]:
        """The detector first, then the features of small objects."""
        first = Stage("detector", ("detector",), self.share)
        if self.share == 1:
            return (first,)
        return first, Stage("perceptual", ("discriminator", "generator"), 1 - self.share)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The objective of ``player`` in the module's formulas."""
        label, size, boxes = objects_of(batch, self.spec)
        proposals = jittered(boxes, self.jitter, generator)
        known, small = size > 0, (size > 0) & (size <= self.small)
        plain, fine = self.features(self.scaling(batch.x), proposals)
        if player == "detector":
            said = self.say(plain)
            terms = {"class": class_loss(said, label, known), "box": box_loss(said, boxes, proposals, known)}
            loss = terms["class"] + terms["box"]
            return loss, {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}
        if not bool(small.any()) or not bool((known & ~small).any()):
            raise UserError(f"A batch of {len(size)} lacks large or small objects; set trainer.batch_size to more.")
        completed = plain[small] + self.generator(fine[small])
        real = self.discriminator(plain[known & ~small]).squeeze(1)
        fake = self.discriminator(completed.detach() if player == "discriminator" else completed).squeeze(1)
        if player == "discriminator":
            loss = self.adversarial.discriminator(real, fake)
            return loss, {"loss": loss.detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}
        said, every = self.say(completed), small[small]
        terms = {
            "adversarial": self.adversarial.generator(fake, real if self.adversarial.sees_real else None),
            "class": class_loss(said, label[small], every),
            "box": box_loss(said, boxes[small], proposals[small], every),
        }
        loss = self.adversarial_weight * terms["adversarial"] + terms["class"] + terms["box"]
        return loss, {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}

    def features(
        self, x: Float[Tensor, "b c h w"], proposals: Float[Tensor, "b 4"]
    ) -> tuple[Float[Tensor, "b d pool pool"], Float[Tensor, "b e twice twice"]]:
        """What the detector sees of each proposal, on its deep maps and on its first."""
        shallow = F.relu(self.fine(x))
        return cropped(self.deep(shallow), proposals / 2, self.pool), cropped(shallow, proposals, 2 * self.pool)

    def say(self, features: Float[Tensor, "n d pool pool"]) -> Said:
        """What the detector's heads say of features."""
        return self.heads(features.flatten(1))

    def said_of(self, x: Float[Tensor, "b c h w"], proposals: Float[Tensor, "b 4"]) -> tuple[Said, Said]:
        """What is said of scaled pictures' regions with the residual of the generator, and without it."""
        plain, fine = self.features(x, proposals)
        without = self.say(plain)
        return (self.say(plain + self.generator(fine)) if self.share < 1 else without), without

    def objectives(self) -> dict[str, HeldOut]:
        """How many small objects are recognised, and how well their boxes fit, beside the plain detector."""
        share = HeldOut("share", "higher", some=True)
        names = ("small_accuracy", "small_accuracy_plain", "small_accuracy_over_plain")
        return dict.fromkeys((*names, "small_iou", "small_iou_plain", "small_iou_proposal", "large_accuracy"), share)

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Right classes and intersections over unions of boxes, under proposals drawn by the generator."""
        label, size, boxes = objects_of(batch, self.spec)
        proposals = jittered(boxes, self.jitter, generator)
        ours, plain = self.said_of(self.scaling(batch.x), proposals)
        found = {
            "small_accuracy": right(ours, label),
            "small_accuracy_plain": right(plain, label),
            "small_accuracy_over_plain": right(ours, label) - right(plain, label),
            "small_iou": overlap(ours, boxes, proposals),
            "small_iou_plain": overlap(plain, boxes, proposals),
            "small_iou_proposal": iou(proposals, boxes),
        }
        found = {name: value.where((size > 0) & (size <= self.small), torch.nan) for name, value in found.items()}
        return {**found, "large_accuracy": right(plain, label).where(size > self.small, torch.nan)}

    @torch.no_grad()
    def panels(self, batch: Batch, *, generator: Generator | None = None) -> Float[Tensor, "b 4 c h w"]:
        """The picture, the proposal, the box that is found in it, and the true box."""
        _, size, boxes = objects_of(batch, self.spec)
        proposals, x = jittered(boxes, self.jitter, generator), self.scaling(batch.x)
        ours, plain = self.said_of(x, proposals)
        t = torch.where((size <= self.small)[:, None], ours.box, plain.box)
        drawn = [framed(x, each, 1.0) for each in (proposals, decoded(t, proposals), boxes)]
        return self.scaling.unrounded(torch.stack([x, *drawn], 1))
