r"""Deep NADE: one deep network for the conditionals of all orders, with the mask of known dimensions as an input.

The recurrence of NADE does not extend to deep networks, but one that sees only what is known can be trained for all
orders at once, with an unbiased estimate of the loss from a single pass (``orderless.py``):

    h_1 = g(W (m x) + U m + c_1),   h_l = g(W_l h_{l-1} + c_l),   p(x_i | x_known) from b_i + V_i h_L,
    loss = -E[ D / (D - d) sum_{i unknown} log p(x_i | x_known) ],   log p(x) = logsumexp_o log p_o(x) - log M.

m is 1 where known. The mixture of M orders is the paper's EoNADE.

Shapes and units: x is raw (b, *shape), flattened in C order; ``log_prob`` is in nats per example, (b,), M D passes.
Binary dimensions have Bernoulli conditionals, discrete ones categorical, real ones mixtures of Gaussians.

Paper: Uria, Murray, Larochelle, "A Deep and Tractable Density Estimator", ICML 2014, https://arxiv.org/abs/1310.1757.

Different from the paper: each example has its own number of known dimensions where the paper draws one for a batch,
which lowers the variance; the mixture is of 2 orders by default, not 128; output biases start at the marginals.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.orderless import Orderless
from dgmbench.nn.conditionals import Discrete

Activation = Literal["relu", "tanh", "sigmoid"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class DeepNade(Orderless):
    """Order-agnostic deep network for binary, discrete and real data, and its mixture over orders.

    Args:
        spec: The data space.
        hidden_sizes: Widths of the hidden layers.
        activation: g.
        orders: M, the number of orders in the mixture.
        components: Components in the mixture of a dimension that has one.
        discrete: ``categorical``, ``logistics`` (mixtures of discretised logistics) or ``auto``: see ``Conditionals``.
    """

    def __init__(
        self, spec: DataSpec, *, hidden_sizes: Sequence[int] = (500, 500), activation: Activation = "relu",
        orders: int = 2, components: int = 10, discrete: Discrete = "auto",
    ) -> None:  # fmt: skip
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"Deep NADE takes binary, discrete or real data, not {spec.kind}.")
        if len(hidden_sizes) < 1:
            raise UserError("Deep NADE needs at least one hidden layer: hidden_sizes=[500].")
        super().__init__(spec, orders=orders, components=components, discrete=discrete)
        require(least=1, hidden_sizes=hidden_sizes)
        self.activation = ACTIVATIONS[activation]
        dim, last = spec.dim, hidden_sizes[-1]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([2 * dim, *hidden_sizes]))
        parameters = self.conditionals.parameters_per_dim
        self.out_weight = nn.Parameter(torch.empty(dim, parameters, last).uniform_(-1, 1) * last**-0.5)
        self.out_bias = nn.Parameter(torch.zeros(dim, parameters))

    def parameters_given(self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"]) -> Float[Tensor, "b d p"]:
        """Parameters of every conditional p(x_i | x_known), one pass."""
        out = F.linear(self._features(values, known), self.out_weight.flatten(0, 1), self.out_bias.flatten())
        return out.view(len(values), self.spec.dim, -1)

    def parameters_of(
        self, values: Float[Tensor, "b d"], known: Float[Tensor, "b d"], which: Int[Tensor, " b"]
    ) -> Float[Tensor, "b p"]:
        """The parameters of one dimension for each row, without the rest of the output layer."""
        h = self._features(values, known)
        return torch.einsum("bh,bph->bp", h, self.out_weight[which]) + self.out_bias[which]

    def _features(self, values: Tensor, known: Tensor) -> Float[Tensor, "b h"]:
        h = torch.cat((values, known), 1)
        for linear in self.hidden:
            h = self.activation(linear(h))
        return h
