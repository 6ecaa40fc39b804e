"""A user's own sequences of different lengths, with a label at each step, and a model of them: a Markov chain."""

from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from dgmbench.data.reader import SPLITS, Decoded, Part, Reader
from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.sequences import within

LONGEST = 5


class Runs(Reader):
    """Sticky binary sequences of 1 ... 5 steps in arrays with ``padding`` more; a step's label says if it is a change.

    A fifth of the labels is unknown.
    """

    prepared = False

    def __init__(self, *, n: int = 300, padding: int = 0) -> None:
        self.n, self.padding = n, padding

    def read(self, folder: Path) -> Decoded:
        parts = {}
        for number, split in enumerate(SPLITS):
            random = np.random.RandomState(number)
            changes = random.rand(self.n, LONGEST) < 0.3
            length = random.randint(1, LONGEST + 1, size=self.n)
            unknown = random.rand(self.n, LONGEST) < 0.2
            behind = np.arange(LONGEST) >= length[:, None]
            x = np.where(behind, 0, changes.cumsum(1) % 2).astype(np.uint8)
            y = np.where(behind | unknown, -1, changes).astype(np.int64)
            x, y = (np.pad(a, ((0, 0), (0, self.padding)), constant_values=v) for a, v in ((x, 0), (y, -1)))
            parts[split] = Part(x, y, f"runs {split}", np.arange(self.n), length=length.astype(np.int64))
        spec = DataSpec((LONGEST + self.padding,), "binary", num_classes=2, step_labels=True, lengths=True)
        return Decoded(spec, parts)


class Chain(Model):
    """p(x | length) = p(x_1) prod_t p(x_t | x_(t-1)); a step's label by a linear rule on both."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.start = nn.Parameter(torch.zeros(()))
        self.follow = nn.Parameter(torch.tensor([-0.2, 0.2]))
        self.rule = nn.Parameter(torch.zeros(2, 2, 2))

    def each(self, x: Tensor) -> Tensor:
        """log p of every step given the one before, (b, t)."""
        logits = torch.cat([self.start.expand(len(x), 1), self.follow[x[:, :-1].long()]], 1)
        return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none")

    def log_prob(self, x: Tensor, *, length: Tensor) -> Tensor:
        return self.each(x).masked_fill(~within(length, x.shape[1]), 0.0).sum(1)

    def classify(self, x: Tensor) -> Tensor:
        before = F.pad(x, (1, 0))[:, :-1].long()
        return self.rule[before, x.long()]

    def reconstruct(self, x: Tensor, *, length: Tensor, generator: Generator | None = None) -> Tensor:
        """What the step before leads one to expect, and something in the padding."""
        expected = torch.cat([self.start.expand(len(x), 1), self.follow[x[:, :-1].long()]], 1).sigmoid()
        return expected.masked_fill(~within(length, x.shape[1]), 1.0)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        assert batch.y is not None
        assert batch.length is not None
        nll = -self.log_prob(batch.x, length=batch.length).sum() / batch.length.sum()
        errors = F.cross_entropy(self.classify(batch.x).flatten(0, 1), batch.y.flatten(), ignore_index=-1)
        return nll + errors, {"nll": nll.detach()}

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, length: Tensor, generator: Generator | None = None) -> Tensor:
        steps = self.spec.shape[0]
        noise = torch.rand(LONGEST, n, generator=generator, device=length.device)
        x = torch.zeros(n, steps, dtype=torch.uint8, device=length.device)
        for t in range(LONGEST if steps > LONGEST else steps):
            logits = self.start.expand(n) if t == 0 else self.follow[x[:, t - 1].long()]
            x[:, t] = (noise[t] < logits.sigmoid()).to(torch.uint8)
        return x.masked_fill(~within(length, steps), 0)
