"""What the models of one order share: log p(x) = sum_i log p(x_i | x_before(i)), in nats.

x is raw (b, *shape), flattened in C order. A subclass sets ``conditionals``.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.conditionals import Conditionals
from dgmbench.nn.masked import MaskedMlp


class OneOrder(Model):
    """Exact likelihood, samples and completions of conditionals in one order, trained by maximum likelihood.

    A subclass defines ``conditional_logits``, ``ordering``, ``sweep`` and ``like``, a tensor of its dtype and device.
    """

    conditionals: Conditionals

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A parameter, for its dtype and device."""

    @abstractmethod
    def conditional_logits(self, x: Tensor) -> Float[Tensor, "b d p"]:
        """Parameters of the conditionals given raw x (b, *shape), dimensions in C order."""

    @abstractmethod
    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension in the order."""

    @abstractmethod
    def sweep(self, n: int, draw: Callable[[int, Tensor], Tensor]) -> Float[Tensor, "n d"]:
        """Go through the order once; see ``Sweep``."""

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-likelihood."""
        log_prob = self.log_prob(batch.x).mean()
        return -log_prob, {"log_prob": log_prob.detach()}

    def log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, *shape), nats per example."""
        return self.conditionals.log_prob(self.conditional_logits(x), x).sum(1)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n exact samples, raw (n, *shape), for about the work of one density."""
        return self.conditionals.sample(n, self.sweep, self.like, generator)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw x (b, *shape) where ``known``, drawn elsewhere, each value given all those before it in the order.

        Exact where the known dimensions come first in ``ordering()``; known ones do not influence those before them.
        """
        return self.conditionals.complete(x, known, self.ordering().argsort(), self.sweep, self.like, generator)


class MaskedOrder(OneOrder):
    """The same from a masked network ``net`` of one mask."""

    net: MaskedMlp

    @property
    def like(self) -> Tensor:
        """The first layer's bias."""
        return self.net.linear(0).bias

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output biases to the marginals."""
        bias = self.net.linear(self.net.depth).bias.detach()
        self.conditionals.initialise(bias.view(self.spec.dim, -1), batch.x, generator)

    def conditional_logits(self, x: Tensor) -> Float[Tensor, "b d p"]:
        """Parameters of the conditionals given raw x (b, *shape), dimensions in C order."""
        return self.net(self.conditionals.inputs(x, self.like))

    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension in the order."""
        return self.net.positions[0]

    def sweep(self, n: int, draw: Callable[[int, Tensor], Tensor]) -> Float[Tensor, "n d"]:
        """Hidden units are computed as their inputs become known."""
        return self.net.ancestral(n, draw)
