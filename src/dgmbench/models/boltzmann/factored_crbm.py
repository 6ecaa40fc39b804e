"""Conditional RBM with factored three-way connections: a style gates how frames, hidden bits and the past interact.

    z = R_y (features of the style),
    E(v_t, h_t) = sum_i (v_ti - a_ti)^2 / (2 sigma_i^2) - b_t'h_t
                  - sum_f (sum_i W_if v_ti / sigma_i) (sum_j U_jf h_tj) (sum_l Z_lf z_l),
    a_t = a + sum_m A_m (past'C_m) (z'D_m),      b_t = b + sum_n B_n (past'G_n) (z'H_n)

Where ``crbm`` lets a style add to the biases, here it gates every connection: visible to hidden, past to visible and
past to hidden each are a tensor of three indices (frame or past, unit, style), written as a sum over factors of
products of three matrices: parameters grow with the sum of the sizes and not with their product. Given a style it is
an ordinary conditional RBM whose weights are W diag(z'Z) U'.

Shapes: x (b, t, ...), v (b, t, d) standardised, past (order d), z (features). Units: nats, of raw x given y.
Paper: Taylor, Hinton 2009, "Factored conditional restricted Boltzmann machines for modeling motion style",
https://doi.org/10.1145/1553374.1553505.

Different from the paper: sigma is learned (see ``crbm``), and each of the three tensors has the same number of factors.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.history import HistoryMachine, of_labels
from dgmbench.models.boltzmann.row_weights import RowWeights


class FactoredCrbm(HistoryMachine):
    """RBMs of real frames given the frames before and a style that gates all connections.

    Args:
        spec: real sequences (t, ...) with a label each, longer than ``order``, of one length or of different ones.
        hidden: hidden units of each step.
        factors: of each of the three tensors.
        features: z, of a style.
        order: frames of history.
        estimator: of the gradient of every step's log-likelihood given the past and the style; default ``CD(k=1)``.
        weight_std: standard deviation of the factors of the weights that begin away from 0.
        sample_steps: Gibbs steps of each step of a sample.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 600,
        factors: int = 200,
        features: int = 10,
        order: int = 12,
        estimator: Estimator | None = None,
        weight_std: float = 0.1,
        sample_steps: int = 30,
    ) -> None:
        super().__init__(spec, hidden=hidden, order=order, style=True, sample_steps=sample_steps)
        require(least=1, hidden=hidden, factors=factors, features=features)
        require(least=0, weight_std=weight_std)
        d, past = self.frame_dim, order * self.frame_dim

        def normal(*size: int) -> nn.Parameter:
            return nn.Parameter(weight_std * torch.randn(size))

        def gates() -> nn.Parameter:
            return nn.Parameter(torch.ones(features, factors) / features + weight_std * torch.randn(features, factors))

        self.features = nn.Parameter(1 + weight_std * torch.randn(spec.num_classes or 0, features))
        self.visible_factors, self.hidden_factors, self.weight_gates = (
            normal(d, factors),
            normal(hidden, factors),
            gates(),
        )
        self.past_to_visible, self.visible_gates = normal(past, factors), gates()
        self.visible_means = nn.Parameter(torch.zeros(factors, d))
        self.past_to_hidden, self.hidden_gates = normal(past, factors), gates()
        self.hidden_means = nn.Parameter(torch.zeros(factors, hidden))
        self.train_by(estimator)

    def condition(self, state: Float[Tensor, "n s"], y: Tensor | None = None) -> Float[Tensor, "n c"]:
        """a_t, b_t, and the gains of the weights' factors; a label that is not known closes all gates."""
        z = of_labels(y, len(state), self.features)
        visible = (state @ self.past_to_visible) * (z @ self.visible_gates)
        hidden = (state @ self.past_to_hidden) * (z @ self.hidden_gates)
        visible = torch.addmm(self.visible_bias, visible, self.visible_means)
        hidden = torch.addmm(self.hidden_bias, hidden, self.hidden_means)
        return torch.cat([visible, hidden, z @ self.weight_gates], 1)

    def machine(self, condition: Float[Tensor, "n c"]) -> Couplings:
        """Machines whose weights differ from row to row."""
        d, units = self.frame_dim, self.units()
        visible, hidden, gain = condition.split([d, self.hidden, condition.shape[1] - d - self.hidden], 1)
        weight = RowWeights(self.visible_factors, gain, self.hidden_factors)
        return Couplings(weight, visible / units.sigma, hidden, units)
