"""A user's own conditional models and data: p(x | c) of two binary pixels pairs that can be enumerated.

The condition c is two bits, x a (1, 2, 2) picture. Under c, each pixel is one with a probability of its own.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model

SPEC = DataSpec((1, 2, 2), "binary", given=DataSpec((2,), "binary"))


def probabilities(c: np.ndarray) -> np.ndarray:
    """P(pixel = 1 | c) of conditions c (n, 2), as (n, 4): c decides two pixels almost, the others a little."""
    first, second = c[:, 0].astype(float), c[:, 1].astype(float)
    return np.stack([0.1 + 0.8 * first, 0.9 - 0.8 * second, 0.4 + 0.2 * first, 0.5 + 0 * first], 1)


class Bits(Reader):
    """Pictures under random conditions, drawn by ``seed``."""

    prepared = False

    def __init__(self, *, n: int = 400, seed: int = 0) -> None:
        self.n, self.seed = n, seed

    def read(self, folder: Path) -> Decoded:
        parts = {}
        for number, split in enumerate(SPLITS):
            random, n = np.random.RandomState(10 * self.seed + number), self.n if split == "train" else self.n // 2
            c = random.randint(2, size=(n, 2)).astype(np.uint8)
            x = (random.rand(n, 4) < probabilities(c)).astype(np.uint8).reshape(n, 1, 2, 2)
            parts[split] = Part(x, None, f"bits {split}", np.arange(n), given=c)
        return Decoded(SPEC, parts)


class Pixels(Model):
    """p(x | c) = prod_i Bernoulli(x_i; sigmoid(w_i(c))), one weight a pixel and condition."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        assert spec.given is not None
        self.logits = nn.Parameter(0.1 * torch.randn(2**spec.given.dim, spec.dim))

    def _of(self, given: Tensor) -> Tensor:
        bits = given.flatten(1).long()
        return self.logits[(bits * 2 ** torch.arange(bits.shape[1], device=bits.device)).sum(1)]

    def log_prob(self, x: Tensor, *, given: Tensor) -> Tensor:
        x = x.flatten(1).to(self.logits.dtype)
        return -F.binary_cross_entropy_with_logits(self._of(given), x, reduction="none").sum(1)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        assert batch.given is not None
        loss = -self.log_prob(batch.x, given=batch.given).mean()
        return loss, {"nll": loss.detach()}

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        p = self._of(given).sigmoid()
        noise = torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype)
        return (noise < p).to(torch.uint8).reshape(n, *self.spec.shape)


class Mixture(Model):
    """p(x | c) = sum_k p(k | c) prod_i Bernoulli(x_i; p_k(c)), and q(k | x) of x alone: a bound that is never tight."""

    def __init__(self, spec: DataSpec, *, components: int = 2) -> None:
        super().__init__(spec)
        assert spec.given is not None
        self.parts = nn.Parameter(0.3 * torch.randn(2**spec.given.dim, components, spec.dim))
        self.prior = nn.Parameter(0.3 * torch.randn(2**spec.given.dim, components))
        self.posterior = nn.Parameter(0.1 * torch.randn(spec.dim, components))

    def joint(self, x: Tensor, given: Tensor) -> Tensor:
        """log p(x, k | c), (b, k)."""
        c = (given.flatten(1).long() * 2 ** torch.arange(given[0].numel(), device=given.device)).sum(1)
        x = x.flatten(1)[:, None].to(self.parts.dtype).expand(-1, self.parts.shape[1], -1)
        each = -F.binary_cross_entropy_with_logits(self.parts[c], x, reduction="none").sum(2)
        return each + self.prior[c].log_softmax(1)

    def log_weights(self, x: Tensor, k: int, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        q = (x.flatten(1).to(self.parts.dtype) @ self.posterior).log_softmax(1)
        drawn = torch.multinomial(q.exp(), k, replacement=True, generator=generator)
        return (self.joint(x, given) - q).gather(1, drawn).T

    def elbo(self, x: Tensor, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        return self.log_weights(x, 1, given=given, generator=generator)[0]

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        assert batch.given is not None
        q = (batch.x.flatten(1).to(self.parts.dtype) @ self.posterior).log_softmax(1)
        loss = -(q.exp() * (self.joint(batch.x, batch.given) - q)).sum(1).mean()
        return loss, {"elbo": -loss.detach()}

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, given: Tensor, generator: Generator | None = None) -> Tensor:
        c = (given.flatten(1).long() * 2 ** torch.arange(given[0].numel(), device=given.device)).sum(1)
        k = torch.multinomial(self.prior[c].softmax(1), 1, generator=generator)[:, 0]
        p = self.parts[c, k].sigmoid()
        noise = torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype)
        return (noise < p).to(torch.uint8).reshape(n, *self.spec.shape)
