"""Invertible 1 x 1 convolutions: a learned mixing of the channels, plain or by its LU factors (Kingma, Dhariwal 2018).

    z_ij = W x_ij at every pixel,      log |det dz/dx| = h w log |det W|.

Plain, W itself is learned and log |det W| costs O(c^3). As P L (U + diag(s)) with a fixed permutation P, a unit lower
triangular L and a strictly upper triangular U, it is sum log |s|; the signs of s are fixed as well, so that no step of
an optimiser can make W singular. Both start at the same random rotation and are the same function of W.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.nn.bijections import Bijection, Mapped


class InvertibleConv(Bijection):
    """A 1 x 1 convolution of ``channels`` channels, starting at a random rotation.

    Args:
        channels: c.
        lu: learn the LU factors instead of W.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, *, lu: bool) -> None:
        super().__init__()
        self.lu = lu
        if lu:
            self.register_buffer("permutation", torch.eye(channels))
            self.register_buffer("sign", torch.ones(channels))
            self.lower = nn.Parameter(torch.zeros(channels, channels))
            self.upper = nn.Parameter(torch.zeros(channels, channels))
            self.log_diagonal = nn.Parameter(torch.zeros(channels))
        else:
            self.matrix = nn.Parameter(torch.eye(channels))
        self.start_at(torch.linalg.qr(torch.randn(channels, channels)).Q)

    @torch.no_grad()
    def start_at(self, weight: Float[Tensor, "c c"]) -> None:
        """Make W this matrix, which must be invertible."""
        if not self.lu:
            self.matrix.copy_(weight)
            return
        permutation, lower, upper = torch.linalg.lu(weight)
        self.permutation.copy_(permutation)
        self.sign.copy_(upper.diagonal().sign())
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.log_diagonal.copy_(upper.diagonal().abs().log())

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L with its ones and U with its diagonal."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), device=self.lower.device, dtype=self.lower.dtype)
        return lower, self.upper.triu(1) + (self.sign * self.log_diagonal.exp()).diag()

    def weight(self) -> Float[Tensor, "c c"]:
        """W."""
        if not self.lu:
            return self.matrix
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def _log_det(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        one = self.log_diagonal.sum() if self.lu else torch.linalg.slogdet(self.matrix).logabsdet
        return (x[0, 0].numel() * one).expand(len(x))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Mapped:
        """Data to noise."""
        return F.conv2d(x, self.weight()[:, :, None, None]), self._log_det(x)

    def inverse(self, z: Float[Tensor, "b c h w"]) -> Mapped:
        """Noise to data, by solving for x: triangular systems where the factors are known."""
        rows = z.transpose(0, 1).flatten(1)
        if self.lu:
            lower, upper = self._factors()
            rows = torch.linalg.solve_triangular(lower, self.permutation.T @ rows, upper=False, unitriangular=True)
            rows = torch.linalg.solve_triangular(upper, rows, upper=True)
        else:
            rows = torch.linalg.solve(self.matrix, rows)
        return rows.view(z.shape[1], len(z), *z.shape[2:]).transpose(0, 1), -self._log_det(z)
