"""NICE: a flow of additive couplings, each of which shifts one half of the dimensions by a net of the other half.

Shifts keep the volume, so that only the last step, a scaling of each dimension, has a log-determinant:

    z_moving = x_moving + net(x_fixed),  halves taking turns,      z <- exp(s) z,      log |det dz/dx| = sum s,
    loss = -E_data[log p(z) + sum s],      p(z) a product of standard logistic (or Gaussian) densities.

The halves are the even and the odd dimensions of the flattened x. Large s_i mark dimensions of little variation.

Shapes and units: x is raw (b, *shape), z (b, D); log-densities are in nats per example. On binary and discrete data the
number is the uniform dequantisation bound (see ``flow.py``).

Paper: Dinh, Krueger, Bengio, "NICE: Non-linear Independent Components Estimation", ICLR workshop 2015,
https://arxiv.org/abs/1410.8516.

Different from the paper: levels pass a logit first, which leaves no mass outside the data space, where the paper has
x / 256 (or whitened x) as it is. Its nets of 5 x 1000 units for 28 x 28 pixels are more than 8 x 8 digits are worth.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, require
from dgmbench.models.flow.flow import Dequantised, Flow
from dgmbench.nn.bases import Gaussian, Logistic
from dgmbench.nn.bijections import Bijection, Flatten
from dgmbench.nn.couplings import SplitCoupling, coupling_mlp

BASES = {"logistic": Logistic, "gaussian": Gaussian}
HALVES = slice(0, None, 2), slice(1, None, 2)


class DiagonalScaling(Bijection):
    """z = exp(s) x with a learned s (d,), starting as the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Data to noise."""
        return x * self.log_scale.exp(), self.log_scale.sum().expand(len(x))

    def inverse(self, z: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, " b"]]:
        """Noise to data."""
        return z * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(z))


class Nice(Flow):
    """NICE (Dinh, Krueger, Bengio 2015).

    Args:
        spec: the data space; x is flattened and needs at least two dimensions.
        prior: of each dimension of z; the paper has the logistic one on MNIST, SVHN and CIFAR-10, the Gaussian on TFD.
        couplings: number of couplings; with fewer than three, some dimensions do not influence each other.
        hidden_sizes: hidden layers of each coupling's mlp.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        prior: Literal["logistic", "gaussian"] = "logistic",
        couplings: int = 4,
        hidden_sizes: Sequence[int] = (256, 256, 256),
    ) -> None:
        super().__init__(spec)
        require(least=1, couplings=couplings, hidden_sizes=hidden_sizes)
        if spec.dim < 2:
            raise UserError(f"NICE couples two halves of the dimensions, and {spec} has one dimension.")
        steps: list[Bijection] = [Flatten(spec.shape)]
        for i in range(couplings):
            fixed, moving = HALVES[i % 2], HALVES[(i + 1) % 2]
            sizes = (len(range(spec.dim)[half]) for half in (fixed, moving))
            net = coupling_mlp(next(sizes), hidden_sizes, next(sizes))
            steps.append(SplitCoupling(net, fixed, moving, log_scale=None))
        self.compose([*steps, DiagonalScaling(spec.dim)], BASES[prior]())


class DequantisedNice(Dequantised, Nice):
    """NICE on data with levels: a bound in place of the density."""


Nice.on_levels = DequantisedNice
