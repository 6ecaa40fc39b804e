"""Restricted Boltzmann machines of bits in time whose weights stay and whose biases a recurrent state moves."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings
from dgmbench.models.boltzmann.temporal import Temporal
from dgmbench.nn.unit_layers import BERNOULLI, Independent, smoothed_rates


class RecurrentMachine(Temporal):
    """Bits over bits; a subclass adds what moves the biases, and calls ``train_by`` last.

    Args:
        spec: binary sequences (t, ...).
        hidden: hidden units of each step's machine.
        weight_std: standard deviation of the initial weights.
        sample_steps: Gibbs steps of each step.
    """

    base_logits: Tensor

    def __init__(self, spec: DataSpec, *, hidden: int, weight_std: float, sample_steps: int) -> None:
        if spec.kind != "binary":
            raise UserError(
                f"{type(self).__name__} models binary sequences, but these are {spec}; choose data such as "
                "data=bouncing_balls or data=chords."
            )
        super().__init__(spec, sample_steps=sample_steps)
        require(least=1, hidden=hidden)
        require(least=0, weight_std=weight_std)
        self.weight = nn.Parameter(weight_std * torch.randn(self.frame_dim, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(self.frame_dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("base_logits", torch.zeros(self.frame_dim))  # of the data's means, all steps alike

    def base(self) -> Independent:
        """Independent bits with the data's means, the same at every step."""
        return Independent(BERNOULLI, self.base_logits)

    def state_sizes(self) -> tuple[int, int]:
        """Visible and hidden units of a step."""
        visible, hidden = self.weight.shape
        return visible, hidden

    def machine(self, condition: Float[Tensor, "n c"]) -> Couplings:
        """Conditions are the hidden biases, after the visible ones where these move, too."""
        hidden = self.weight.shape[1]
        moved = condition[:, :-hidden]
        visible = moved if moved.shape[1] else self.visible_bias
        return Couplings(self.weight, visible, condition[:, -hidden:])

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Visible biases at the log-odds of the data's means (Hinton 2012)."""
        v = self.sequences(batch.x)[self.counted(batch.x, batch.length)]
        rates = smoothed_rates(v.mean(0), len(v))
        self.base_logits.copy_(rates.log() - (-rates).log1p())
        self.visible_bias.copy_(self.base_logits)
