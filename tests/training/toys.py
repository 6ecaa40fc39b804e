"""Models small enough to know everything about, for tests of the trainer."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model, Stage


class MeanModel(Model):
    """log p(x) = -1/2 ||x - m||^2 + const: the gradient of the mean loss is m - mean(x)."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.mean = nn.Parameter(torch.zeros(spec.dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def log_prob(self, x: Tensor) -> Tensor:
        d = x.float().flatten(1) - self.mean
        return -0.5 * d.square().sum(1) - 0.9189385 * self.spec.dim

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        return -self.log_prob(batch.x).mean(), {}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        self.steps += 1

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        noise = torch.randn((n, self.spec.dim), generator=generator)
        return (self.mean + noise).reshape(n, *self.spec.shape).detach()


class Duel(Model):
    """Two players; ``b`` moves once in ``n_critic`` updates. Records who moved on which images."""

    def __init__(self, spec: DataSpec, *, n_critic: int = 1) -> None:
        super().__init__(spec)
        self.a = nn.Parameter(torch.zeros(3))
        self.b = nn.Parameter(torch.zeros(3))
        self.n_critic = n_critic
        self.moves: list[tuple[str, int, tuple[int, ...]]] = []

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"a": [self.a], "b": [self.b]}

    def turn(self, step: int, stage: Stage) -> Sequence[str]:
        return ("a", "b") if (step + 1) % self.n_critic == 0 else ("a",)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        noise = torch.randn(3, generator=generator)
        target = self.b if player == "a" else -self.a
        mine = self.a if player == "a" else self.b
        return ((mine - target - noise) ** 2).sum(), {"noise": noise.sum()}

    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        assert batch.index is not None
        self.moves.append((player, len(batch.x), tuple(batch.index.tolist())))

    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        return torch.randint(0, 2, (n, *self.spec.shape), generator=generator, dtype=torch.uint8)
