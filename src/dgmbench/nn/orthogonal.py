"""Orthogonal rows: how weights start, and a penalty that keeps them near it.

Paper: Brock et al. 2019, https://arxiv.org/abs/1809.11096 (equation 3), with W W' in place of the paper's W' W, as in
the authors' code: rows are outputs.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def start_orthogonal(net: nn.Module) -> None:
    """Give every linear and convolutional weight of ``net``, as a matrix of outputs, orthonormal rows or columns.

    Biases start at zero: with weights of norm one they would drown what differs from one example to the next.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def orthogonal_penalty(weights: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Sum over the weights W of ||W W' o (1 - I)||^2: squared products of different rows, whatever their lengths.

    A weight counts as the matrix (outputs, everything else). The gradient is 4 (W W' o (1 - I)) W.
    """
    total = torch.zeros(())
    for weight in weights:
        matrix = weight.flatten(1)
        products = matrix @ matrix.mT
        total = total + (products.square().sum() - products.diagonal().square().sum())
    return total
