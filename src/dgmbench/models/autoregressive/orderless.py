r"""What all orderless NADEs share: one network for every conditional p(x_i | x_known), trained for all orders at once.

A network gets the known values (0 elsewhere) and which dimensions are known, and gives the parameters of every other
dimension's conditional. With the number of known dimensions d uniform on 0 ... D - 1 and the set uniform of that size,

    loss = -E[ D / (D - d) sum_{i unknown} log p(x_i | x_known) ]

is an unbiased estimate of -log p_o(x), averaged over all D! orders o, where log p_o(x) = sum_t log p(x_o(t) | x_o(<t)).

An order makes the network a distribution, and different orders make different ones. What is evaluated is the uniform
mixture of ``orders`` fixed orders, EoNADE: log p(x) = logsumexp_o log p_o(x) - log M, an average of joint
probabilities. It costs M D passes an example, as many rows at a time as fit in a bounded memory; samples of it draw
their order first.

Uria, Murray, Larochelle, "A Deep and Tractable Density Estimator", ICML 2014, https://arxiv.org/abs/1310.1757.
"""

import math
from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import require
from dgmbench.models.contract import Logs, Model
from dgmbench.nn.conditionals import Conditionals, Discrete

ROWS = 8192  # inputs of the network at a time in an evaluation


