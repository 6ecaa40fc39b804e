r"""MADE: a masked autoencoder whose outputs are the conditionals of an autoregressive model.

Masks cut every path from x_j to the parameters of p(x_i | x before i) unless j comes before i, so that one pass gives
all D conditionals and the likelihood is exact:

    log p(x) = sum_i log p(x_i | x_before(i)),      loss = -E[log p_m(x)] over data and a mask m drawn for each batch.

With M masks (different connectivities, and different orders of the dimensions if ``order=agnostic``) the model is the
uniform mixture of the M models that share the weights, log p(x) = logsumexp_m log p_m(x) - log M: an average of
probabilities. An average of logits, as sometimes seen, is no distribution: it does not sum to one.

Shapes and units: x is raw (b, *shape), flattened in C order; ``log_prob`` is in nats per example, (b,). The
conditional of a binary dimension has one logit, of a discrete one ``levels`` logits or a mixture of discretised
logistics, and of a real one a mixture of Gaussians (logits, means, log scales, the last squashed softly into (-7, 7)).

Paper: Germain, Gregor, Murray, Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015,
https://arxiv.org/abs/1502.03509. Mixtures for real data: Papamakarios et al. 2017, https://arxiv.org/abs/1705.07057.

Different from the paper: the mask of a batch is drawn at random from the M masks where the paper cycles through them,
so that the loss needs no counter; outputs for discrete and real data are added; samples of a mixture over masks draw
their mask first; output biases start at the data's marginals (the first dimensions see little else, and a bias
alone learns slowly); the optional "connectivity weights" that tell the network its mask are left out. Sampling
computes each hidden unit once, in order of degree, where the paper runs D full passes.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.conditionals import Conditionals, Discrete, Sweep
from dgmbench.nn.masked import MaskedMlp, Order


class Made(Model):
    """Masked autoencoder for distribution estimation of binary, discrete and real data.

    Args:
        spec: The data space.
        hidden_sizes: Widths of the hidden layers.
        masks: M, the number of masks of the mixture.
        order: ``natural`` (C order of the array), ``random`` (one order for all masks) or ``agnostic`` (one for each).
        direct: Adds masked weights from the inputs straight to the outputs.
        components: Components in the mixture of a dimension that has one.
        discrete: ``categorical``, ``logistics`` (mixtures of discretised logistics) or ``auto``: see ``Conditionals``.
    """

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int] = (500,), masks: int = 1, order: Order = "natural",
        direct: bool = False, components: int = 10, discrete: Discrete = "auto",
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"MADE takes binary, discrete or real data, not {spec.kind}.")
        require(least=1, hidden_sizes=hidden_sizes, masks=masks, components=components)
        if order not in ("natural", "random", "agnostic"):
            raise UserError(f"MADE's order is natural, random or agnostic, not {order!r}.")
        self.conditionals = Conditionals(spec, components=components, discrete=discrete)
        parameters = self.conditionals.parameters_per_dim
        self.net = MaskedMlp(spec.dim, tuple(hidden_sizes), parameters, masks=masks, order=order, direct=direct)

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output biases to the marginals, so that the first dimensions, which see little else, start right."""
        bias = self.net.linear(self.net.depth).bias
        self.conditionals.initialise(bias.detach().view(self.spec.dim, -1), batch.x, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-likelihood under one mask drawn for the batch."""
        mask = 0
        if self.net.masks > 1:
            mask = int(torch.randint(self.net.masks, (), generator=generator, device=generator.device))
        nll = -self._log_prob_under(batch.x, mask).mean()
        return nll, {"log_prob": -nll.detach()}

    def log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, *shape), nats per example."""
        each = torch.stack([self._log_prob_under(x, mask) for mask in range(self.net.masks)])
        return each.logsumexp(0) - math.log(self.net.masks)

    def conditional_logits(self, x: Tensor) -> Float[Tensor, "b d p"]:
        """Parameters of the first mask's conditionals given raw x (b, *shape), dimensions in C order."""
        return self.net(self.conditionals.inputs(x, self.net.linear(0).bias))

    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension in the first mask's order."""
        return self.net.positions[0]

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n exact samples, raw (n, *shape); each example draws its mask first."""
        chosen = torch.zeros(n, dtype=torch.int64, device=self.net.positions.device)
        if self.net.masks > 1:
            chosen = torch.randint(self.net.masks, (n,), generator=generator, device=chosen.device)
        like, x = self.net.linear(0).bias, torch.empty(n, *self.spec.shape, dtype=self.spec.dtype, device=chosen.device)
        for mask in chosen.unique().tolist():
            where = chosen == mask
            x[where] = self.conditionals.sample(int(where.sum()), self._sweep(mask), like, generator)
        return x

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Raw x (b, *shape) where ``known``, drawn elsewhere, each value given all those before it in the order.

        Each example draws its mask from p(m | the known dimensions before the first unknown one). Exact where the known
        dimensions come first in the order of all masks; known ones do not influence those before them.
        """
        sequences, flat = self.net.positions.argsort(1), known.flatten(1)
        chosen = torch.zeros(len(x), dtype=torch.int64, device=sequences.device)
        if self.net.masks > 1:
            evidence = [
                (self._each_under(x, mask)[:, order] * flat[:, order].cumprod(1)).sum(1)
                for mask, order in enumerate(sequences)
            ]
            chosen = torch.multinomial(torch.stack(evidence, 1).softmax(1), 1, generator=generator)[:, 0]
        like, drawn = self.net.linear(0).bias, torch.empty_like(x)
        for mask in chosen.unique().tolist():
            at = chosen == mask
            sweep = self._sweep(mask)
            drawn[at] = self.conditionals.complete(x[at], known[at], sequences[mask], sweep, like, generator)
        return drawn

    def _sweep(self, mask: int) -> Sweep:
        return partial(self.net.ancestral, mask=mask)

    def _each_under(self, x: Tensor, mask: int) -> Float[Tensor, "b d"]:
        parameters = self.net(self.conditionals.inputs(x, self.net.linear(0).bias), mask)
        return self.conditionals.log_prob(parameters, x)

    def _log_prob_under(self, x: Tensor, mask: int) -> Float[Tensor, " b"]:
        return self._each_under(x, mask).sum(1)
