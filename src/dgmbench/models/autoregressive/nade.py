r"""NADE: a feed-forward network for each conditional, with the hidden units of one shared by the next.

The hidden units of position t of the order see the values before it through shared weights, as the mean-field update of
a restricted Boltzmann machine would, and each adds one term to those before it:

    log p(x) = sum_t log p(x_t | beta_t + V_t h_t),   h_t = g(rho_t (c + sum_{s<t} W_s x_s)),   loss = -E[log p(x)].

All D conditionals, their gradients and samples cost O(HD) an example (``nn/nade.py``).

Shapes and units: x is raw (b, *shape), flattened in C order; ``log_prob`` is in nats per example, (b,). The conditional
of a binary dimension is Bernoulli, of a discrete one categorical or a mixture of discretised logistics, and of a real
one a mixture of Gaussians or Laplaces (then the model is RNADE, a density).

Papers: Larochelle, Murray, "The Neural Autoregressive Distribution Estimator", AISTATS 2011,
https://proceedings.mlr.press/v15/larochelle11a.html; Uria, Murray, Larochelle, "RNADE: the real-valued neural
autoregressive density-estimator", NIPS 2013, https://arxiv.org/abs/1306.0186; Uria, Cote, Gregor, Murray, Larochelle,
"Neural Autoregressive Distribution Estimation", JMLR 2016, https://arxiv.org/abs/1605.02226.

Different from the papers: output biases start at the data's marginals; the first hidden units see c alone where RNADE's
see an input that is always one, which is the same; RNADE's factor of sigma in the gradient of the means is left to
the optimiser (Adam divides it out again); conditionals of discrete data are added.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.one_order import OneOrder
from dgmbench.nn.conditionals import Conditionals, Density, Discrete
from dgmbench.nn.masked import Order
from dgmbench.nn.nade import Activation, NadeWeights, nade_ancestral, nade_parameters


class Nade(OneOrder):
    """Neural autoregressive distribution estimator of binary, discrete and real data.

    Args:
        spec: The data space.
        hidden: H, the number of hidden units.
        activation: g, ``sigmoid`` (NADE) or ``relu`` (RNADE's choice).
        tied: V = W, as in the restricted Boltzmann machine; binary data only.
        rescale: Learns rho_t, started at 1; on for real data and off otherwise if None.
        order: ``natural`` (C order of the array) or ``random``.
        components: Components in the mixture of a dimension that has one.
        density: Of a real dimension's components, ``gaussian`` or ``laplace``.
        discrete: ``categorical``, ``logistics`` (mixtures of discretised logistics) or ``auto``: see ``Conditionals``.
    """

    sequence: Tensor
    positions: Tensor

    def __init__(
        self, spec: DataSpec, *, hidden: int = 500, activation: Activation = "sigmoid", tied: bool = False,
        rescale: bool | None = None, order: Order = "natural", components: int = 10, density: Density = "gaussian",
        discrete: Discrete = "auto",
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"NADE takes binary, discrete or real data, not {spec.kind}.")
        if tied and spec.kind != "binary":
            raise UserError(f"tied=true shares one weight with each output, but {spec.kind} data need several.")
        if activation not in ("sigmoid", "relu"):
            raise UserError(f"NADE's activation is sigmoid or relu, not {activation!r}.")
        if order not in ("natural", "random"):
            raise UserError(f"NADE's order is natural or random, not {order!r}.")
        require(least=1, hidden=hidden)
        self.activation: Activation = activation
        self.conditionals = Conditionals(spec, components=components, density=density, discrete=discrete)
        dim, parameters = spec.dim, self.conditionals.parameters_per_dim
        sequence = torch.arange(dim) if order == "natural" else torch.randperm(dim)
        self.register_buffer("sequence", sequence)  # the dimension at each position of the order
        self.register_buffer("positions", sequence.argsort())
        self.weight = nn.Parameter(torch.empty(dim, hidden).uniform_(-1, 1) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.out_weight = (
            None if tied else nn.Parameter(torch.empty(dim, parameters, hidden).uniform_(-1, 1) * hidden**-0.5)
        )
        self.out_bias = nn.Parameter(torch.zeros(dim, parameters))
        rescale = spec.kind == "real" if rescale is None else rescale
        self.rho = nn.Parameter(torch.ones(dim)) if rescale else None

    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Set the output biases to the marginals."""
        marginal = self.out_bias.detach().clone()  # mixtures keep their logits
        self.conditionals.initialise(marginal, batch.x, generator)
        self.out_bias.data.copy_(marginal[self.sequence])

    def conditional_logits(self, x: Tensor) -> Float[Tensor, "b d p"]:
        """Parameters of the conditionals given raw x (b, *shape), dimensions in C order."""
        inputs = self.conditionals.inputs(x, self.out_bias)[:, self.sequence]
        return nade_parameters(inputs, self._weights(), self.activation).transpose(0, 1)[:, self.positions]

    def ordering(self) -> Int[Tensor, " d"]:
        """Position of each dimension in the order."""
        return self.positions

    @property
    def like(self) -> Tensor:
        """The output biases."""
        return self.out_bias

    def sweep(self, n: int, draw: Callable[[int, Tensor], Tensor]) -> Float[Tensor, "n d"]:
        """O(HD) for all positions of an example."""
        return nade_ancestral(n, draw, self._weights(), self.activation)[:, self.positions]

    def _weights(self) -> NadeWeights:
        out_weight = self.weight[:, None] if self.out_weight is None else self.out_weight
        return NadeWeights(self.weight, self.bias, out_weight, self.out_bias, self.rho)
