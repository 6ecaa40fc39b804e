"""Restricted machines of real frames over hidden bits, given the last frames: all but how these move the biases."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.boltzmann.couplings import Couplings, GeometricPath
from dgmbench.models.boltzmann.real_data import LEAST_DEVIATION
from dgmbench.models.boltzmann.temporal import Temporal
from dgmbench.nn.labels import count_classes, draw_classes, start_class_prior
from dgmbench.nn.unit_layers import Gaussian, Independent


class HistoryMachine(Temporal):
    """Frames are standardised by the training data's moments, v = (x - mean) / deviation; before the first one the
    history is the mean frame. A subclass defines its parameters, ``condition`` and ``machine``, and calls ``train_by``
    last.

    Args:
        spec: real sequences (t, ...), longer than ``order``, of one length or of different ones.
        hidden: hidden units of each step.
        order: frames of history.
        style: whether the label of a sequence matters: the model is then one of p(x | y).
        sample_steps: Gibbs steps of each step of a sample.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: DataSpec, *, hidden: int, order: int, style: bool, sample_steps: int) -> None:
        if spec.kind != "real":
            raise UserError(
                f"{type(self).__name__} models real sequences, but these are {spec}; choose data such as data=gait."
            )
        super().__init__(spec, sample_steps=sample_steps)
        require(least=0, hidden=hidden)
        require(least=1, order=order)
        if spec.shape[0] <= order:
            raise UserError(
                f"model.order={order} asks for more frames of history than sequences of {spec.shape[0]} steps have; "
                "lower it, or choose longer sequences."
            )
        self.hidden, self.order, self.style = hidden, order, style
        self.visible_bias = nn.Parameter(torch.zeros(self.frame_dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.log_sigma = nn.Parameter(torch.zeros(self.frame_dim))
        self.register_buffer("mean", torch.zeros(self.frame_dim))
        self.register_buffer("deviation", torch.ones(self.frame_dim))
        if style:
            start_class_prior(self, spec)

    # ---- the past ----

    def start(self, n: int) -> Float[Tensor, "n s"]:
        """A history of mean frames."""
        return self.mean.new_zeros(n, self.order * self.frame_dim)

    def follow(self, state: Float[Tensor, "n s"], v: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """The history without its oldest frame, with v as the newest, which stands last."""
        return torch.cat([state[:, self.frame_dim :], v], 1)

    def states(self, v: Float[Tensor, "b t d"]) -> Float[Tensor, "b t s"]:
        """The last ``order`` frames before every step."""
        padded = torch.cat([v.new_zeros(len(v), self.order, self.frame_dim), v[:, :-1]], 1)
        return padded.unfold(1, self.order, 1).transpose(2, 3).flatten(2)

    def state_sizes(self) -> tuple[int, int]:
        """Visible and hidden units of a step."""
        return self.frame_dim, self.hidden

    # ---- frames ----

    def units(self) -> Gaussian:
        """The visible units."""
        return Gaussian.of(self.log_sigma.exp())

    def base(self) -> Independent:
        """Independent units with the data's moments, N(0, I) of standardised frames, where samples begin."""
        sigma = self.log_sigma.detach().exp()
        return Independent(Gaussian(sigma, torch.ones_like(sigma)), torch.zeros_like(sigma))

    def annealing_path_given(self, condition: Tensor) -> GeometricPath:
        """From the autoregression alone, N(a_t, sigma^2), which is near, to the machine with its hidden units."""
        now = self.machine(condition.to(self.mean.dtype))
        base = Independent(now.visible_units, now.visible_bias)
        return GeometricPath.between(base, now, upwards=lambda x, _: self.frames(x))

    def frames(self, x: Tensor) -> Float[Tensor, "n d"]:
        """Raw frames (n, ...) to standardised ones."""
        return (super().frames(x) - self.mean) / self.deviation

    def raw(self, v: Float[Tensor, "n t d"]) -> Tensor:
        """Standardised frames to raw values (n, *shape)."""
        return super().raw(v * self.deviation + self.mean)

    def step_log_prob_unnormalised(
        self, x: Tensor, *, length: Tensor | None = None, y: Tensor | None = None
    ) -> Float[Tensor, " n"]:
        """-F of every step that counts, as a density of raw x."""
        return super().step_log_prob_unnormalised(x, length=length, y=y) - self.deviation.log().sum()

    def means(self, machine: Couplings, eta: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Of standardised frames."""
        return machine.visible_units.mean(eta) * self.log_sigma.exp()

    # ---- training and samples ----

    @torch.no_grad()
    def initialise(self, batch: Batch, generator: Generator) -> None:
        """Take the moments of all frames, and the frequencies of the styles."""
        frames = batch.x[self.counted(batch.x, batch.length)].flatten(1).to(self.mean)
        self.mean.copy_(frames.mean(0))
        self.deviation.copy_(frames.std(0, correction=0).clamp_min(LEAST_DEVIATION))
        if self.style:
            count_classes(cast(Tensor, self.class_log_prior), batch.y)

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, length: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Draw n sequences, of styles y (n,), or of styles drawn from their frequencies."""
        if self.style and y is None:
            y = draw_classes(cast(Tensor, self.class_log_prior), n, generator)
        return super().sample(n, y, length=length, generator=generator)


def of_labels(y: Tensor | None, rows: int, table: Tensor) -> Tensor:
    """The rows (n, k) of a table (classes, k) for labels y (n,); zeros where a label is not known."""
    if y is None:
        return table.new_zeros(rows, table.shape[1])
    return table[y.clamp_min(0)] * (y >= 0)[:, None].to(table.dtype)