class Orderless(Model):
    """Order-agnostic training, mixtures over orders, and completion of any part given any other.

    A subclass defines ``parameters_given`` and has an ``out_bias`` (D, P).
    """

    out_bias: Tensor
    sequences: Tensor
    rows = ROWS

    def __init__(self, spec: DataSpec, *, orders: int, components: int = 10, discrete: Discrete = "auto") -> None:
        super().__init__(spec)
        require(least=1, orders=orders)
        self.conditionals = Conditionals(spec, components=components, discrete=discrete)
        # the dimension at each position of each order, (orders, D)
        self.register_buffer("sequences", torch.stack([torch.randperm(spec.dim) for _ in range(orders)]))

    @abstractmethod
    def parameters_given(self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"]) -> Float[Tensor, "b d p"]:
        """Parameters of every conditional p(x_i | x_known); ``values`` are 0 where ``known`` is 0."""

    def parameters_of(
        self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"], which: Int[Tensor, " b"]
    ) -> Float[Tensor, "b p"]:
        """The parameters of one dimension for each row; a subclass may compute no more than these."""
        return self.parameters_given(values, known)[torch.arange(len(which), device=which.device), which]

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output biases to the marginals."""
        self.conditionals.initialise(self.out_bias.detach(), batch.x, generator)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """The order-agnostic loss with a random set of known dimensions for each example."""
        loss = self.loss_given(batch.x, self.draw_known(len(batch.x), generator)).mean()
        return loss, {"log_prob": -loss.detach()}

    def loss_given(self, x: Tensor, known: Bool[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """D / (D - d) sum_{i unknown} -log p(x_i | x_known), for raw x (b, *shape)."""
        mask = known.to(self.out_bias.dtype)
        parameters = self.parameters_given(self.conditionals.inputs(x, self.out_bias) * mask, mask)
        return self._scaled(parameters, x, known)

    def _scaled(self, parameters: Tensor, x: Tensor, known: Tensor) -> Float[Tensor, " b"]:
        each = self.conditionals.log_prob(parameters, x).masked_fill(known, 0.0)
        return -each.sum(1) * self.spec.dim / (~known).sum(1)

    def draw_known(self, n: int, generator: Generator) -> Bool[Tensor, "n d"]:
        """Which dimensions are known: a uniform number from 0 to D - 1 of them, and a uniform set of that size."""
        device, dim = generator.device, self.spec.dim
        count = torch.randint(dim, (n, 1), generator=generator, device=device)
        shuffled = torch.rand(n, dim, generator=generator, device=device).argsort(1)
        first = torch.arange(dim, device=device) < count
        return torch.zeros(n, dim, dtype=torch.bool, device=device).scatter_(1, shuffled, first)

    def log_prob(self, x: Tensor) -> Float[Tensor, " b"]:
        """Exact log-likelihood of raw x (b, *shape) under the mixture of orders, nats per example."""
        each = torch.stack([self.log_prob_in_order(x, sequence) for sequence in self.sequences])
        return each.logsumexp(0) - math.log(len(self.sequences))

    def log_prob_in_order(self, x: Tensor, sequence: Int[Tensor, " d"]) -> Float[Tensor, " b"]:
        """Exact log p_o(x) of raw x (b, *shape) when the dimensions are drawn in this sequence."""
        parameters = self._parameters_in_order(x, sequence)
        return self.conditionals.log_prob(parameters, x.flatten(1)[:, sequence]).sum(1)

    def _parameters_in_order(self, x: Tensor, sequence: Int[Tensor, " d"]) -> Float[Tensor, "b d p"]:
        """The conditionals' parameters by position: D passes for each example, ``rows`` at a time."""
        values = self.conditionals.inputs(x, self.out_bias)
        (b, dim), position = values.shape, sequence.argsort()
        some = max(1, self.rows // max(b, 1))
        found = []
        for t in torch.arange(dim, device=position.device).split(some):
            known = (position < t[:, None]).to(values.dtype)
            rows = (values[:, None] * known).flatten(0, 1)
            asked = sequence[t].repeat(b)
            found.append(self.parameters_of(rows, known.repeat(b, 1), asked).view(b, len(t), -1))
        return torch.cat(found, 1)

    def conditional_logits(self, x: Tensor) -> Float[Tensor, "b d p"]:
        """Parameters of the first order's conditionals given raw x (b, *shape), dimensions in C order; D passes."""
        return self._parameters_in_order(x, self.sequences[0])[:, self.ordering()]

    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension in the first order."""
        return self.sequences[0].argsort()

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, generator: Generator | None = None) -> Tensor:
        """Draw n exact samples of the mixture, raw (n, *shape): D passes, each example in an order of its own."""
        values = self.out_bias.new_zeros(n, self.spec.dim)
        values = self._fill(values, torch.zeros_like(values, dtype=torch.bool), generator)
        return self.conditionals.raw(values)

    @torch.no_grad()
    def complete(self, x: Tensor, known: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Draw the unknown dimensions of raw x given the known ones; raw (b, *shape).

        Exact for the orders that put the known dimensions first and the others in the order drawn for the example:
        the network has every conditional that they need. The mixture's own conditional would weigh its orders by how
        probable each finds the known part, and differs as far as the orders disagree.
        """
        mask = known.flatten(1).to(self.out_bias.device)
        values = self._fill(self.conditionals.inputs(x, self.out_bias) * mask, mask, generator)
        return torch.where(known, x, self.conditionals.raw(values))

    def _fill(self, values: Tensor, known: Tensor, generator: Generator | None) -> Tensor:
        """Fill in what is not known, one dimension of every example at a time; values as the network sees them."""
        n = len(values)
        chosen = torch.randint(len(self.sequences), (n,), generator=generator, device=values.device)
        noise = self.conditionals.noise(n, values, generator=generator)
        # each example's order with its known dimensions first
        sequence = self.sequences[chosen]
        sequence = sequence.gather(1, (~known.gather(1, sequence)).to(torch.uint8).argsort(dim=1, stable=True))
        count, mask = known.sum(1), known.to(values.dtype)
        for t in range(int(count.min()) if n else self.spec.dim, self.spec.dim):
            which = sequence[:, t]
            drawn = self.conditionals.draw(self.parameters_of(values, mask, which).T, noise[:, t])
            at = which[:, None]
            drawn = torch.where(count <= t, drawn, values.gather(1, at)[:, 0])
            values, mask = values.scatter(1, at, drawn[:, None]), mask.scatter(1, at, 1.0)
        return values
