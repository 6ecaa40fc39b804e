"""Batch normalisation whose forward pass changes no state."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RunningMoments(nn.Module):
    """Running mean and variance of each channel, and the batch's moments that wait in ``seen`` to be taken up."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.seen: tuple[Tensor, Tensor] | None = None


class BatchNorm(RunningMoments):
    """Batch normalisation over every dimension but the second, for (b, c) and (b, c, h, w) alike.

    ``nn.BatchNorm2d`` moves its running statistics in each forward pass of the training mode, so that computing a loss
    changes the model. Here the training mode normalises by the batch, leaves the buffers alone, and keeps the batch's
    statistics at hand, as ``.grad`` keeps a gradient: a model takes them up in ``after_step`` with
    ``absorb_statistics``. The evaluation mode normalises by the running statistics.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(channels, momentum=momentum, eps=eps)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, c, ...)."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # With momentum 1 the two tensors become the batch's own mean and unbiased variance.
        y = F.batch_norm(x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        self.seen = mean, var
        return y


@torch.no_grad()
def absorb_statistics(net: nn.Module, *, momentum: float | None = None) -> None:
    """Move every layer's ``RunningMoments`` in ``net`` towards those of the last batch it saw in training mode.

    ``running = (1 - momentum) running + momentum batch``, in ``BatchNorm`` with the unbiased variance, as
    ``nn.BatchNorm2d`` does; ``momentum=1`` replaces them, in place of each layer's own momentum. A batch counts once.
    Called in ``after_step``, which follows the loss of the same player, nothing is left over between steps, so that a
    resumed training repeats.
    """
    for layer in net.modules():
        if isinstance(layer, RunningMoments) and layer.seen is not None:
            mean, var = layer.seen
            rate = layer.momentum if momentum is None else momentum
            layer.running_mean.lerp_(mean, rate)
            layer.running_var.lerp_(var, rate)
            layer.seen = None
