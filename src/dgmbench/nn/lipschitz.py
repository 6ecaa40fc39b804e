"""Networks with a bounded Lipschitz constant: linear maps whose operator norm a power iteration keeps below c.

The norm of a convolution is that of the linear map of whole images that it is, and not that of its kernel reshaped to a
matrix; so the power iteration runs through the convolution and its transpose, at the size of the images.

A few singular vectors are followed at once, so that two that cross during training do not deceive the iteration: it
then converges by the ratio of the first singular value to the one after the followed ones.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FOLLOWED = 4
TOLERANCE = 1e-5  # relative change of the norm in an iteration at which it is taken as converged
JacobianProduct = Callable[[Tensor], Tensor]
"""Tangents (k, b, *shape) at fixed points (b, *shape) to their images under the Jacobian."""


class SpectralMap(nn.Module):
    """A linear map or a convolution plus bias, W x + b, with W scaled by min(1, c / sigma), sigma its operator norm.

    sigma = <u, W v> with singular vectors u and v that are buffers and constants of the gradient; ``refine`` moves them
    after a change of W. Convolutions keep the size of the image by zero padding.

    Args:
        inputs: shape of the input, (d,) for a matrix or (c, h, w) for a convolution.
        outputs: number of output dimensions, or channels.
        coefficient: c, the largest operator norm.
        kernel: size of the convolution's kernel, odd.
    """

    u: Tensor
    basis: Tensor

    def __init__(self, inputs: tuple[int, ...], outputs: int, *, coefficient: float, kernel: int = 1) -> None:
        super().__init__()
        self.inputs, self.coefficient, self.padding = inputs, coefficient, kernel // 2
        self.convolution = len(inputs) == 3
        like = nn.Conv2d(inputs[0], outputs, kernel) if self.convolution else nn.Linear(inputs[0], outputs)
        assert like.bias is not None
        self.weight, self.bias = like.weight, nn.Parameter(like.bias.detach())
        shape = (outputs, *inputs[1:])
        followed = min(FOLLOWED, math.prod(inputs), math.prod(shape))
        start = torch.linalg.qr(torch.randn(math.prod(inputs), followed)).Q
        self.register_buffer("basis", start.T.reshape(followed, *inputs).contiguous())
        self.register_buffer("u", torch.zeros(shape))
        self.refine(most=500)

    def apply_weight(self, weight: Tensor, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """W x without bias, for a weight of this map's shape."""
        return F.conv2d(x, weight, padding=self.padding) if self.convolution else F.linear(x, weight)

    def _transposed(self, y: Tensor) -> Tensor:
        weight = self.weight
        return F.conv_transpose2d(y, weight, padding=self.padding) if self.convolution else F.linear(y, weight.T)

    @torch.no_grad()
    def refine(self, *, most: int = 50) -> None:
        """Move the singular vectors to those of the present weight: iterate until the norm stands still."""
        v, before = self.basis, -1.0
        for _ in range(most):
            image = self.apply_weight(self.weight, v)
            left, values, right = torch.linalg.svd(image.flatten(1), full_matrices=False)
            v = (left.T @ v.flatten(1)).view_as(v)  # so that the first one gives the largest image
            norm = float(values[0])
            if norm - before <= TOLERANCE * norm:
                break
            before, best = norm, v
            q = torch.linalg.qr(self._transposed(image).flatten(1).T).Q
            v = q.T.reshape(v.shape)
        else:
            v = best
            right = self.apply_weight(self.weight, v[:1]).flatten(1)
            right = right / right.norm().clamp_min(torch.finfo(right.dtype).tiny)
        self.basis.copy_(v)
        self.u.copy_(right[0].view_as(self.u))

    def norm(self) -> Float[Tensor, ""]:
        """sigma, the operator norm before scaling."""
        return (self.u * self.apply_weight(self.weight, self.basis[:1])[0]).sum()

    def scaled(self) -> Tensor:
        """The weight that is used."""
        return self.weight / (self.norm() / self.coefficient).clamp_min(1.0)

    def bound(self) -> float:
        """The operator norm of the map that is used: sigma or c, whichever is smaller."""
        return min(float(self.norm().detach()), self.coefficient)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b."""
        return self.affine(self.scaled(), x)

    def affine(self, weight: Tensor, x: Tensor) -> Tensor:
        """W x + b for a given weight."""
        return self.apply_weight(weight, x) + (self.bias.view(-1, 1, 1) if self.convolution else self.bias)


class LipschitzNet(nn.Module):
    """Spectral maps with ELUs between them: a function of Lipschitz constant at most the product of their norms."""

    def __init__(self, maps: Sequence[SpectralMap]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def _maps(self) -> list[SpectralMap]:
        return list(self.maps)  # type: ignore[arg-type]  # nn.ModuleList knows no spectral maps

    @classmethod
    def mlp(cls, dim: int, hidden_sizes: Sequence[int], *, coefficient: float) -> "LipschitzNet":
        """A network of vectors (b, dim) to vectors of the same length."""
        sizes = [dim, *hidden_sizes, dim]
        return cls([SpectralMap((a,), b, coefficient=coefficient) for a, b in pairwise(sizes)])

    @classmethod
    def convolutional(cls, shape: tuple[int, int, int], width: int, *, coefficient: float) -> "LipschitzNet":
        """3 x 3, 1 x 1 and 3 x 3 convolutions of images to images of the same shape."""
        c, h, w = shape
        layers = ((c, width, 3), (width, width, 1), (width, c, 3))
        return cls([SpectralMap((a, h, w), b, coefficient=coefficient, kernel=k) for a, b, k in layers])

    def forward(self, x: Tensor) -> Tensor:
        """g(x)."""
        return self.linearise(x)[0]

    def linearise(self, x: Tensor) -> tuple[Tensor, JacobianProduct]:
        """g(x), and the product of its Jacobian at x with tangents, differentiable like g itself."""
        maps = self._maps()
        weights, slopes, h = [each.scaled() for each in maps], [], x
        for i, each in enumerate(maps):
            h = each.affine(weights[i], h)
            if i + 1 < len(maps):
                slopes.append(h.clamp(max=0).exp())
                h = F.elu(h)

        return h, partial(self._product, weights, slopes)

    def _product(self, weights: Sequence[Tensor], slopes: Sequence[Tensor], tangents: Tensor) -> Tensor:
        """J t from the scaled weights and the slopes of the ELUs at x."""
        t = tangents
        for i, (each, weight) in enumerate(zip(self._maps(), weights, strict=True)):
            t = each.apply_weight(weight, t.flatten(0, 1)).unflatten(0, t.shape[:2])
            if i < len(slopes):
                t = t * slopes[i]
        return t

    def lipschitz(self) -> float:
        """A bound of the Lipschitz constant."""
        return math.prod(each.bound() for each in self._maps())
