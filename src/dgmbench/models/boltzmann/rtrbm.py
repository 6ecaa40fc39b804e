"""Recurrent temporal RBM: an RBM at every step whose hidden biases depend on the mean hidden units of the step before.

    r_t = sigmoid(v_t W + b + r_{t-1} W'),      r_0 = sigmoid(a learned vector),
    E(v_t, h_t | r_{t-1}) = -v_t'W h_t - a'v_t - (b + r_{t-1} W')'h_t,
    log p(v_1, ..., v_T) = sum_t [ -F(v_t | r_{t-1}) - log Z(r_{t-1}) ]

The state r is deterministic given the frames, so each step's posterior over h is factorial and exact, where that of a
temporal RBM with sampled hidden units is not: r_t is the mean of h_t. The gradient has two ways to W and W': through
the energy of each step, by contrastive divergence, and through r to all steps before (backpropagation through time).

Shapes: x (b, t, ...), v (b, t, d), r (b, h); W (d, h), W' (h, h). Units: nats.
Paper: Sutskever, Hinton, Taylor 2009, "The recurrent temporal restricted Boltzmann machine",
https://papers.nips.cc/paper/2008/hash/9ad6aaed513b73148b7d49f70afcfb32-Abstract.html.

Different from the paper: frames are bits, where the paper's are grey levels in [0, 1] taken as probabilities, so that
log p is one of the data; and the first step has r_0 W' in place of an initial bias of its own.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.recurrent import RecurrentMachine


class Rtrbm(RecurrentMachine):
    """RBMs in time, joined by the means of their hidden units.

    Args:
        spec: binary sequences (t, ...), of one length or of different ones.
        hidden: hidden units of each step.
        estimator: of the gradient of every step's log-likelihood given the past; default ``CD(k=1)``.
        weight_std: standard deviation of the initial weights W.
        recurrent_std: of W', times the root of ``hidden``.
        sample_steps: Gibbs steps of each step of a sample.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 400,
        estimator: Estimator | None = None,
        weight_std: float = 0.01,
        recurrent_std: float = 0.5,
        sample_steps: int = 25,
    ) -> None:
        super().__init__(spec, hidden=hidden, weight_std=weight_std, sample_steps=sample_steps)
        require(least=0, recurrent_std=recurrent_std)
        self.recurrent = nn.Parameter(recurrent_std * hidden**-0.5 * torch.randn(hidden, hidden))
        self.initial = nn.Parameter(torch.zeros(hidden))
        self.train_by(estimator)

    def start(self, n: int) -> Float[Tensor, "n h"]:
        """r_0."""
        return self.initial.sigmoid().expand(n, -1)

    def follow(self, state: Float[Tensor, "n h"], v: Float[Tensor, "n d"]) -> Float[Tensor, "n h"]:
        """r_t of r_{t-1} and v_t."""
        return (v @ self.weight + self.condition(state)).sigmoid()

    def condition(self, state: Float[Tensor, "n h"], y: Tensor | None = None) -> Float[Tensor, "n h"]:
        """The hidden biases b + r W'."""
        return torch.addmm(self.hidden_bias, state, self.recurrent)

    def states(self, v: Float[Tensor, "b t d"]) -> Float[Tensor, "b t h"]:
        """r before every step; what the frames add to it is one product for all steps."""
        inputs = (v[:, :-1].flatten(0, 1) @ self.weight + self.hidden_bias).view(len(v), v.shape[1] - 1, -1)
        found = [self.start(len(v))]
        for own in inputs.unbind(1):
            found.append(torch.addmm(own, found[-1], self.recurrent).sigmoid())
        return torch.stack(found, 1)
