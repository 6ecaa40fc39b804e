"""Diagonal Gaussians by their moments: what a network's output means, draws, and how far one is from another."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor


class Moments(NamedTuple):
    """Mean and log sigma of a diagonal Gaussian."""

    mean: Float[Tensor, "... z"]
    log_sigma: Float[Tensor, "... z"]


def moments(parameters: Float[Tensor, "... parameters"]) -> Moments:
    """The first half of a network's output as means, the second as log variances."""
    mean, log_variance = parameters.chunk(2, dim=-1)
    return Moments(mean, 0.5 * log_variance)


def halves(parameters: Float[Tensor, "n parameters ..."]) -> Moments:
    """The same of maps: the first half of the features as means, the second as log variances."""
    mean, log_variance = parameters.chunk(2, dim=1)
    return Moments(mean, 0.5 * log_variance)


def standard(like: Float[Tensor, "..."]) -> Moments:
    """N(0, I) in the shape of a tensor."""
    zero = torch.zeros_like(like)
    return Moments(zero, zero)


def draw_normal(of: Moments, k: int, generator: Generator | None = None) -> Float[Tensor, "k ... z"]:
    """k draws of each Gaussian (..., z), reparametrised."""
    mean, log_sigma = of
    noise = torch.randn(k, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + log_sigma.exp() * noise


def gaussian_kl(q: Moments, p: Moments) -> Float[Tensor, "... z"]:
    """KL(q || p) of each dimension, in nats."""
    change = q.log_sigma - p.log_sigma
    apart = ((q.mean - p.mean) * torch.exp(-p.log_sigma)).square()
    return 0.5 * (apart + torch.exp(2 * change) - 1) - change


def merged(a: Moments, b: Moments) -> Moments:
    """The Gaussian that the product of two densities is proportional to: their means weighted by their precisions."""
    share = torch.sigmoid(2 * (b.log_sigma - a.log_sigma))  # a's part of the precision
    log_precision = torch.logaddexp(-2 * a.log_sigma, -2 * b.log_sigma)
    return Moments(b.mean + share * (a.mean - b.mean), -0.5 * log_precision)
