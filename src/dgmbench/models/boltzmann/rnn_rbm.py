"""RNN-RBM: a recurrent network that reads the steps and sets the biases of an RBM over the next one.

    u_t = tanh(v_t W_vu + b_u + u_{t-1} W_uu),      u_0 learned,
    a_t = a + u_{t-1} W_uv,      b_t = b + u_{t-1} W_uh,
    log p(v_1, ..., v_T) = sum_t [ -F(v_t; a_t, b_t) - log Z(a_t, b_t) ],
    F(v; a_t, b_t) = -a_t'v - sum_j softplus(b_tj + (W'v)_j)

Unlike in the recurrent temporal RBM, what carries the past need not be the mean of the hidden units: it has a size and
weights of its own. The gradient of each step's log-likelihood, by contrastive divergence, goes through a_t and b_t back
through the network. Notes that sound together depend on each other through h, which no independent outputs express.

Shapes: x (b, t, ...), v (b, t, d), u (b, r). Units: nats.
Paper: Boulanger-Lewandowski, Bengio, Vincent 2012, "Modeling temporal dependencies in high-dimensional sequences:
application to polyphonic music generation and transcription", https://arxiv.org/abs/1206.6392.

Different from the paper: no pre-training of the RBM or the network, and Adam in place of its tuned SGD; the network's
weights start as those of ``nn.RNN``, W_uv and W_uh at 0, so that training begins at an RBM of single steps.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import require
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.models.boltzmann.recurrent import RecurrentMachine


class RnnRbm(RecurrentMachine):
    """RBMs in time whose biases a recurrent network sets.

    Args:
        spec: binary sequences (t, ...), of one length or of different ones.
        hidden: hidden units of each step's RBM.
        recurrent: units of the network.
        estimator: of the gradient of every step's log-likelihood given the past; default ``CD(k=1)``.
        weight_std: standard deviation of the initial weights W.
        sample_steps: Gibbs steps of each step of a sample (25 in the paper).
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        hidden: int = 150,
        recurrent: int = 100,
        estimator: Estimator | None = None,
        weight_std: float = 0.01,
        sample_steps: int = 25,
    ) -> None:
        super().__init__(spec, hidden=hidden, weight_std=weight_std, sample_steps=sample_steps)
        require(least=1, recurrent=recurrent)
        self.network = nn.RNN(self.frame_dim, recurrent, batch_first=True)
        self.initial = nn.Parameter(torch.zeros(recurrent))
        self.to_visible = nn.Parameter(torch.zeros(recurrent, self.frame_dim))
        self.to_hidden = nn.Parameter(torch.zeros(recurrent, hidden))
        self.train_by(estimator)

    def start(self, n: int) -> Float[Tensor, "n r"]:
        """u_0."""
        return self.initial.expand(n, -1)

    def follow(self, state: Float[Tensor, "n r"], v: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
        """u_t of u_{t-1} and v_t."""
        found: Tensor = self.network(v[:, None], state[None].contiguous())[1][0]
        return found

    def states(self, v: Float[Tensor, "b t d"]) -> Float[Tensor, "b t r"]:
        """u before every step, by one call of the network."""
        first = self.start(len(v))
        later = self.network(v[:, :-1], first[None].contiguous())[0]
        return torch.cat([first[:, None], later], 1)

    def condition(self, state: Float[Tensor, "n r"], y: Tensor | None = None) -> Float[Tensor, "n c"]:
        """Both biases, a_t and b_t."""
        visible = torch.addmm(self.visible_bias, state, self.to_visible)
        return torch.cat([visible, torch.addmm(self.hidden_bias, state, self.to_hidden)], 1)
