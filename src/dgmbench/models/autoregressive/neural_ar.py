r"""Neural autoregressive network: a hidden group for each dimension, which sees what comes before that dimension.

The group of position t of the order is h_t = tanh(c_t + sum_{s<t} W_ts x_s), and the conditional at position t sees the
groups of all positions up to its own, so that the conditionals share what they have in common:

    log p(x) = sum_t log p(x_t | b_t + sum_{s<=t} V_ts h_s),      loss = -E[log p(x)].

All groups are one masked layer and all conditionals another (``nn/masked.py`` with given degrees), so a density costs
two matrix products and sampling no more; parameters grow as D^2 ``group``.

Shapes and units: x is raw (b, *shape), flattened in C order; ``log_prob`` is in nats per example, (b,). Binary
dimensions have Bernoulli conditionals, discrete ones categorical or mixtures of discretised logistics, real ones
mixtures of Gaussians.

Paper: Bengio, Bengio, "Modeling High-Dimensional Discrete Data with Multi-Layer Neural Networks", NIPS 1999 (printed
2000), https://papers.nips.cc/paper/1679-modeling-high-dimensional-discrete-data-with-multi-layer-neural-networks.

Different from the paper: discrete values enter as one number scaled to [0, 1], not one-hot; connections are not pruned
by tests of independence; conditionals of real data are added; training is by any of torch's optimisers, and starts with
the output biases at the data's marginals.
"""

import torch

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.one_order import MaskedOrder
from dgmbench.nn.conditionals import Conditionals, Discrete
from dgmbench.nn.masked import MaskedMlp, Order


class NeuralAr(MaskedOrder):
    """Autoregressive network with one hidden group for each dimension, for binary, discrete and real data.

    Args:
        spec: The data space.
        group: Hidden units of each dimension's group. The paper chose it by cross-validation.
        order: ``natural`` (C order of the array) or ``random``.
        components: Components in the mixture of a dimension that has one.
        discrete: ``categorical``, ``logistics`` (mixtures of discretised logistics) or ``auto``: see ``Conditionals``.
    """

    def __init__(
        self, spec: DataSpec, *, group: int = 8, order: Order = "natural", components: int = 10,
        discrete: Discrete = "auto",
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete", "real"):
            raise UserError(f"neural_ar takes binary, discrete or real data, not {spec.kind}.")
        if order not in ("natural", "random"):
            raise UserError(f"neural_ar's order is natural or random, not {order!r}.")
        require(least=1, group=group)
        self.conditionals = Conditionals(spec, components=components, discrete=discrete)
        # the group of position t has degree t; the first position's group would see nothing, and its bias is enough
        degrees = torch.arange(1, max(spec.dim, 2)).repeat_interleave(group)
        self.net = MaskedMlp(
            spec.dim, (len(degrees),), self.conditionals.parameters_per_dim, order=order, nonlinearity="tanh",
            degrees=[degrees],
        )  # fmt: skip
