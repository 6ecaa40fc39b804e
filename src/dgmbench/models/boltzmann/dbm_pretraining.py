"""The RBMs that a deep Boltzmann machine is put together from, layer by layer (Salakhutdinov & Hinton 2009).

In the machine a layer hears from below and from above, in an RBM from one side only. So the input of a layer that will
have both neighbours is doubled while it has one, and halved when the RBMs are joined: the lowest RBM sees two copies of
the data with the same weights, the highest has two copies of the top layer, one in between has its weights doubled.

    p(h_l | h_{l-1}) = sigmoid(2 W_l'h_{l-1} + b_l),  the 2 missing at the top,
    p(h_{l-1} | h_l) = sigmoid(2 W_l h_l + a_l),      the 2 missing at the bottom

Of the layer that two RBMs share, half the log-odds of each make W_l'h_{l-1} + W_{l+1} h_{l+1} + (b_l + a_{l+1}) / 2.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.energy_model import EnergyModel


class Pair(EnergyModel):
    """An RBM between two layers, trained by CD-1.

    Args:
        below, above: units of the two layers.
        bottom: whether the lower one is the data.
        top: whether the upper one is the highest.
        weight_std: standard deviation of the initial weights.
    """

    def __init__(self, below: int, above: int, *, bottom: bool, top: bool, weight_std: float) -> None:
        super().__init__(DataSpec((below,), "binary"))
        self.bottom, self.top = bottom, top
        self.weight = nn.Parameter(weight_std * torch.randn(below, above))
        self.visible_bias = nn.Parameter(torch.zeros(below))
        self.hidden_bias = nn.Parameter(torch.zeros(above))
        self.train_by(None)

    def couplings(self, fast: Sequence[Tensor] | None = None) -> Couplings:
        """Weights and biases over the copies."""
        down, up = (2 if self.bottom else 1), (2 if self.top else 1)  # copies of the lower and of the upper layer
        weight = self.weight if self.bottom or self.top else 2 * self.weight
        return Couplings(weight.repeat(down, up), self.visible_bias.repeat(down), self.hidden_bias.repeat(up))

    def state_sizes(self) -> tuple[int, int]:
        """Units of both layers with their copies."""
        below, above = self.couplings().weight.shape
        return below, above

    def flatten(self, x: Tensor) -> Float[Tensor, "b v"]:
        """States, twice where the lower layer has two copies."""
        states = super().flatten(x)
        return states.repeat(1, 2) if self.bottom else states

    def up(self, states: Float[Tensor, "b v"]) -> Float[Tensor, "b h"]:
        """Probabilities of the upper layer given states of the lower one."""
        return ((1 if self.top else 2) * states @ self.weight + self.hidden_bias).sigmoid()


def composed(pairs: Sequence[Pair]) -> tuple[list[Tensor], list[Tensor]]:
    """Biases and weights of the machine that the RBMs make up."""
    pairs = list(pairs)
    shared = [0.5 * (lower.hidden_bias + upper.visible_bias) for lower, upper in pairwise(pairs)]
    return [pairs[0].visible_bias, *shared, pairs[-1].hidden_bias], [pair.weight for pair in pairs]
