r"""FVBN: a fully visible Bayes net, one logistic regression of each dimension on the dimensions before it.

No hidden units: the parameters of p(x_i | x before i) are linear in the dimensions before i, so that all of them are
one product with a strictly triangular matrix, and the maximum of the likelihood is unique:

    log p(x) = sum_i log p(x_i | b_i + sum_{j before i} W_ij x_j),     loss = -E[log p(x)] + l2 / 2 ||W||^2.

Shapes and units: x is raw (b, *shape), flattened in C order and scaled to [0, 1]; W is (D, D) for binary data and
(D levels, D) for discrete data, whose conditionals are softmaxes up to 64 levels. With more they are mixtures of
discretised logistics, W is (3 D components, D), and the maximum need not be unique. ``log_prob`` is in nats, (b,).

Paper: Frey, "Graphical Models for Machine Learning and Digital Communication", MIT Press 1998; first as the logistic
belief net without hidden units of Neal, "Connectionist learning of belief networks", Artificial Intelligence 56, 1992,
https://doi.org/10.1016/0004-3702(92)90065-6.

Different from the paper: the penalty is an argument of the model, because a weight decay of the optimiser would shrink
the biases as well, and under Adam would be no penalty of the likelihood at all. With N examples it is scikit-learn's
``C = 1 / (N l2)``. The objective is convex, so training starts at W = 0 with the biases at the marginals.
"""

from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.autoregressive.one_order import MaskedOrder
from dgmbench.models.contract import Logs
from dgmbench.nn.conditionals import Conditionals, Discrete
from dgmbench.nn.masked import MaskedMlp, Order


class Fvbn(MaskedOrder):
    """Logistic autoregressive network for binary and discrete data.

    Args:
        spec: The data space.
        order: ``natural`` (C order of the array) or ``random``.
        l2: Penalty of the weights, not of the biases.
        components: Components in the mixture of a dimension that has one.
        discrete: ``categorical``, ``logistics`` (mixtures of discretised logistics) or ``auto``: see ``Conditionals``.
    """

    def __init__(
        self, spec: DataSpec, *, order: Order = "natural", l2: float = 0.0, components: int = 5,
        discrete: Discrete = "auto",
    ) -> None:  # fmt: skip
        super().__init__(spec)
        if spec.kind not in ("binary", "discrete"):
            raise UserError(f"FVBN takes binary or discrete data, not {spec.kind}.")
        if order not in ("natural", "random"):
            raise UserError(f"FVBN's order is natural or random, not {order!r}.")
        require(least=0, l2=l2)
        self.l2 = l2
        self.conditionals = Conditionals(spec, components=components, discrete=discrete)
        self.net = MaskedMlp(spec.dim, (), self.conditionals.parameters_per_dim, order=order)
        nn.init.zeros_(self.net.linear(0).weight)

    def loss(self, player: str, batch: Batch, generator: Generator) -> tuple[Tensor, Logs]:
        """Mean negative log-likelihood and the penalty."""
        log_prob = self.log_prob(batch.x).mean()
        loss = -log_prob
        if self.l2 > 0:
            (seen,) = self.net.layer_masks(0)
            loss = loss + 0.5 * self.l2 * self.net.linear(0).weight[seen].square().sum()
        return loss, {"log_prob": log_prob.detach()}
