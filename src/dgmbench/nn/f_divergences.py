"""f-divergences D_f(p || q) = E_q f(p / q), with what a discriminator needs to estimate them (Nowozin et al. 2016).

For convex f with f(1) = 0 and its conjugate f*(t) = sup_u (u t - f(u)), every function T of x gives a lower bound

    D_f(p || q) >= E_p T - E_q f*(T),      with equality at T = f'(p / q).

An output activation g maps the discriminator's output, any real number, to the domain of f*. All activations here
increase, so that a large output always speaks for data: where the paper's table 2 has the activations of Neyman and
squared Hellinger as 1 - exp(v), which decreases, it is 1 - exp(-v) here. The composition f*(g(v)) is written out,
because it is finite where its two parts are not.

Paper: Nowozin, Cseke, Tomioka 2016, https://arxiv.org/abs/1606.00709 (tables 1, 2 and 6).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

DivergenceName = Literal["kl", "reverse_kl", "pearson", "neyman", "squared_hellinger", "jensen_shannon", "gan"]


@dataclass(frozen=True)
class Divergence:
    """One divergence; every function works element by element."""

    f: Callable[[Tensor], Tensor]
    """The convex f(u), u > 0."""
    conjugate: Callable[[Tensor], Tensor]
    """f*(t), on its domain."""
    activation: Callable[[Tensor], Tensor]
    """g(v), from all real numbers to that domain, increasing."""
    conjugate_of_output: Callable[[Tensor], Tensor]
    """f*(g(v))."""


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(  # KL(p || q)
        f=lambda u: u * u.log(),
        conjugate=lambda t: (t - 1).exp(),
        activation=lambda v: v,
        conjugate_of_output=lambda v: (v - 1).exp(),
    ),
    "reverse_kl": Divergence(  # KL(q || p)
        f=lambda u: -u.log(),
        conjugate=lambda t: -1 - (-t).log(),
        activation=lambda v: -(-v).exp(),
        conjugate_of_output=lambda v: v - 1,
    ),
    "pearson": Divergence(  # chi^2: E_q (p / q - 1)^2
        f=lambda u: (u - 1).square(),
        conjugate=lambda t: t.square() / 4 + t,
        activation=lambda v: v,
        conjugate_of_output=lambda v: v.square() / 4 + v,
    ),
    "neyman": Divergence(  # E_p (q / p - 1)^2
        f=lambda u: (1 - u).square() / u,
        conjugate=lambda t: 2 - 2 * (1 - t).sqrt(),
        activation=lambda v: 1 - (-v).exp(),
        conjugate_of_output=lambda v: 2 - 2 * (-v / 2).exp(),
    ),
    "squared_hellinger": Divergence(  # sum (sqrt p - sqrt q)^2
        f=lambda u: (u.sqrt() - 1).square(),
        conjugate=lambda t: t / (1 - t),
        activation=lambda v: 1 - (-v).exp(),
        conjugate_of_output=lambda v: v.exp() - 1,
    ),
    "jensen_shannon": Divergence(  # twice the Jensen-Shannon divergence
        f=lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        conjugate=lambda t: -(2 - t.exp()).log(),
        activation=lambda v: math.log(2) - F.softplus(-v),
        conjugate_of_output=lambda v: F.softplus(v) - math.log(2),
    ),
    "gan": Divergence(  # the same minus log 4, so that f(1) is not 0: the value of the original GAN
        f=lambda u: u * u.log() - (u + 1) * (u + 1).log(),
        conjugate=lambda t: -torch.log(-torch.expm1(t)),
        activation=lambda v: -F.softplus(-v),
        conjugate_of_output=F.softplus,
    ),
}
