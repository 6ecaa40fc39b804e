"""Mixtures of Gaussians with independent dimensions, one for each of several classes, fitted by EM.

    p(x | class s) = sum_k w_sk N(x; mean_sk, diag variance_sk)

Together, weighted by how frequent the classes are, they are one mixture over everything, as the output of a GMM-HMM
is. Densities of all components are one product of matrices. Shapes: x (n, d), y (n,), means (s, k, d).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

LEAST = 1e-6  # of a component's share of frames


class Mixtures(NamedTuple):
    """One mixture for each class."""

    log_weights: Float[Tensor, "s k"]
    means: Float[Tensor, "s k d"]
    variances: Float[Tensor, "s k d"]

    def log_joint(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n s k"]:
        """log w_sk + log N(x; mean_sk, variance_sk). Has gradients with respect to x."""
        means, precision = self.means.flatten(0, 1), 1 / self.variances.flatten(0, 1)
        square = x.square() @ precision.t() - 2 * x @ (means * precision).t() + (means.square() * precision).sum(1)
        log_normaliser = -0.5 * (2 * torch.pi / precision).log().sum(1)
        return (log_normaliser - 0.5 * square).unflatten(1, self.log_weights.shape) + self.log_weights

    def log_density(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """log p(x | class)."""
        return self.log_joint(x).logsumexp(2)


def moments_of(x: Tensor, share: Float[Tensor, "n s k"], floor: float) -> Mixtures:
    """The M step: weights, means and variances (at least ``floor``) of frames that belong to components by shares."""
    flat, x = share.flatten(1), x.to(share.dtype)
    total = flat.sum(0).clamp_min(LEAST)
    means = flat.t() @ x / total[:, None]
    variances = flat.t() @ x.square() / total[:, None] - means.square()
    sizes = total.view(share.shape[1:])
    log_weights = (sizes / sizes.sum(1, keepdim=True)).log()
    return Mixtures(log_weights, *(each.unflatten(0, sizes.shape) for each in (means, variances.clamp_min(floor))))


@torch.no_grad()
def fit_mixtures(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], start: Mixtures, *, floor: float, iterations: int
) -> Mixtures:
    """EM from these mixtures on, each over the frames of its own class, in float64."""
    fitted = []
    for n in range(len(start.log_weights)):
        own, now = x[y == n].double(), Mixtures(*(each[n : n + 1].double() for each in start))
        for _ in range(iterations):
            now = moments_of(own, now.log_joint(own).softmax(2), floor)
        fitted.append(now)
    return Mixtures(*(torch.cat(each) for each in zip(*fitted, strict=True)))


@torch.no_grad()
def first_mixtures(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], classes: int, components: int, *, floor: float, generator: Generator
) -> Mixtures:
    """A start for EM: components around frames of their class, as wide as the class; every class needs a frame."""
    means, variances = [], []
    for s in range(classes):
        own = x[y == s].double()
        order = torch.randperm(len(own), device=x.device, generator=generator)
        means.append(own[order[torch.arange(components, device=x.device) % len(own)]])
        variances.append(own.var(0, correction=0).clamp_min(floor).expand(components, -1))
    return Mixtures(
        x.new_zeros(classes, components, dtype=torch.float64).log_softmax(1), *map(torch.stack, (means, variances))
    )
