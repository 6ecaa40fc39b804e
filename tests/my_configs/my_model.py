"""A user's own model beside their own configurations: independent Gaussians, exact and quick."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model


class Start:
    def __init__(self, *, log_scale: float = 0.0) -> None:
        self.log_scale = log_scale


class Wide(Start):
    def __init__(self, *, log_scale: float = 2.0, tries: int | None = None) -> None:
        super().__init__(log_scale=log_scale)


class Gaussian(Model):
    def __init__(
        self,
        spec: DataSpec,
        *,
        part: Start,
        sizes: Sequence[int] = (3, 4),
        reduction: Literal["mean", "sum"] = "mean",
        rate: float = 1.0,
        centred: bool = False,
    ) -> None:
        super().__init__(spec)
        self.mean = nn.Parameter(torch.zeros(spec.dim))
        self.log_scale = nn.Parameter(torch.full((spec.dim,), part.log_scale))

    def log_prob(self, x: Tensor) -> Tensor:
        u = (x.flatten(1) - self.mean) * torch.exp(-self.log_scale)
        return -(0.5 * u.square() + self.log_scale + 0.5 * math.log(2 * math.pi)).sum(1)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        loss = -self.log_prob(batch.x).mean()
        return loss, {"nll": loss.detach()}

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        noise = torch.randn(n, self.spec.dim, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        x = self.mean + torch.exp(self.log_scale) * noise
        return x.detach().reshape(n, *self.spec.shape).to(self.spec.dtype)
