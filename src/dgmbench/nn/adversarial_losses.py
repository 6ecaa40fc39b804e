"""What discriminator and generator minimise, at the discriminator's outputs ("logits", no sigmoid); and penalties.

Every function works on one output per example, shape (b,), and returns one value per example, so that the reduction is
the caller's and no (b,) is ever broadcast against a (b, 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

AdversarialLossName = Literal["non_saturating", "minimax", "wasserstein"]

PerExample = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AdversarialLoss:
    """One adversarial objective: three functions of the discriminator's output a(x).

    ``real`` and ``fake`` are what the discriminator minimises at data and at samples, ``generator`` is what the
    generator minimises at its samples.
    """

    real: PerExample
    fake: PerExample
    generator: PerExample


# With D(x) = sigmoid(a(x)): -log D = softplus(-a) and -log(1 - D) = softplus(a).
LOSSES: dict[str, AdversarialLoss] = {
    # min_G max_D E log D(x) + E log(1 - D(G(z)))
    "minimax": AdversarialLoss(real=lambda a: F.softplus(-a), fake=F.softplus, generator=lambda a: -F.softplus(a)),
    # the same discriminator; the generator minimises -log D(G(z)), whose gradient does not vanish where D(G(z)) is 0
    "non_saturating": AdversarialLoss(
        real=lambda a: F.softplus(-a), fake=F.softplus, generator=lambda a: F.softplus(-a)
    ),
    # max_D E a(x) - E a(G(z)) over 1-Lipschitz a: the Wasserstein-1 distance
    "wasserstein": AdversarialLoss(real=torch.neg, fake=lambda a: a, generator=torch.neg),
}


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, " b *shape"],
    fake: Float[Tensor, " b *shape"],
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " b"]:
    """(||grad_x a(x_hat)|| - 1)^2 per example, at x_hat = alpha real + (1 - alpha) fake (Gulrajani et al. 2017).

    One alpha ~ U(0, 1) an example; the norm is over all dimensions of an example. The gradient is taken in full
    precision, whatever autocast is on, and can be differentiated again.
    """
    alpha = torch.rand(len(real), device=real.device, dtype=real.dtype, generator=generator)
    alpha = alpha.view(-1, *[1] * (real.dim() - 1))
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        point = torch.lerp(fake.to(real.dtype), real, alpha).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norm - 1).square()
