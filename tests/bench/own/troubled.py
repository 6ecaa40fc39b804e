"""A model that fails in the ways that cells can fail: independent Gaussians with a trouble."""

import math
import os
import signal
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model


class Troubled(Model):
    def __init__(
        self,
        spec: DataSpec,
        *,
        trouble: Literal["none", "raise", "die", "exit", "hang", "memory", "no memory"] = "none",
        marks: str | None = None,
    ) -> None:
        """What hangs says in the folder ``marks`` that it has ``begun``, and goes on when it finds ``released``."""
        super().__init__(spec)
        self.mean = nn.Parameter(torch.zeros(spec.dim))
        self.trouble, self.marks = trouble, None if marks is None else Path(marks)

    def log_prob(self, x: Tensor) -> Tensor:
        return -(0.5 * (x.flatten(1) - self.mean).square() + 0.5 * math.log(2 * math.pi)).sum(1)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        if self.trouble == "raise":
            raise ValueError("the trouble that was asked for")
        if self.trouble == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.trouble == "exit":
            os._exit(3)
        if self.trouble == "hang":
            self.hang()
        if self.trouble == "memory":
            hoard = []
            while True:
                hoard.append(bytearray(b"x") * 2**26)
                time.sleep(0.01)
        if self.trouble == "no memory":
            torch.empty(2**60)
        loss = -self.log_prob(batch.x).mean()
        return loss, {"nll": loss.detach()}

    def hang(self) -> None:
        if self.marks is not None:
            (self.marks / "begun").touch()
        if self.marks is None or not (self.marks / "released").exists():
            time.sleep(0.2)

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        x = self.mean + torch.randn(n, self.spec.dim, generator=generator)
        return x.detach().reshape(n, *self.spec.shape).to(self.spec.dtype)
