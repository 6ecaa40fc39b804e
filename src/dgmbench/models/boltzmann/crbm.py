"""Conditional RBM: real frames over hidden bits, whose biases are linear functions of the frames just before.

    a_t = a + sum_k v_{t-k} A_k (+ style),      b_t = b + sum_k v_{t-k} B_k (+ style),      k = 1 ... order,
    E(v_t, h_t) = sum_i (v_ti - a_ti)^2 / (2 sigma_i^2) - sum_ij (v_ti / sigma_i) W_ij h_tj - b_t'h_t,
    v_t | h_t ~ N(a_t + sigma (W h_t), sigma^2)

So p(v_t | the past) is a mixture of 2^H Gaussians whose means lie around what a linear autoregression predicts; without
hidden units it is that vector autoregression. Inference is exact and needs no state but the last ``order`` frames. A
missing part of a frame is filled in online, given the past and the rest of the frame (``complete``). The gradient of
log p(v_t | past) by contrastive divergence reaches A and B through the biases alone.

*Style.* With ``style=True`` the label of a sequence adds a vector of its own to both biases: p(x | y).

Shapes: x (b, t, ...), v = (x - mean) / deviation by the training data's moments (b, t, d); A (order d, d),
B (order d, h).
Units: nats, of raw x. Before the first frame the history is the mean frame, v = 0.
Paper: Taylor, Hinton, Roweis 2007, "Modeling human motion using binary latent variables",
https://papers.nips.cc/paper/2006/hash/1091660f3dff84fd648efe31391c5524-Abstract.html.

Different from the paper: sigma is learned where the paper fixes it at 1, so that log p means something, and generation
draws the noise; the first frames count, with a history of mean frames, so that log p is one of the whole sequence.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.history import HistoryMachine, of_labels


class Crbm(HistoryMachine):
    """RBMs of real frames given the frames before.

    Args:
        spec: real sequences (t, ...), longer than ``order``, of one length or of different ones.
        hidden: hidden units of each step; 0 leaves a vector autoregression.
        order: frames of history (3 in the paper's walks at 30 frames a second).
        style: whether the label of a sequence moves the biases.
        estimator: of the gradient of every step's log-likelihood given the past; default ``CD(k=1)``.
        weight_std: standard deviation of the initial weights W; A and B start at 0.
        sample_steps: Gibbs steps of each step of a sample.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 150,
        order: int = 3,
        style: bool = False,
        estimator: Estimator | None = None,
        weight_std: float = 0.01,
        sample_steps: int = 30,
    ) -> None:
        super().__init__(spec, hidden=hidden, order=order, style=style, sample_steps=sample_steps)
        require(least=0, weight_std=weight_std)
        d, past = self.frame_dim, order * self.frame_dim
        self.weight = nn.Parameter(weight_std * torch.randn(d, hidden))
        self.to_visible = nn.Parameter(torch.zeros(past, d))
        self.to_hidden = nn.Parameter(torch.zeros(past, hidden))
        if style:
            classes = spec.num_classes or 0
            self.style_visible = nn.Parameter(torch.zeros(classes, d))
            self.style_hidden = nn.Parameter(torch.zeros(classes, hidden))
        self.train_by(estimator)

    def condition(self, state: Float[Tensor, "n s"], y: Tensor | None = None) -> Float[Tensor, "n c"]:
        """a_t and b_t; a label that is not known adds nothing."""
        visible = torch.addmm(self.visible_bias, state, self.to_visible)
        hidden = torch.addmm(self.hidden_bias, state, self.to_hidden)
        if self.style:
            visible = visible + of_labels(y, len(state), self.style_visible)
            hidden = hidden + of_labels(y, len(state), self.style_hidden)
        return torch.cat([visible, hidden], 1)

    def machine(self, condition: Float[Tensor, "n c"]) -> Couplings:
        """The energy's square is multiplied out: a_t / sigma are the natural parameters of v / sigma."""
        units = self.units()
        visible, hidden = condition[:, : self.frame_dim], condition[:, self.frame_dim :]
        return Couplings(self.weight, visible / units.sigma, hidden, units)
