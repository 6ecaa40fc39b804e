"""Spectral normalisation: every weight of a network divided by its largest singular value, W / sigma(W).

A weight counts as the matrix (outputs, everything else): a convolution's kernel reshaped, as published, whose singular
value bounds that of the convolution as a map of images only up to a factor. (``nn.lipschitz`` has the norm of the map
itself.) sigma = u^T W v, where u and v are buffers and constants of the gradient, which flows through W in sigma. They
follow the first pair of singular vectors by the power iteration

    v <- W^T u / |W^T u|,    u <- W v / |W v|,

one step of which for every step of the optimiser is enough, because a step changes W but little. A forward pass, in
training or evaluation, leaves them alone; ``power_step`` belongs into ``after_step``.

Paper: Miyato et al. 2018, https://arxiv.org/abs/1802.05957 (algorithm 1).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

START = 20  # power steps for the first weights, which no training has followed yet


class SpectralNorm(nn.Module):
    """W -> W / sigma(W) of one weight, as a parametrisation of ``torch.nn.utils.parametrize``.

    ``outputs`` is the weight's dimension of outputs: the second one in a transposed convolution.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, *, outputs: int = 0) -> None:
        super().__init__()
        self.outputs = outputs
        rows, columns = self.matrix(weight).shape
        u = torch.randn(rows, dtype=weight.dtype)
        self.register_buffer("u", u / u.norm())
        self.register_buffer("v", torch.zeros(columns, dtype=weight.dtype))
        self.power_step(weight, steps=START)

    def matrix(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "o i"]:
        """The weight as a matrix of outputs by everything else."""
        return weight.movedim(self.outputs, 0).flatten(1)

    @torch.no_grad()
    def power_step(self, weight: Tensor, *, steps: int = 1) -> None:
        """Move u and v by steps of the power iteration on this weight."""
        matrix = self.matrix(weight)
        tiny = torch.finfo(matrix.dtype).tiny
        for _ in range(steps):
            v = matrix.T @ self.u
            self.v.copy_(v / v.norm().clamp_min(tiny))
            u = matrix @ self.v
            self.u.copy_(u / u.norm().clamp_min(tiny))

    def sigma(self, weight: Tensor) -> Float[Tensor, ""]:
        """u^T W v, the largest singular value as far as u and v are right, and never more; in full precision."""
        with torch.autocast(weight.device.type, enabled=False):
            return torch.dot(self.u, self.matrix(weight) @ self.v)

    def forward(self, weight: Tensor) -> Tensor:
        """W / sigma(W)."""
        return weight / self.sigma(weight)


def spectral_normalise(net: nn.Module, *, but: tuple[type[nn.Module], ...] = ()) -> None:
    """Divide every linear and convolutional weight in ``net`` by its largest singular value, from now on.

    Modules of the types ``but`` keep their weights as they are: those that start at zero have no singular vector.
    """
    kept = {id(inner) for module in net.modules() if isinstance(module, but) for inner in module.modules()}
    for module in list(net.modules()):
        if id(module) in kept:
            continue
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            outputs = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight, outputs=outputs))


def power_step(net: nn.Module) -> None:
    """One step of the power iteration in every normalised weight of ``net``, after a step of its optimiser."""
    for module in net.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(norm := module[0], SpectralNorm):
            norm.power_step(module.original)
