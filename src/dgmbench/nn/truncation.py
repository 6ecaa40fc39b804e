"""Normal noise cut to |z_i| <= tau: a model trained on all of N(0, I) draws fewer kinds of samples, and safer ones.

Paper: Brock et al. 2019, https://arxiv.org/abs/1809.11096 (section 3.1), who draw anew whatever falls outside; the same
distribution by the inverse distribution function takes one uniform number each.
"""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def cut_normal(u: Tensor, truncation: float) -> Tensor:
    """Numbers uniform on [-1, 1] to N(0, 1) cut to |z| <= truncation."""
    inside = math.erf(truncation / 2**0.5)  # the mass of |z| <= truncation
    return (2**0.5 * torch.erfinv(u * inside)).clamp(-truncation, truncation)


def cut(z: Tensor, truncation: float | None) -> Tensor:
    """Standard normal numbers to cut ones, quantile by quantile; unchanged without a truncation."""
    return z if truncation is None else cut_normal(torch.erf(z / 2**0.5), truncation)


def normal_noise(
    n: int, latent: int, *, device: torch.device, generator: Generator | None, truncation: float | None = None
) -> Float[Tensor, "n latent"]:
    """Latents from N(0, I), or from its truncation by the inverse distribution function."""
    if truncation is None:
        return torch.randn(n, latent, device=device, generator=generator)
    return cut_normal(2 * torch.rand(n, latent, device=device, generator=generator) - 1, truncation)
