"""Models that are trained in stages and known by heart, for tests from the command line."""

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model, Stage


class TwoStages(Model):
    """A Gaussian whose second stage has ten times the deviation: what it gains is on a worse scale than the first's."""

    def __init__(self, spec: DataSpec, *, compare: bool = False) -> None:
        super().__init__(spec)
        self.objectives_compare = compare
        self.mean = nn.Parameter(torch.zeros(spec.dim))
        self.register_buffer("sigma", torch.ones(()))
        self.register_buffer("share", torch.zeros(()))

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("narrow", ("model",)), Stage("wide", ("model",)))

    def enter_stage(self, stage: Stage, generator: Generator) -> None:
        self.sigma.fill_(1.0 if stage.name == "narrow" else 10.0)
        self.mean.add_(torch.randn(self.mean.shape, generator=generator))

    def advance(self, stage: Stage, share: float) -> None:
        self.share.fill_(share)

    def log_prob(self, x: Tensor) -> Tensor:
        u = (x.flatten(1) - self.mean) / self.sigma
        return -(0.5 * u.square() + self.sigma.log() + 0.5 * math.log(2 * math.pi)).sum(1)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        noise = 1e-2 * torch.randn(self.mean.shape, generator=generator)
        return -self.log_prob(batch.x + noise).mean(), {}

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        noise = torch.randn(n, self.spec.dim, generator=generator)
        return (self.mean + self.sigma * noise).detach().reshape(n, *self.spec.shape)


class Growing(Model):
    """Independent means of pixels, learned at a quarter of the size, then at all of it with fading in.

    p = (1 - alpha) enlarged(coarse) + alpha fine, with alpha the share of the second stage.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        c, h, w = spec.shape
        self.coarse = nn.Parameter(torch.zeros(c, h // 2, w // 2))
        self.fine = nn.Parameter(torch.zeros(spec.shape))
        self.register_buffer("alpha", torch.zeros(()))

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"coarse": [self.coarse], "fine": [self.fine]}

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("half", ("coarse",), view=self._half, batch_size=200),
            Stage("whole", ("fine",), batch_size=50),
        )

    @staticmethod
    def _half(batch: Batch, generator: Generator) -> Batch:
        return batch._replace(x=F.avg_pool2d(batch.x.float(), 2))

    def advance(self, stage: Stage, share: float) -> None:
        self.alpha.fill_(share if stage.name == "whole" else 0.0)

    def mean(self) -> Tensor:
        enlarged = self.coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)
        return torch.lerp(enlarged, self.fine, self.alpha)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        mean = self.coarse if player == "coarse" else self.mean()
        assert batch.x.shape[1:] == mean.shape
        return (batch.x - mean).square().mean(), {"size": torch.tensor(float(len(batch.x)))}

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        p = self.mean().clamp(0, 1).expand(n, *self.spec.shape)
        return torch.bernoulli(p.detach(), generator=generator).to(self.spec.dtype)
