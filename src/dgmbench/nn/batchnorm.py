"""Batch normalisation whose forward pass changes no state, and which says whose statistics it keeps.

``nn.BatchNorm2d`` moves its running statistics in each forward pass of the training mode: computing a loss changes the
model, and a discriminator that sees samples and then data ends with a mixture of both. Here a pass changes nothing. The
pass whose statistics evaluation is to use is named where it is made, in the loss,

    fake = self.discriminator(samples)
    with statistics_of(self.discriminator):
        real = self.discriminator(data)

and taken up in ``after_step`` by ``absorb_statistics(self.discriminator)``. A network with batch-norm of which no pass
was named, or that ran twice in the block, ends in an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.errors import UserError


class RunningMoments(nn.Module):
    """Running mean and variance of each channel, and the batch's moments that wait in ``seen`` to be taken up.

    A layer whose class asks for no ``named_pass`` keeps those of every pass in training mode: its loss makes only one.
    """

    running_mean: Tensor
    running_var: Tensor
    named_pass = False

    def __init__(self, channels: int, *, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.seen: tuple[Tensor, Tensor] | None = None


class BatchNorm(RunningMoments):
    """Batch normalisation over every dimension but the second, for (b, c) and (b, c, h, w) alike.

    The training mode normalises by the batch and leaves the buffers alone; within ``statistics_of`` it keeps the
    batch's statistics at hand, as ``.grad`` keeps a gradient. The evaluation mode normalises by the running statistics.
    Without ``affine`` there is neither scale nor shift.
    """

    named_pass = True
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, momentum=momentum, eps=eps)
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.keeping = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, c, ...)."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # With momentum 1 the two tensors become the batch's own mean and unbiased variance.
        y = F.batch_norm(x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        if self.keeping:
            if self.seen is not None:
                raise UserError(
                    "A network ran twice within one statistics_of(net): batch-norm cannot know which pass's statistics "
                    "to keep; put only the pass on what evaluation gives the network into the block."
                )
            self.seen = mean, var
        return y


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation whose scale and shift are functions of a condition: gamma(c) = 1 + W c, beta(c) = V c.

    The condition (b, condition) is one-hot labels, a class embedding, latents, or several of them joined. W and V start
    at zero, so that the layer starts as plain batch-norm without scale and shift. Papers: Dumoulin et al. 2017,
    https://arxiv.org/abs/1610.07629; Brock et al. 2019, https://arxiv.org/abs/1809.11096 (appendix B).
    """

    def __init__(self, channels: int, condition: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = BatchNorm(channels, momentum=momentum, eps=eps, affine=False)
        self.scale, self.shift = (nn.Linear(condition, channels, bias=False) for _ in range(2))
        self.start_plain()

    def start_plain(self) -> None:
        """Set W and V to zero."""
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise x (b, c, ...), then scale and shift each example by its condition (b, condition)."""
        shape = (len(x), -1, *[1] * (x.dim() - 2))
        y = self.norm(x)
        return y + y * self.scale(condition).view(shape) + self.shift(condition).view(shape)


@contextmanager
def statistics_of(net: nn.Module) -> Iterator[None]:
    """Within the block, the batch-norm layers of ``net`` keep the statistics of its one pass in training mode.

    What an earlier block has left is dropped: a loss may be computed several times before its step, and the last
    computation counts. A block around a pass in evaluation mode changes nothing.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, BatchNorm)]
    if any(layer.keeping for layer in layers):
        raise UserError("statistics_of(net) stands within another block of the same network; one of the two is wrong.")
    for layer in layers:
        layer.keeping = True
        if layer.training:
            layer.seen = None
    try:
        yield
    finally:
        for layer in layers:
            layer.keeping = False


def moments_layers(net: nn.Module) -> list[tuple[str, RunningMoments]]:
    """The layers of ``net`` that keep running moments, with their names in it."""
    return [(name, layer) for name, layer in net.named_modules() if isinstance(layer, RunningMoments)]


@torch.no_grad()
def absorb_statistics(net: nn.Module, *, momentum: float | None = None) -> None:
    """Move every layer's ``RunningMoments`` in ``net`` towards those of the batch it kept.

    ``running = (1 - momentum) running + momentum batch``, in ``BatchNorm`` with the unbiased variance, as
    ``nn.BatchNorm2d`` does; ``momentum=1`` replaces them, in place of each layer's own momentum. A batch counts once.
    Called in ``after_step``, which follows the loss of the same player, nothing is left over between steps, so that a
    resumed training repeats.
    """
    for layer in net.modules():
        if not isinstance(layer, RunningMoments):
            continue
        if layer.seen is None:
            if layer.named_pass and layer.training:
                raise UserError(
                    f"Batch-norm in {type(net).__name__} has no statistics to take up: the loss of its player names no "
                    "pass of the network. Make the pass on what evaluation gives it (data for a discriminator or "
                    "encoder, samples for a generator) within 'with statistics_of(net):' (dgmbench.nn.batchnorm)."
                )
            continue
        mean, var = layer.seen
        rate = layer.momentum if momentum is None else momentum
        layer.running_mean.lerp_(mean, rate)
        layer.running_var.lerp_(var, rate)
        layer.seen = None
