"""A translator, an enhancer, a classifier and a regressor without samples and likelihood, and data with two domains."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.digits import Digits
from dgmbench.data.reader import Decoded, Part
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.evaluation.quality.similarity import psnr
from dgmbench.models.contract import Logs, Model
from dgmbench.models.tasks import HeldOut

TOP = 16  # the brightest level


class TwoDomains(Digits):
    """The digits, every second one as its negative: factors domain (2) and digit (10)."""

    def read(self, folder: Path) -> Decoded:
        decoded = super().read(folder)

        def half_negative(part: Part) -> Part:
            negative = np.arange(len(part.y)) % 2
            x = np.where(negative[:, None, None, None] == 1, TOP - part.x, part.x).astype(np.uint8)
            return replace(part, x=x, y=(negative * 10 + part.y).astype(np.int64))

        spec = replace(decoded.spec, num_classes=20, factors=(("domain", 2), ("digit", 10)))
        return replace(decoded, spec=spec, parts={split: half_negative(part) for split, part in decoded.parts.items()})


class Translator(Model):
    """To the other domain by x + s (top - 2 x); s = 1 is the negative. A picture's own domain is told by its mean."""

    domain = "domain"

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.s = nn.Parameter(torch.zeros(()))

    def moved(self, x: Tensor) -> Tensor:
        return x + self.s * (TOP - 2 * x.float())

    def translate(self, x: Tensor, to: Tensor, *, generator: Generator | None = None) -> Tensor:
        now = (x.float().flatten(1).mean(1) > TOP / 2).long()
        there = self.moved(x).round().clamp(0, TOP).to(torch.uint8)
        return torch.where((now == to)[:, None, None, None], x, there)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return ((self.moved(batch.x) - (TOP - batch.x.float())) / TOP).square().mean(), {}

    def objectives(self) -> Mapping[str, HeldOut]:
        return {"negative_gap": HeldOut("levels", "lower"), "kept_middle": HeldOut("share", "higher")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        gap = (self.moved(batch.x) - (TOP - batch.x.float())).abs().flatten(1).mean(1)
        return {"negative_gap": gap, "kept_middle": (self.moved(batch.x).flatten(1).mean(1) > TOP / 2).float()}


class Enhancer(Model):
    """Twice the size: bicubic interpolation and a linear map of the small picture on top."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.residual = nn.Linear(spec.dim // 4, spec.dim)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)

    def degrade(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        return F.avg_pool2d(x.float(), 2).round().to(torch.uint8)

    def enhance(self, given: Tensor, *, generator: Generator | None = None) -> Tensor:
        large = F.interpolate(given.float(), self.spec.shape[1:], mode="bicubic", antialias=True)
        return large + self.residual(given.float().flatten(1)).view_as(large)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return ((self.enhance(self.degrade(batch.x)) - batch.x) / TOP).square().mean(), {}

    def objectives(self) -> Mapping[str, HeldOut]:
        return {"fidelity": HeldOut("dB", "higher")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        return {"fidelity": psnr(self.enhance(self.degrade(batch.x)) / TOP, batch.x / TOP)}


class LabelsOnly(Model):
    """p(y | x) = softmax(W x): no model of x."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.logits = nn.Linear(spec.dim, spec.num_classes or 0)

    def classify(self, x: Tensor) -> Tensor:
        return self.logits(x.float().flatten(1) / TOP)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return F.cross_entropy(self.classify(batch.x), batch.y), {}

    def objectives(self) -> Mapping[str, HeldOut]:
        return {"label_log_prob": HeldOut("nats", "higher", "exact")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        return {"label_log_prob": -F.cross_entropy(self.classify(batch.x), batch.y, reduction="none")}


class Ink(Model):
    """The mean ink of a picture from its upper half: linear, with a Gaussian predictive density."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(spec.dim // 2))
        self.bias = nn.Parameter(torch.zeros(()))
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def target(self, batch: Batch) -> Tensor:
        return batch.x.float().flatten(1).mean(1)

    def predict(self, batch: Batch) -> Tensor:
        assert batch.y is None
        return batch.x.float().flatten(1)[:, : len(self.weight)] @ self.weight + self.bias

    def log_predictive(self, batch: Batch) -> Tensor:
        u = (self.target(batch) - self.predict(batch._replace(y=None))) * torch.exp(-self.log_sigma)
        return -0.5 * u.square() - self.log_sigma - 0.5 * math.log(2 * math.pi)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.log_predictive(batch).mean(), {}

    def objectives(self) -> Mapping[str, HeldOut]:
        return {"ink_nll": HeldOut("nats", "lower", "exact")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        return {"ink_nll": -self.log_predictive(batch)}


class Falling(Model):
    """Its objective is less by one after each update."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("height", torch.zeros(()))

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return self.weight.square(), {}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        self.height -= 1

    def objectives(self) -> Mapping[str, HeldOut]:
        return {"height": HeldOut("m", "higher")}

    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> Mapping[str, Tensor]:
        return {"height": self.height.expand(len(batch.x))}
