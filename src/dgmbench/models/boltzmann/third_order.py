"""A third-order Boltzmann machine of bits, hidden bits and a label: the label chooses the weights between the others.

    E(v, h, l) = -v'W_l h - a'v - b'h - c_l,      p(v, l) = sum_h exp(-E) / Z,
    F(v, l) = -a'v - c_l - sum_j softplus(b_j + (v'W_l)_j),      p(l | v) = softmax(-F(v, .)),

so the label's posterior is exact. Given h, label and bits are drawn together: the bits are summed out of

    p(l | h) = softmax(c_l + sum_i softplus(a_i + (W_l h)_i)),

and follow given l. So a chain has two half-steps, h | v, l and v, l | h. Shapes: v (b, visible), h (b, hidden), labels
(b,) int64, W (labels, visible, hidden). Units: nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.nn.mean_units import OneOf
from dgmbench.nn.unit_layers import draw


class ThirdOrder(nn.Module):
    """The machine and its parameters.

    Args:
        visible, hidden, classes: units of each kind.
        weight_std: standard deviation of the initial weights.
    """

    def __init__(self, visible: int, hidden: int, classes: int, *, weight_std: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_std * torch.randn(classes, visible, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.label_bias = nn.Parameter(torch.zeros(classes))

    def free_energies(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b c"]:
        """F(v, l) of every label."""
        inputs = self.hidden_bias + torch.einsum("bv,cvh->bch", v, self.weight)
        return -(v @ self.visible_bias)[:, None] - self.label_bias - F.softplus(inputs).sum(-1)

    def free_energy(self, v: Float[Tensor, "b v"], y: Tensor) -> Float[Tensor, " b"]:
        """F(v, l) of these labels; where one is not known (-1), that of v alone."""
        each = self.free_energies(v)
        return torch.where(y >= 0, each.gather(1, y.clamp_min(0)[:, None])[:, 0], -(-each).logsumexp(1))

    def label_log_prob(self, v: Float[Tensor, "b v"]) -> Float[Tensor, "b c"]:
        """Log p(l | v)."""
        return (-self.free_energies(v)).log_softmax(1)

    def label_given_hidden(self, h: Float[Tensor, "b h"]) -> Float[Tensor, "b c"]:
        """Log p(l | h), v summed out."""
        inputs = self.visible_bias + torch.einsum("bh,cvh->bcv", h, self.weight)
        return (self.label_bias + F.softplus(inputs).sum(-1)).log_softmax(1)

    @torch.no_grad()
    def draw_labels(self, log_p: Float[Tensor, "b c"], generator: Generator | None) -> Tensor:
        """Labels (b,)."""
        return OneOf().draw_at_mean(log_p.exp(), generator).argmax(1)

    @torch.no_grad()
    def gibbs(
        self, v: Float[Tensor, "b v"], y: Tensor, steps: int, generator: Generator | None, *, keep: bool = False
    ) -> tuple[Float[Tensor, "b v"], Tensor]:
        """``steps`` times h | v, l and then l | h and v | h, l; with ``keep``, the labels stay as they are."""
        for _ in range(steps):
            h = draw((self.hidden_bias + torch.einsum("bv,bvh->bh", v, self.weight[y])).sigmoid(), generator)
            y = y if keep else self.draw_labels(self.label_given_hidden(h), generator)
            v = draw((self.visible_bias + torch.einsum("bh,bvh->bv", h, self.weight[y])).sigmoid(), generator)
        return v, y
