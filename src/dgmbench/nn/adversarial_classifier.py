"""A classifier with noise on every layer and the generator that plays against it, for semi-supervised learning.

Both are fully connected, as in the MNIST experiments of Salimans et al. 2016, https://arxiv.org/abs/1606.03498.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from dgmbench.data.spec import DataSpec
from dgmbench.nn.batchnorm import BatchNorm
from dgmbench.nn.minibatch_discrimination import MinibatchDiscrimination
from dgmbench.nn.virtual_batchnorm import VirtualBatchNorm

REFERENCE = 64  # latents of the reference batch of virtual batch-norm
WIDTH = 5  # numbers of each kernel of minibatch discrimination


class NoisyClassifier(nn.Module):
    """Scaled data -> features, after weight-normalised ReLU layers with Gaussian noise on each -> scores (b, K).

    Noise is there in training mode only, and comes from a generator that is handed in.
    """

    def __init__(
        self, dim: int, *, classes: int, hidden_sizes: Sequence[int], noise: tuple[float, float], kernels: int
    ) -> None:
        super().__init__()
        self.noise = noise
        sizes = [dim, *hidden_sizes]
        self.layers = nn.ModuleList(weight_norm(nn.Linear(m, n)) for m, n in pairwise(sizes))
        self.head = weight_norm(nn.Linear(sizes[-1], classes))
        self.closeness: nn.Sequential | None = None
        if kernels:
            discrimination = MinibatchDiscrimination(sizes[-1], kernels=kernels, width=WIDTH)
            self.closeness = nn.Sequential(discrimination, nn.Linear(kernels, 1, bias=False))

    def noisy(self, x: Tensor, level: float, generator: Generator | None) -> Tensor:
        """Return x with Gaussian noise of this deviation, in training mode."""
        if not self.training or not level:
            return x
        return x + level * torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator)

    def features(self, x: Tensor, generator: Generator | None = None) -> Float[Tensor, "b f"]:
        """f(x), the last hidden layer."""
        h, level = x.flatten(1), self.noise[0]
        for layer in self.layers:
            h, level = F.relu(layer(self.noisy(h, level, generator))), self.noise[1]
        return h

    def scores(self, features: Float[Tensor, "b f"], generator: Generator | None = None) -> Float[Tensor, "b k"]:
        """l_k of the classes at features of one batch, of data or of samples alone."""
        scores = self.head(self.noisy(features, self.noise[1], generator))
        return scores if self.closeness is None else scores + self.closeness(features)


class SoftplusGenerator(nn.Module):
    """z -> softplus layers with batch-norm, by the batch or by a fixed reference batch of latents -> scaled data."""

    reference: Tensor

    def __init__(self, spec: DataSpec, *, latent: int, hidden_sizes: Sequence[int], virtual: bool) -> None:
        super().__init__()
        self.shape, self.bounded, self.virtual = spec.shape, spec.kind != "real", virtual
        sizes = [latent, *hidden_sizes]
        self.layers = nn.ModuleList(nn.Linear(m, n, bias=False) for m, n in pairwise(sizes))
        self.norms = nn.ModuleList(VirtualBatchNorm(n) if virtual else BatchNorm(n) for n in hidden_sizes)
        self.last = nn.Linear(sizes[-1], spec.dim)
        if virtual:
            self.register_buffer("reference", torch.randn(REFERENCE, latent))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, " b *shape"]:
        """Scaled data at latents z."""
        h = torch.cat([self.reference, z]) if self.virtual else z
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = layer(h)
            h = F.softplus(norm(h, reference=REFERENCE) if self.virtual else norm(h))
        x = self.last(h[REFERENCE:] if self.virtual else h).view(-1, *self.shape)
        return torch.tanh(x) if self.bounded else x
